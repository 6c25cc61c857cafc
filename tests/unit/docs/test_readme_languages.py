"""README.ko.md says what README.md says: the same commands, numbers and links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\]\(([^)\s]+)\)|\b(?:src|href)=\"([^\"]+)\"")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*%?")


def sections(name: str) -> list[str]:
    """A page cut before each heading."""
    text = (ROOT / name).read_text(encoding="utf-8")
    outside = BLOCK.sub(lambda block: block.group().replace("\n#", "\n\0#"), text)
    return [part.replace("\0", "") for part in re.split(r"^(?=#+ )", outside, flags=re.M)]


def links(text: str) -> list[str]:
    """What a section links to, whatever the language of it and the order of the sentence."""
    found = [a or b for a, b in LINK.findall(BLOCK.sub("", text))]
    return sorted(re.sub(r"README(\.ko)?\.md$|/lecture/(en|ko)/", "", place) for place in found)


def numbers(text: str) -> list[str]:
    """The numbers of a section in their order, without those of code, addresses and tags."""
    for kind in (BLOCK, INLINE, re.compile(r"<[^>]*>"), re.compile(r"\]\([^)]*\)")):
        text = kind.sub(" ", text)
    return NUMBER.findall(text)


ENGLISH, KOREAN = sections("README.md"), sections("README.ko.md")


def test_there_are_as_many_sections() -> None:
    assert len(ENGLISH) == len(KOREAN) > 4


@pytest.mark.parametrize(("english", "korean"), [*zip(ENGLISH, KOREAN, strict=False)])
def test_a_section_has_the_same_code_numbers_and_links(english: str, korean: str) -> None:
    assert BLOCK.findall(korean) == BLOCK.findall(english)
    assert sorted(INLINE.findall(BLOCK.sub("", korean))) == sorted(
        INLINE.findall(BLOCK.sub("", english))
    )
    assert numbers(korean) == numbers(english)
    assert links(korean) == links(english)


def test_each_leads_to_the_other() -> None:
    assert "[한국어](README.ko.md)" in ENGLISH[1]
    assert "[English](README.md)" in KOREAN[1]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("7 of 24", "8 of 24"), ("in 1.8x", "in 1.9x"), ("23% and 52%", "52% and 23%")],
)
def test_numbers_that_differ_are_seen(right: str, wrong: str) -> None:
    assert numbers(right) != numbers(wrong)


def test_what_is_compared() -> None:
    text = 'See [a1](docs/x2.md#y) <img src="z3.jpg" width="90"> at `n 4`: 5.5x.\n'
    assert numbers(text) == ["1", "5.5"]
    assert links(text) == ["docs/x2.md#y", "z3.jpg"]
