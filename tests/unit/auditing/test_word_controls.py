"""Distractors are none of the labels, and random templates say nothing about them."""

from __future__ import annotations

import pytest

from isthmus.auditing.measures.word_controls import (
    distractors,
    random_word_templates,
    template_lengths,
)
from isthmus.auditing.measures.words import lookup_form, word_lists
from isthmus.classification.templates import prompts_of, template_sets
from isthmus.errors import InputError

NOUNS = word_lists()["distractors"]["nouns"]


def everything(labels: list[str]) -> set[str]:
    """All distractors that there are."""
    with pytest.raises(InputError, match=r"expected 0 to \d+") as told:
        distractors(labels, 10_000)
    most = int(str(told.value).split("expected 0 to ")[1].split(",")[0])
    return set(distractors(labels, most))


def plural(noun: str) -> str:
    if noun.endswith("phy"):
        return f"{noun[:-1]}ies"
    if noun.endswith("knife"):
        return f"{noun[:-2]}ves"
    return f"{noun}{'es' if noun.endswith(('s', 'sh', 'ch', 'x')) else 's'}"


def test_no_distractor_is_a_label_or_a_synonym_of_one() -> None:
    synonyms = word_lists()["synonyms"]
    for noun in NOUNS:
        assert noun not in everything([noun.title()])
        assert noun not in everything([plural(noun)])
    for label, others in synonyms.items():
        found = everything([label])
        assert not found & {label, *map(lookup_form, others)}
    for noun in set(NOUNS) & set(synonyms):  # by its synonym alone
        for other in synonyms[noun]:
            assert noun not in everything([other])
    assert "umbrella" not in everything(["brolly"])  # the list has it the other way alone
    assert "lawn mower" not in everything(["cordless lawn-mower"])
    assert "clothes peg" in everything(["cat"])
    assert everything(["cat"]) == set(NOUNS)


def test_distractors_are_drawn_from_a_seed() -> None:
    labels = ["cat", "kettle"]
    assert distractors(labels, 9, seed=4) == distractors(labels, 9, seed=4)
    assert distractors(labels, 5, seed=4) == distractors(labels, 9, seed=4)[:5]
    assert distractors(labels, 9, seed=4) != distractors(labels, 9, seed=5)
    assert len(set(distractors(labels, 100))) == 100
    assert distractors(labels, 0) == ()


def test_random_templates_have_the_length_asked_for() -> None:
    given = template_sets()["imagenet-80"]["templates"]
    lengths = template_lengths(given)
    assert lengths[:2] == tuple(len(text.replace("{}.", "").split()) for text in given[:2])
    assert template_lengths(["a close-up, of {}!", '"{}" sign', "{}-like", "{}"]) == (3, 1, 1, 0)
    made = random_word_templates(80, lengths, seed=2)
    assert template_lengths(made) == lengths
    assert len(set(made)) == 80
    assert made == random_word_templates(80, lengths, seed=2)
    assert made != random_word_templates(80, lengths, seed=3)
    assert len({text.split().index("{}") for text in made if not text.endswith("{}.")}) > 1
    prompts_of(["cat"], made)  # each has a place for the label
    assert not [text for text in made if "photo" in text or "drawing" in text]


def test_random_templates_hold_no_label() -> None:
    words = {"kettle", "umbrella", "summer"}
    drawn = " ".join(random_word_templates(100, 8, seed=0))
    assert words <= set(drawn.replace(".", "").split())
    without = " ".join(random_word_templates(100, 8, seed=0, labels=["Kettles", *words]))
    assert not words & set(without.replace(".", "").split())


def test_bad_input() -> None:
    with pytest.raises(InputError, match="at least 1 in each"):
        random_word_templates(2, [4, 0])
    with pytest.raises(InputError, match="at most"):
        random_word_templates(10_000, 2)
