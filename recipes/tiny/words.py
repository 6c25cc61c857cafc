"""Names: what an image may rightly be called. One rule for training and test.

The first accepted name of an image is its source's own label. The others come from that label and
from WordNet 3.0, never from loose tags:

1. Lower case, no accents, `_` and `-` as spaces, nothing in brackets. Words of file names are
   parted at capitals and lose their digits.
2. Leading words that only say colour, size, number or state (`PLAIN`) may be left out where
   WordNet lists what remains and not the whole: "red apple" is also "apple"; "black widow" stays.
3. Singular and plural of the last word, where WordNet knows it (irregular ones from its own list)
   and no preposition makes another word the head.
4. The other words of the label's first noun sense that can be seen (`SEEN`: an animal, an artefact,
   a body part, food, a natural object, a person, a plant...). The source's own group decides first:
   among animals "seal" is the animal, and never the wax.

Emoji have three more (`emoji.py`): "dog face" is a dog, "OK button" is also "ok", and of "cup with
straw" the part before "with" is enough.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from pathlib import Path

SEEN = ("05", "06", "08", "13", "17", "18", "19", "20", "25", "27")
"""WordNet's lexicographer files of things that can be seen."""
DOMAINS = {
    "animals": ("05",),
    "animals-nature": ("05", "20"),
    "food": ("13", "20"),
    "food-drink": ("13", "20"),
    "plants": ("20",),
    "people": ("18", "08"),
    "space": ("17",),
    "tools": ("06",),
    "vehicles": ("06",),
    "objects": ("06",),
    "activities": ("06",),
    "travel-places": ("06", "17"),
}
"""The files in which a group of images looks first."""
PLAIN = frozenset(
    """
    red green blue yellow brown black white pink purple orange grey gray silver golden colorful dark
    light big large huge little small tiny very long short tall old new modern young baby adult male
    female happy sad angry sleeping sitting standing singing flying eating lit wrapped sliced whole
    ripe closed open folded empty full wooden metal toy cartoon two three some another our hot
    """.split()  # noqa: SIM905 (a word list reads better than 70 lines)
)
GROUPS = re.compile(
    r"^(?:(?:pair|bunch|cluster|couple|string|head|cup|glass|tube|slice|loaf|plant) of|baby of an?)"
    r" (?P<thing>.+)"
)
HEAD_FIRST = re.compile(r" (?:of|de|du|des|at|on|in|with|behind|showing|the) ")
PLURAL_OES = frozenset(
    ("potato", "tomato", "mango", "volcano", "buffalo", "tornado", "mosquito", "domino", "torpedo")
)
PLURAL_MANS = frozenset(("human", "shaman", "talisman", "ottoman", "caiman"))
LATIN = ("ae", "i", "a", "busses")
"""Irregular plurals that have a regular one beside them."""
NO_PLURAL = frozenset(
    ("sheep", "deer", "fish", "moose", "bison", "salmon", "trout", "shrimp", "squid", "aircraft")
)


def clean(label: str) -> str:
    """Rule 1, for a label."""
    text = unicodedata.normalize("NFKD", label.replace("\u2019", "'").replace("\u00df", "ss"))
    text = "".join(c for c in text if not unicodedata.combining(c)).lower()
    text = re.sub(r"\(.*?\)|\[.*?\]", " ", text)
    return " ".join(re.sub(r"[^a-z0-9']+", " ", text).replace(" '", " ").split())


def clean_file(stem: str) -> str:
    """Rule 1, for the name of a file."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem)
    return clean(re.sub(r"\d+", " ", parted))


def without_article(name: str) -> str:
    """A name without its leading article."""
    return re.sub(r"^(?:a|an|the|some|this|another|our)\s+", "", name)


class WordNet:
    """Noun synsets of WordNet 3.0.

    Args:
        folder: The unpacked `wordnet-base` package.

    Attributes:
        synsets: Offset to lexicographer file, words in their own case, and hypernyms.
        senses: Name in lower case to its synsets, commonest first.
    """

    def __init__(self, folder: Path) -> None:
        files = folder / "usr/share/wordnet"
        self.synsets: dict[str, tuple[str, list[str], list[str]]] = {}
        self.senses: dict[str, list[str]] = {}
        self.singular: dict[str, str] = {}
        self.plurals: dict[str, list[str]] = {}
        self.common: set[str] = set()
        for line in (files / "data.noun").read_text(encoding="latin-1").splitlines():
            if line.startswith("  "):
                continue
            fields = line.split(" | ")[0].split()
            count = int(fields[3], 16)
            names = [w.replace("_", " ") for w in fields[4 : 4 + 2 * count : 2]]
            pointers = fields[5 + 2 * count :]
            parents = [pointers[i + 1] for i, p in enumerate(pointers) if p in ("@", "@i")]
            self.synsets[fields[0]] = (fields[1], names, parents)
            self.common.update(clean(name) for name in names if name == name.lower())
        for line in (files / "index.noun").read_text(encoding="latin-1").splitlines():
            if not line.startswith("  "):
                fields = line.split()
                self.senses.setdefault(clean(fields[0]), fields[-int(fields[2]) :])
        for line in (files / "noun.exc").read_text(encoding="latin-1").splitlines():
            plural, *singulars = line.split()
            self.singular[plural] = singulars[0]
            self.plurals.setdefault(singulars[0], []).append(plural)

    def sense(self, name: str, domain: str = "") -> str | None:
        """The first synset of a name, in any number, that can be seen; None if there is none.

        Args:
            name: A cleaned name.
            domain: A key of `DOMAINS`, looked in first.
        """
        offsets = self.senses.get(name) or self.senses.get(self.to_singular(name) or "", [])
        for files in (DOMAINS.get(domain, ()), SEEN):
            for offset in offsets:
                if self.synsets[offset][0] in files:
                    return offset
        return None

    def synonyms(self, name: str, domain: str = "") -> list[str]:
        """The words of `sense`; empty if there is none."""
        offset = self.sense(name, domain)
        return [clean(w) for w in self.synsets[offset][1]] if offset else []

    def is_thing(self, name: str) -> bool:
        """Whether a name is a common noun for something that can be seen."""
        known = name in self.common or self.to_singular(name) in self.common
        return known and self.sense(name) is not None

    def to_singular(self, name: str) -> str | None:
        """The singular of a name whose last word is a plural, else None."""
        *before, last = name.split() or [""]
        found = self.singular.get(last)
        if found is None and last not in self.common:
            for end, instead in (("ies", "y"), ("men", "man"), ("s", ""), ("es", "")):
                if last.endswith(end) and last.removesuffix(end) + instead in self.common:
                    found = last.removesuffix(end) + instead
                    break
        return " ".join([*before, found]) if found else None

    def to_plurals(self, name: str) -> list[str]:
        """The plurals of a name whose last word WordNet lists as a common noun."""
        *before, last = name.split() or [""]
        if last not in self.common or last in NO_PLURAL or self.to_singular(name):
            return []
        irregular = self.plurals.get(last, [])
        if irregular and not irregular[0].endswith(LATIN):
            endings = irregular
        elif last.endswith("man") and last not in PLURAL_MANS:
            endings = [last.removesuffix("man") + "men"]
        elif last.endswith("y") and last[-2:-1] not in "aeiou":
            endings = [last[:-1] + "ies"]
        elif last.endswith(("ss", "us", "x", "ch", "sh")) or last in PLURAL_OES:
            endings = [last + "es"]
        else:
            endings = [] if last.endswith("s") else [last + "s"]
        return [" ".join([*before, ending]) for ending in dict.fromkeys([*endings, *irregular])]

    def numbers(self, name: str) -> list[str]:
        """Rule 3: a name, and the same in the other number."""
        if HEAD_FIRST.search(name):
            return [name]
        singular = self.to_singular(name)
        return [name, *([singular] if singular else self.to_plurals(name))]

    def ancestors(self, offset: str) -> list[str]:
        """All hypernyms of a synset, nearest first."""
        found = list(self.synsets[offset][2])
        for parent in found:
            found += [p for p in self.synsets[parent][2] if p not in found]
        return found


@cache
def wordnet(folder: Path) -> WordNet:
    """WordNet, read once."""
    return WordNet(folder)


def plain(name: str, net: WordNet) -> str | None:
    """Rule 2: a name without its leading plain words; None if nothing may be left out."""
    group = GROUPS.match(name)
    if group:
        return group["thing"]
    parts = name.split()
    start = 0
    while start < len(parts) - 1 and parts[start] in PLAIN:
        start += 1
    rest = " ".join(parts[start:])
    return rest if start and name not in net.senses and net.is_thing(rest) else None


def accepted(label: str, net: WordNet, domain: str = "", also: tuple[str, ...] = ()) -> list[str]:
    """All accepted names of a cleaned label, the label first.

    Args:
        label: The source's own label.
        net: WordNet.
        domain: The source's group, a key of `DOMAINS`.
        also: Further names that the source itself gives.
    """
    names = [label, *also]
    for name in names:  # which grows: "head of red lettuce", "red lettuce", "lettuce"
        names += [shorter for shorter in [plain(name, net)] if shorter]
    numbers = [variant for name in names for variant in net.numbers(name)]
    return list(dict.fromkeys([*names, *numbers, *net.synonyms(label, domain)]))
