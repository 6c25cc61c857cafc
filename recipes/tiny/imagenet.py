"""ImageNet's 1,000 classes: an everyday name, synonyms, and what a person says for it at a glance.

- `names` are the synset's words, the everyday name first, in both numbers.
- `name` is the first of them, or the one in `EVERYDAY` where another is commoner or two classes
  share the first.
- `hypernyms` are the words of `BASIC` above the class in WordNet, nearest first, at most two. A
  word counts only in its commonest sense of the class's own kind: a "plate" of armour is no plate.
- `glance` is what an animal is called at a glance, the nearest word of `GLANCE` above it ("dog" of
  a German shepherd: Rosch et al. 1976 call it the basic level); none of other things, and of
  animals that look like no other (`ITSELF`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import packages
import words
from timm.data import ImageNetInfo

MOST_HYPERNYMS = 2
EVERYDAY = {
    7: "rooster", 20: "dipper", 27: "newt", 49: "crocodile", 50: "alligator", 70: "daddy longlegs",
    101: "elephant", 263: "pembroke welsh corgi", 264: "cardigan welsh corgi", 272: "coyote",
    296: "polar bear", 341: "pig", 349: "bighorn sheep", 354: "dromedary", 383: "ring tailed lemur",
    387: "red panda", 388: "panda", 397: "pufferfish", 412: "trash can", 418: "ballpoint pen",
    421: "banister", 428: "wheelbarrow", 436: "station wagon", 437: "lighthouse",
    444: "tandem bicycle", 454: "bookstore", 459: "bra", 468: "taxi", 469: "cauldron",
    478: "cardboard box", 487: "mobile phone", 498: "movie theater", 553: "file cabinet",
    555: "fire truck", 570: "gas mask", 575: "golf cart", 584: "hair clip", 589: "hair dryer",
    592: "hard disk", 608: "jeans", 610: "t shirt", 612: "rickshaw", 628: "ocean liner",
    632: "speaker", 638: "swimsuit", 639: "swimsuit", 670: "scooter", 673: "computer mouse",
    681: "notebook computer", 692: "packet", 697: "pajamas", 717: "pickup truck",
    724: "pirate ship", 726: "carpenter's plane", 737: "soda bottle", 744: "missile",
    751: "race car", 757: "recreational vehicle", 761: "remote control", 767: "eraser",
    769: "ruler",
    773: "salt shaker", 776: "saxophone", 800: "slot machine", 836: "sunglasses", 840: "mop",
    850: "teddy bear", 881: "upright piano", 882: "vacuum cleaner", 896: "sink",
    897: "washing machine", 916: "website", 929: "popsicle", 930: "french bread", 934: "hot dog",
    981: "baseball player", 989: "rose hip", 998: "corn", 999: "toilet paper",
}  # fmt: skip
"""Class to its everyday name, where that is not the first word of the synset."""
BASIC = frozenset(
    """
    dog terrier spaniel hound retriever setter poodle corgi sheepdog cat wolf fox bear lion tiger
    bird finch thrush jay eagle hawk owl grouse parrot cockatoo duck goose swan stork heron crane
    sandpiper penguin woodpecker gull fish shark ray salmon eel frog toad newt salamander turtle
    lizard gecko iguana chameleon crocodile alligator snake viper cobra python rattlesnake dinosaur
    spider scorpion tick insect beetle butterfly fly bee ant grasshopper cricket dragonfly cockroach
    snail slug worm crab lobster shrimp jellyfish coral starfish monkey ape lemur elephant horse
    pig sheep goat cow antelope deer camel rabbit squirrel mouse rat weasel kangaroo sloth panda
    whale dolphin seal bat mushroom fungus flower fruit vegetable squash cabbage apple bread cake
    pizza sandwich soup wine coffee salad pasta sauce
    car truck van bus train locomotive bicycle motorcycle boat ship sailboat airplane aircraft
    helicopter cart wagon sled tractor spacecraft
    chair table bed sofa bench desk cabinet lamp clock watch telephone computer camera keyboard
    radio television printer guitar piano drum violin horn bell bottle jug mug cup glass bowl pot
    pan plate basket box bag bucket jar vase barrel knife spoon pen pencil brush hat cap helmet hood
    shirt sweater coat jacket dress skirt robe cloak trousers pants shoe boot sandal sock stocking
    glove scarf necktie mask swimsuit towel blanket curtain rug hammer saw drill axe shovel gun
    rifle pistol cannon sword ball racket fence bridge tower house building church temple castle
    palace shop store restaurant prison roof boot engine wheel lock stove oven heater fan
    mountain beach lake
    """.split()  # noqa: SIM905 (a word list reads better than 200 lines)
)
GLANCE = frozenset(
    """
    dog cat wolf fox bear rabbit horse goat camel monkey elephant whale bird eagle owl parrot duck
    goose swan penguin heron stork fish shark frog turtle lizard snake dinosaur spider beetle
    butterfly crab lobster coral
    """.split()  # noqa: SIM905
)
"""Animals' names at a glance. Not the kinds of a dog, and not what takes a second look."""
ITSELF = frozenset(
    """
    ostrich hummingbird toucan pelican robin magpie vulture crane wallaby sloth tarantula eel
    pufferfish lynx cougar
    """.split()  # noqa: SIM905
)
MEANT = {
    "edible fruit": "fruit",
    "auto": "car",
    "domestic dog": "dog",
    "shop": "store",
    "couch": "sofa",
}
"""Words of WordNet for what a person calls otherwise."""
WRONG = {
    30: "toad", 31: "toad", 32: "toad", 470: "lamp", 598: "building", 607: "lamp", 723: "wheel",
    747: "ball", 798: "computer", 825: "fence", 827: "heater", 883: "jar", 884: "roof",
    916: "computer", 959: "sauce", 962: "bread", 971: "ball",
}  # fmt: skip
"""Class to a word above it in WordNet that nobody says for it."""
KIND = {"05": ("05",), "13": ("13", "20"), "20": ("20", "13"), "06": ("06",)}


def basic_names(index: int, offset: str, net: words.WordNet) -> list[str]:
    """All words of `BASIC` above a class, nearest first, without those of the class itself."""
    kinds = KIND.get(net.synsets[offset][0], words.SEEN)
    own = {words.clean(w) for w in net.synsets[offset][1]}
    found = []
    for above in net.ancestors(offset):
        for word in map(words.clean, net.synsets[above][1]):
            senses = [s for s in net.senses.get(word, []) if net.synsets[s][0] in kinds]
            said = MEANT.get(word, word)
            if senses[:1] == [above] and said in BASIC and said not in own:
                found.append(said)
    # a botanist's fruits (acorns, grains) hang under another synset than those that are eaten
    plant = net.synsets[offset][0] == "20"
    unsaid = {WRONG.get(index), "fruit" if plant else None}
    return [word for word in dict.fromkeys(found) if word not in unsaid]


def glance_name(name: str, offset: str, above: list[str], net: words.WordNet) -> str | None:
    """What an animal is called at a glance, given the words of `BASIC` above it."""
    if net.synsets[offset][0] != "05" or name in ITSELF:
        return None
    return next((word for word in above if word in GLANCE and word != name), None)


def class_names(index: int, lemmas: list[str], net: words.WordNet) -> list[str]:
    """The accepted names of a class, the everyday one first."""
    names = list(dict.fromkeys([EVERYDAY.get(index, lemmas[0]), *lemmas]))
    return list(dict.fromkeys([*names, *(v for name in names for v in net.numbers(name))]))


def imagenet_names(root: Path) -> Iterator[dict[str, Any]]:
    """The classes in the order of the head's rows."""
    net = words.wordnet(packages.fetch("wordnet-base", root))
    info = ImageNetInfo()
    for index in range(1000):
        wnid = info.index_to_label_name(index)
        lemmas = [words.clean(w) for w in info.index_to_description(index).split(",")]
        names = class_names(index, lemmas, net)
        above = [w for w in basic_names(index, wnid[1:], net) if w != names[0]]
        yield {
            "index": index,
            "wnid": wnid,
            "name": names[0],
            "names": names,
            "hypernyms": above[:MOST_HYPERNYMS],
            "glance": glance_name(names[0], wnid[1:], above, net),
        }
