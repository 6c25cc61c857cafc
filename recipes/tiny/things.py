"""Things that stand in generated scenes: emoji with a name that can be seen and counted.

Whether one can eat a thing, or whether it is a vehicle, is taken from emojibase's subgroups and
from WordNet where both agree. Elsewhere `SETTLED` says it by hand, or nothing is asked about it.

Concepts are held out by a hash of their code point: `dev` for choosing, `test` for the end. A
concept goes with all that share a name with it, such as "cat face" with "cat". Each of the two
parts is drawn in one style, and these drawings are left out of all training; the things are named
in other styles.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import emoji
import packages
import words

HELD_OUT = 120
"""Concepts that each held-out part has, or one or two more."""
STYLE_OF = {"dev": "emojione", "test": "noto"}
"""The style in which a held-out part's things are drawn; these drawings are never trained on."""
LEAST_STYLES = 3
MOST_WORDS = 2

LONGER = frozenset(("high heeled shoe", "one piece swimsuit", "four leaf clover", "jack o lantern"))
"""Names of more words that people do say."""
LEFT_OUT = frozenset(
    " ".join(name.split())
    for name in """
    hatching chick, black bird, phoenix, microbe, bug, pig nose, service dog, guide dog, poodle,
    spouting whale, wing, black cat, performing arts, label, page facing up, bookmark tabs, ledger,
    notebook, green book, blue book, orange book, woman's clothes, confetti ball, tanabata tree,
    pine decoration, sparkler, steaming bowl, oden, bento box, takeout box, cooking, canned food,
    honey pot, video game, game die, spade suit, club suit, heart suit, diamond suit, locked,
    unlocked, outbox tray, inbox tray, e mail, incoming envelope, yen banknote, euro banknote, pound
    banknote, level slider, musical score, card index, chart increasing, chart decreasing, building
    construction, love hotel, wedding, camping, desert, desert island, national park, landslide,
    foggy, fog, sunrise, sunset, cityscape, carousel horse, blossom, rosette, white flower, dna,
    cyclone, water wave, milky way, new moon, shooting star, glowing star, wind face, high voltage,
    muted speaker, bowling, tennis, cricket game, field hockey, ice hockey, ping pong, badminton,
    lacrosse, link, seat, suspension railway, mountain railway, mountain cableway, aerial tramway,
    small airplane, airplane departure, airplane arrival, light rail, station, metro, tram car,
    oncoming bus, oncoming taxi, oncoming automobile, construction, motorway, railway track, memo,
    black nib, computer disk, dvd, sake, mate, ice, pouring liquid, salt, dango, one thirty, two
    thirty, three thirty, four thirty, five thirty, six thirty, seven thirty, eight thirty, nine
    thirty, ten thirty, eleven thirty, twelve thirty, one o'clock, two o'clock, three o'clock, four
    o'clock, five o'clock, six o'clock, seven o'clock, eight o'clock, nine o'clock, ten o'clock,
    eleven o'clock, twelve o'clock, hourglass done, card file box, barber pole, t rex, french fries,
    glasses, prayer beads, sunglasses, clinking glasses, peanuts, goggles, ballet shoes, briefs,
    shorts, chains, scissors, kaaba, hamsa, mount fuji, tokyo tower, thread, yarn, musical note,
    spiral shell, x ray, world map, closed umbrella
    """.split(",")  # noqa: SIM905 (a list of names reads better than 170 lines)
)
"""Names of what cannot be seen or told from another, or that nobody says."""
MASS = frozenset(
    """
    bread bacon butter popcorn soap sushi wood garlic broccoli spaghetti luggage coral
    """.split()  # noqa: SIM905 (a word list reads better than twelve lines)
) | {"cooked rice", "curry rice", "shaved ice", "baguette bread", "green salad", "ginger root"}
"""Names without an article, of what is not counted."""

PLURALS = {
    "bullseye": "bullseyes",
    "yo yo": "yo yos",
    "rhinoceros": "rhinoceroses",
    "banjo": "banjos",
    "flamingo": "flamingos",
    "dodo": "dodos",
    "jellyfish": "jellyfish",
    "blowfish": "blowfish",
    "taxi": "taxis",
}
"""Plurals that WordNet lacks or that few people say."""

CATEGORIES = {
    "eat": (("food-",), ("00021265", "07555863", "07705931", "07705711")),
    "animal": (("animal-",), ("00015388",)),
    "vehicle": (("transport-",), ("04524313",)),
    "wear": (("clothing",), ("03051540", "03381126", "03380867", "03502509")),
    "instrument": (("musical-instrument",), ("03800933",)),
    "building": (("place-building", "place-religious"), ("02913152", "03984381")),
}
"""Category to beginnings of emojibase's subgroups, and to the synsets in WordNet above its own."""
SETTLED = {
    "eat": (
        "chestnut, rice ball, ginger root, pea pod",
        "rose, clapper board, screwdriver, rock, dog",
    ),
    "animal": (
        "",
        "electric plug, pen, oil drum, kick scooter, drum, sponge, kite, long drum, sewing needle, "
        "knot, snowflake, feather, spider web, chestnut",
    ),
    "vehicle": (
        "bullet train, train, trolleybus, minibus, monorail",
        "wheel, cat, fax machine, mouse trap, bus stop, stop sign, anchor, fuel pump, oil drum, "
        "ring buoy, balloon",
    ),
    "wear": ("running shirt, ring, watch, boxing glove, diving mask", "turtle, beaver, fuel pump"),
    "instrument": ("musical keyboard", "oil drum, wood"),
    "building": (
        "stadium, post office, bank, convenience store, department store, factory, hut",
        "shaved ice, brick, rock, wood",
    ),
}
"""Category to names that belong to it and names that do not, where the sources err or disagree."""
UNCLEAR = {
    "eat": "cow, pig, ox, boar, deer, goat, ram, ewe, rooster, bison, water buffalo, frog, jar, "
    "wine glass, cocktail glass, beer mug, baby bottle, tumbler glass, beverage box, teapot, "
    "tropical drink, bubble tea, hot beverage, jack o lantern, seedling, sunflower, baby chick, "
    "pill, cactus, droplet, carp streamer",
    "animal": "dragon, teddy bear, fried shrimp, coral, empty nest, poultry leg, pinata, unicorn, "
    "carp streamer, egg, sushi",
    "vehicle": "skateboard, elevator, playground slide, ferris wheel, roller coaster, ice skate",
    "wear": "ice skate, military medal, sports medal, reminder ribbon, headphone, stethoscope, "
    "adhesive bandage, shield, ribbon, parachute, ring buoy",
    "instrument": "wind chime, microphone, studio microphone, megaphone, radio",
    "building": "circus tent, tent, bus stop, fountain, empty nest",
}
"""Category to names of which nobody should be asked, although the sources agree."""
CONFUSED = """
    rat, mouse, hamster; ship, ferry, passenger ship, motor boat, speedboat, canoe
    bus, minibus, trolleybus, tram, train, monorail, bullet train, locomotive, railway car, bus stop
    automobile, taxi, police car, racing car, pickup truck, auto rickshaw; motorcycle, motor scooter
    delivery truck, articulated lorry, fire engine, ambulance; purse, handbag, clutch bag, briefcase
    pen, fountain pen, pencil, crayon, paintbrush; house, hut, derelict house; ram, goat, ewe
    office building, post office, hospital, bank, hotel, convenience store, school, department store
    factory, department store, convenience store; castle, church, mosque, synagogue, hindu temple
    horse, donkey, moose, deer; ox, cow, water buffalo, bison; tiger, leopard; dolphin, whale, shark
    lemon, lime, tangerine; burrito, taco, tamale, stuffed flatbread; sari, kimono, dress, lab coat
    laptop, desktop computer, television; hammer, axe, pick; clipboard, spiral notepad, calendar
    peach, red apple, tomato; coat, lab coat, safety vest; pie, pizza, fondue; hot dog, sandwich
    beetle, cockroach, lady beetle, ant; fly, mosquito, honeybee; duck, goose, swan, dove
    melon, watermelon; rooster, chicken, turkey; wolf, dog, fox; worm, snake; squid, octopus
    crocodile, lizard; camel, llama; rocket, satellite; envelope, red envelope; sun, star
    cloud, snowflake; potato, bread, egg; magnet, hook; bread, baguette bread, croissant
    wrapped gift, package; timer clock, alarm clock, mantelpiece clock, stopwatch, compass, watch
    mirror ball, crystal ball; microscope, telescope; chipmunk, hamster, beaver, otter
    orangutan, gorilla, monkey; evergreen tree, christmas tree; herb, leafy green, seedling
"""
"""Sets of things that are easily taken for one another, parted by semicolons and line ends."""
PARTS = {
    "wheel": "transport-, shopping cart, motorized wheelchair, manual wheelchair",
    "door": "place-, transport-",
    "window": "place-, transport-",
    "mirror": "transport-ground",
    "feather": "animal-bird",
    "fallen leaf": "plant-, food-",
    "maple leaf": "plant-, food-",
    "herb": "plant-, food-",
    "leafy green": "plant-, food-",
    "fire": "candle, diya lamp, birthday cake, jack o lantern, rocket, firecracker, volcano, comet",
    "candle": "birthday cake, jack o lantern",
    "anchor": "transport-water",
    "droplet": "shower, wilted flower, bathtub, tropical drink",
    "snowflake": "snowman",
    "cloud": "rainbow, tornado, volcano",
    "egg": "empty nest",
    "strawberry": "shortcake",
    "soccer ball": "goal net",
    "tomato": "hamburger, pizza, sandwich, taco, stuffed flatbread, green salad",
    "cheese wedge": "hamburger, pizza, sandwich, mouse trap",
    "lemon": "food-",
    "coin": "money bag, slot machine",
    "dollar banknote": "money bag",
    "tulip": "bouquet, potted plant",
    "rose": "bouquet, potted plant",
    "sunflower": "bouquet, potted plant",
    "brick": "place-",
    "mountain": "volcano",
    "star": "trophy, magic wand, sports medal, military medal",
    "telephone receiver": "fax machine",
    "keyboard": "laptop, desktop computer",
}
"""Names of what is a part of other things: subgroups of these, ending in a hyphen, or names."""
_CONFUSED = [
    {" ".join(name.split()) for name in own.split(",")}
    for own in re.split("[;\n]", CONFUSED.strip())
]


@dataclass(frozen=True, eq=False)
class Thing:
    """Something that can stand in a scene; one object for each name.

    Attributes:
        name: What it is called, in the singular.
        plural: The same in the plural; None where it is not counted.
        drawings: Emoji and style of each drawing that there is.
        names: Accepted names, `name` first.
        subgroup: emojibase's.
        above: Names of all that it is a kind of, by WordNet.
        judged: Category to whether it belongs to it; what is unclear is missing.
    """

    name: str
    plural: str | None = None
    drawings: tuple[tuple[str, str], ...] = ()
    names: tuple[str, ...] = ()
    subgroup: str = ""
    above: frozenset[str] = frozenset()
    judged: dict[str, bool] = field(default_factory=dict)

    @property
    def one(self) -> str:
        """The name with its article, "an apple"; a mass has none."""
        if self.plural is None:
            return self.name
        vowel = self.name[0] in "aeiou" and not self.name.startswith(("uni", "ewe", "one "))
        return f"{'an' if vowel else 'a'} {self.name}"

    def clashes(self, other: Thing) -> bool:
        """Whether one might be taken for the other, or is a kind of it: bear and polar bear."""
        return self.name != other.name and (_clash(self, other) or _clash(other, self))


@cache
def _clash(one: Thing, other: Thing) -> bool:
    own, others = {one.name, *one.names}, {other.name, *other.names}
    alike = any({one.name, other.name} <= confused for confused in _CONFUSED)
    last = one.name.split()[-1] == other.name.split()[-1]
    return bool(own & others or own & other.above or alike or last or is_part(one, other))


class Things:
    """All things, and the parts that are held out.

    Args:
        root: The data folder.
    """

    def __init__(self, root: Path) -> None:
        self.emoji = emoji.Emoji(root)
        self.styles = {name: emoji.Style(name, self.emoji, root) for name in emoji.TRAINED}
        meta = packages.fetch("emojibase-data", root) / "package"
        groups = json.loads((meta / "meta/groups.json").read_text())["subgroups"]
        rows = json.loads((meta / "en/data.json").read_text(encoding="utf-8"))
        self._subgroups = {
            emoji.key(row["hexcode"]): groups.get(str(row.get("subgroup")), "") for row in rows
        }

    @cached_property
    def all(self) -> dict[str, Thing]:
        """Name to thing."""
        codes: dict[str, list[str]] = {}
        names: dict[str, list[str]] = {}
        for code, (label, group) in sorted(self.emoji.by_code.items()):
            styles = [s for s in self.styles.values() if code in s.named]
            if group not in emoji.OBJECT_LIKE or len(styles) < LEAST_STYLES:
                continue
            accepted = emoji.names_of(label, group, self.emoji.net)
            if is_shown(accepted[0], self.emoji.net):
                codes.setdefault(accepted[0], []).append(code)
                names.setdefault(accepted[0], []).extend(accepted)
        return {name: self._thing(name, codes[name], names[name]) for name in codes}

    def _thing(self, name: str, codes: list[str], accepted: Iterable[str]) -> Thing:
        net = self.emoji.net
        subgroup = self._subgroups[codes[0]]
        senses = net.senses.get(name) or net.senses.get(name.split()[-1], [])
        seen = [s for s in senses if net.synsets[s][0] in words.SEEN]
        above = {a for s in seen for a in net.ancestors(s)}
        group = self.emoji.by_code[codes[0]][1]
        sense = net.sense(name, group) or net.sense(name.split()[-1], group)
        kinds = (
            {w.lower() for a in net.ancestors(sense) for w in net.synsets[a][1]} if sense else set()
        )
        plurals = [PLURALS[name]] if name in PLURALS else net.to_plurals(name)
        drawn = [(code, s) for code in codes for s in self.styles if code in self.styles[s].named]
        return Thing(
            name,
            None if name in MASS else (plurals[0] if plurals else name),
            tuple(drawn),
            tuple(dict.fromkeys(accepted)),
            subgroup,
            frozenset(kinds),
            judged(name, subgroup, {*seen, *above}),
        )

    @cached_property
    def parts(self) -> dict[str, list[Thing]]:
        """The things of "train", "dev" and "test"; no two parts share a name."""
        families: list[set[str]] = []
        for name, thing in self.all.items():
            said = {name, *thing.names}
            kin = [f for f in families if f & said]
            families = [f for f in families if not f & said] + [said.union(*kin)]
        members = [[t for t in self.all.values() if t.name in f] for f in families]
        found: dict[str, list[Thing]] = {"dev": [], "test": [], "train": []}
        counts = dict.fromkeys(found, 0)
        for own in sorted(
            members, key=lambda ts: digest(min(c for t in ts for c, _ in t.drawings))
        ):
            part = next((p for p in STYLE_OF if counts[p] < HELD_OUT), "train")
            if not all(self.drawings(thing, part) for thing in own):
                part = "train"
            found[part] += own
            counts[part] += len({code for t in own for code, _ in t.drawings})
        return found

    def drawings(self, thing: Thing, part: str) -> list[tuple[str, str]]:
        """The drawings of a thing that scenes of a part show; all of one style if held out."""
        style = STYLE_OF.get(part)
        return [d for d in thing.drawings if style in (None, d[1])]

    def is_held_out(self, code: str, style: str) -> bool:
        """Whether a drawing is kept for choosing or for the test: nothing may be trained on it."""
        return (code, style) in self._held_out

    @cached_property
    def _held_out(self) -> set[tuple[str, str]]:
        parts = [(part, thing) for part in STYLE_OF for thing in self.parts[part]]
        return {drawing for part, thing in parts for drawing in self.drawings(thing, part)}


def listing(root: Path) -> Iterator[dict[str, Any]]:
    """All things, for people and for other sets of records: part, drawings and categories."""
    things = Things(root)
    for part, members in things.parts.items():
        for thing in members:
            yield {
                "name": thing.name,
                "names": list(thing.names),
                "plural": thing.plural,
                "part": part,
                "concepts": sorted({code for code, _ in thing.drawings}),
                "styles": sorted({style for _, style in things.drawings(thing, part)}),
                "is": [c for c, judged in thing.judged.items() if judged],
                "unclear": [c for c in CATEGORIES if c not in thing.judged],
            }


def digest(code: str) -> str:
    """What concepts are ordered by when some are held out."""
    return hashlib.sha256(f"scene {code}".encode()).hexdigest()


def is_part(one: Thing, other: Thing) -> bool:
    """Whether things like the first are parts of the second: a wheel of a bus."""
    wholes = PARTS.get(one.name, "").split(", ")
    return other.name in wholes or any(w and other.subgroup.startswith(w) for w in wholes)


def is_shown(name: str, net: words.WordNet) -> bool:
    """Whether things of this name stand in scenes."""
    if name in LEFT_OUT or net.to_singular(name) is not None:
        return False
    return len(name.split()) <= MOST_WORDS or name in LONGER


def judged(name: str, subgroup: str, synsets: set[str]) -> dict[str, bool]:
    """Category to whether a thing belongs to it, where that is clear.

    Args:
        name: The thing's name.
        subgroup: emojibase's.
        synsets: Its synsets in WordNet and all above them.
    """
    found: dict[str, bool] = {}
    for category, (subgroups, roots) in CATEGORIES.items():
        belongs = subgroup.startswith(subgroups), bool(synsets & set(roots))
        if belongs[0] == belongs[1]:
            found[category] = belongs[0]
        for answer, names in zip((True, False), SETTLED[category], strict=True):
            if name in names.split(", "):
                found[category] = answer
        if name in UNCLEAR[category].split(", "):
            found.pop(category, None)
    return found
