"""Names: what a picture may rightly be called. One rule for training and test.

The accepted names of a picture are its label, that label's variants, and the synonyms that
WordNet lists for it:

1. lower case, `_` and `-` as spaces, no digits at the end, no article, nothing in brackets;
2. of an emoji label "dog face" also "dog" (a face of a thing is that thing; not for people);
3. singular and plural of the last word;
4. the other words of the first noun sense of the label in WordNet 3.0.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path


def clean(label: str) -> str:
    """Rule 1."""
    text = re.sub(r"\(.*?\)|\[.*?\]", " ", label.lower().replace("_", " ").replace("-", " "))
    text = re.sub(r"[^a-z' ]+", " ", text)
    text = re.sub(r"^\s*(a|an|the|some)\s+", "", text)
    return " ".join(text.split())


def number_variants(name: str) -> list[str]:
    """Rule 3: singular and plural of the last word."""
    if name.endswith("ies"):
        return [name, name[:-3] + "y"]
    if name.endswith(("ses", "xes", "ches", "shes")):
        return [name, name[:-2]]
    if name.endswith("s") and not name.endswith("ss"):
        return [name, name[:-1]]
    if name.endswith("y") and name[-2:-1] not in "aeiou":
        return [name, name[:-1] + "ies"]
    return [name, name + ("es" if name.endswith(("s", "x", "ch", "sh")) else "s")]


class WordNet:
    """Noun synsets of WordNet 3.0.

    Args:
        folder: The unpacked `wordnet-base` package.
    """

    def __init__(self, folder: Path) -> None:
        files = folder / "usr/share/wordnet"
        self.synsets: dict[str, tuple[list[str], list[str]]] = {}
        self.first_sense: dict[str, str] = {}
        for line in (files / "data.noun").read_text(encoding="latin-1").splitlines():
            if line.startswith("  "):
                continue
            fields = line.split(" | ")[0].split()
            count = int(fields[3], 16)
            words = [clean(w) for w in fields[4 : 4 + 2 * count : 2]]
            pointers = fields[5 + 2 * count :]
            parents = [pointers[i + 1] for i, p in enumerate(pointers) if p in ("@", "@i")]
            self.synsets[fields[0]] = (words, parents)
        for line in (files / "index.noun").read_text(encoding="latin-1").splitlines():
            if not line.startswith("  "):
                fields = line.split()
                self.first_sense[fields[0].replace("_", " ")] = fields[-int(fields[2])]

    def synonyms(self, name: str) -> list[str]:
        """Words of the first noun sense of a name; empty if it is not in WordNet."""
        offset = self.first_sense.get(name)
        return [w for w in self.synsets[offset][0] if w] if offset else []

    def ancestors(self, offset: str) -> list[list[str]]:
        """The words of each hypernym of a synset, nearest first, along first parents."""
        chain = []
        while self.synsets[offset][1]:
            offset = self.synsets[offset][1][0]
            chain.append(self.synsets[offset][0])
        return chain


@cache
def wordnet(folder: Path) -> WordNet:
    """WordNet, read once."""
    return WordNet(folder)


def accepted(label: str, net: WordNet, *, face: bool = False) -> list[str]:
    """All accepted names of a label, the canonical one first.

    Args:
        label: The source's own label.
        net: WordNet.
        face: Whether rule 2 applies.
    """
    name = clean(label)
    names = [name]
    if face and name.endswith(" face"):
        names = [name.removesuffix(" face"), name]
    for known in list(names):
        names += number_variants(known)
    for known in [names[0], *number_variants(names[0])]:
        if net.synonyms(known):
            names += net.synonyms(known)
            break
    return list(dict.fromkeys(n for n in names if n))


# What a person says for a fine class, if one of these stands above it in WordNet.
BASIC = frozenset(
    [
        "dog",
        "cat",
        "bird",
        "fish",
        "shark",
        "snake",
        "lizard",
        "turtle",
        "frog",
        "salamander",
        "crocodile",
        "dinosaur",
        "spider",
        "scorpion",
        "crab",
        "lobster",
        "insect",
        "beetle",
        "butterfly",
        "bee",
        "ant",
        "fly",
        "cockroach",
        "grasshopper",
        "dragonfly",
        "snail",
        "slug",
        "worm",
        "jellyfish",
        "coral",
        "starfish",
        "monkey",
        "ape",
        "bear",
        "wolf",
        "fox",
        "lion",
        "tiger",
        "elephant",
        "horse",
        "zebra",
        "pig",
        "cow",
        "sheep",
        "goat",
        "deer",
        "antelope",
        "camel",
        "llama",
        "rabbit",
        "hare",
        "mouse",
        "rat",
        "squirrel",
        "beaver",
        "hamster",
        "hedgehog",
        "bat",
        "whale",
        "dolphin",
        "seal",
        "otter",
        "weasel",
        "skunk",
        "badger",
        "mongoose",
        "kangaroo",
        "koala",
        "wombat",
        "sloth",
        "armadillo",
        "anteater",
        "duck",
        "goose",
        "swan",
        "hen",
        "cock",
        "owl",
        "eagle",
        "vulture",
        "hawk",
        "parrot",
        "penguin",
        "pelican",
        "flamingo",
        "crane",
        "heron",
        "hummingbird",
        "woodpecker",
        "finch",
        "thrush",
        "jay",
        "ostrich",
        "peacock",
        "quail",
        "partridge",
        "grouse",
        "car",
        "truck",
        "bus",
        "van",
        "train",
        "locomotive",
        "bicycle",
        "motorcycle",
        "boat",
        "ship",
        "airplane",
        "aircraft",
        "helicopter",
        "balloon",
        "wagon",
        "cart",
        "tractor",
        "tank",
        "submarine",
        "chair",
        "table",
        "bed",
        "desk",
        "sofa",
        "bench",
        "cabinet",
        "bookcase",
        "lamp",
        "clock",
        "watch",
        "door",
        "fence",
        "wall",
        "bridge",
        "tower",
        "house",
        "building",
        "church",
        "temple",
        "castle",
        "shop",
        "store",
        "boat",
        "guitar",
        "piano",
        "drum",
        "violin",
        "trumpet",
        "flute",
        "organ",
        "harp",
        "saxophone",
        "accordion",
        "computer",
        "keyboard",
        "screen",
        "telephone",
        "camera",
        "television",
        "radio",
        "printer",
        "bottle",
        "cup",
        "glass",
        "bowl",
        "plate",
        "pot",
        "pan",
        "basket",
        "box",
        "bag",
        "bucket",
        "jar",
        "barrel",
        "hat",
        "cap",
        "helmet",
        "shirt",
        "coat",
        "dress",
        "skirt",
        "trousers",
        "shoe",
        "boot",
        "sandal",
        "sock",
        "glove",
        "scarf",
        "mask",
        "necktie",
        "knife",
        "sword",
        "gun",
        "rifle",
        "hammer",
        "screwdriver",
        "saw",
        "drill",
        "shovel",
        "axe",
        "ball",
        "racket",
        "fruit",
        "vegetable",
        "mushroom",
        "flower",
        "bread",
        "cake",
        "pizza",
        "sandwich",
        "soup",
        "meat",
        "beverage",
        "wine",
        "coffee",
        "mountain",
        "beach",
        "lake",
        "sea",
        "valley",
        "volcano",
    ]
)


def basic_names(offset: str, net: WordNet) -> list[str]:
    """Basic-level names above a synset, nearest first."""
    above = [word for words in net.ancestors(offset) for word in words]
    return list(dict.fromkeys(word for word in above if word in BASIC))
