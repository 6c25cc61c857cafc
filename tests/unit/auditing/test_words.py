"""Articles, numbers and typos, and whether the lists keep their own rules."""

from __future__ import annotations

from collections import Counter

import pytest

from isthmus.auditing.measures.words import (
    digits_to_words,
    dropped_letters,
    in_the_case_of,
    indefinite_article,
    lookup_form,
    number_in_words,
    transpositions,
    word_lists,
    words_to_digits,
)
from isthmus.errors import InputError


@pytest.mark.parametrize(
    ("article", "words"),
    [
        ("a", "cat Dog unicorn university European one USB ewe 7 10 800 yacht u-boat DVD FIFA"),
        ("an", "apple Owl hour honest heirloom umbrella 8 11 18 80 89 x-ray SUV LCD MRI uncle"),
    ],
)
def test_the_article_follows_the_sound(article: str, words: str) -> None:
    assert {word: indefinite_article(word) for word in words.split()} == dict.fromkeys(
        words.split(), article
    )
    assert indefinite_article("hourglass on a table") == "an"  # the first word decides
    assert indefinite_article("...") == "a"


def test_numbers_round_trip() -> None:
    for number in range(101):
        word = digits_to_words(str(number))
        assert word == number_in_words(number)
        assert not any(letter.isdigit() for letter in word)
        assert words_to_digits(word) == str(number)
        assert words_to_digits(word.replace("-", " ").title()) == str(number)
    assert len({number_in_words(number) for number in range(101)}) == 101
    assert [number_in_words(n) for n in (0, 13, 40, 99)] == [
        "zero",
        "thirteen",
        "forty",
        "ninety-nine",
    ]
    with pytest.raises(InputError, match="101"):
        number_in_words(101)


@pytest.mark.parametrize("text", ["747", "4x4", "2.5", "007", "20-30", "mp3", "1,000", "7-Up"])
def test_other_digits_stay(text: str) -> None:
    assert digits_to_words(text) == text


@pytest.mark.parametrize("text", ["seven hundred", "twenty-first", "someone", "two-door", "often"])
def test_other_words_stay(text: str) -> None:
    assert words_to_digits(text) == text


def one_transposition(old: str, new: str) -> bool:
    apart = [i for i in range(len(old)) if old[i] != new[i]]
    return (
        len(old) == len(new)
        and len(apart) == 2
        and apart[1] == apart[0] + 1
        and old[apart[0]] == new[apart[1]]
        and old[apart[1]] == new[apart[0]]
    )


def one_drop(old: str, new: str) -> bool:
    return len(new) == len(old) - 1 and any(
        new == old[:i] + old[i + 1 :] for i in range(1, len(old))
    )


@pytest.mark.parametrize("label", ["bird", "great white shark", "cat", "ox", "aaaa", "Lay's chips"])
def test_typos_are_one_slip_that_spares_first_letters_and_short_words(label: str) -> None:
    for found, is_one in (
        (transpositions(label), one_transposition),
        (dropped_letters(label), one_drop),
    ):
        for new in found:
            assert is_one(label, new)
            pairs = zip(label.split(), new.split(), strict=True)  # spaces stay
            changed = [(old, other) for old, other in pairs if old != other]
            assert len(changed) == 1
            assert changed[0][0][0] == changed[0][1][0]
            assert len(changed[0][0]) >= 4


def test_all_typos_there_are() -> None:
    assert transpositions("bird fly") == ["brid fly", "bidr fly"]
    assert dropped_letters("bird fly") == ["brd fly", "bid fly", "bir fly"]
    assert transpositions("aaaa") == []
    assert transpositions("cat") == dropped_letters("cat") == []


def test_the_case_of_the_original() -> None:
    assert [in_the_case_of(old, "tv set") for old in ("Telly", "TELLY", "telly", "A")] == [
        "Tv set",
        "TV SET",
        "tv set",
        "Tv set",
    ]


def test_lists_keep_their_rules() -> None:
    lists = word_lists()
    for table in (lists["synonyms"], lists["korean"]["names"]):
        assert all(name == lookup_form(name) for name in table)
    for name, others in lists["synonyms"].items():
        assert others
        assert name not in [lookup_form(other) for other in others]
        assert len(set(others)) == len(others)
    for words in (lists["distractors"]["nouns"], lists["random"]["words"]):
        assert max(Counter(words).values()) == 1
    assert not set(lists["articles"]["a"]) & set(lists["articles"]["an"])
    assert all(template.count("{}") == 1 for template in lists["korean"]["templates"])
    latin = [name for name in lists["korean"]["names"].values() if name.isascii()]
    assert latin == []
