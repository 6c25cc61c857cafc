"""Words and letters: articles, numbers, slips of the finger, and the lists of `words.toml`.

Pure but for that file, which is part of the package.
"""

from __future__ import annotations

import functools
import re
import tomllib
from importlib import resources
from typing import Any

from isthmus.errors import InputError

# fmt: off
_BELOW_20 = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
]
# fmt: on
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_DIGITS = re.compile(r"(?<![\w.,-])(?:100|[1-9]?\d)(?![\w-]|[.,]\d)")
"""A whole number from 0 to 100 that stands alone: not in "4x4", "2.5", "007" or "20-30"."""
_WORDS = re.compile(
    rf"(?<![\w-])(?:one hundred|(?:{'|'.join(_TENS)})(?:[ -](?:{'|'.join(_BELOW_20[1:10])}))?"
    rf"|{'|'.join(sorted(_BELOW_20, key=len, reverse=True))})(?![\w-]| hundred| thousand)",
    re.IGNORECASE,
)


@functools.cache
def word_lists() -> dict[str, Any]:
    """The lists of `words.toml`.

    Example:
        >>> word_lists()["synonyms"]["sofa"]
        ['couch', 'settee']
    """
    path = resources.files("isthmus") / "auditing" / "measures" / "words.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def lookup_form(label: str) -> str:
    """A label as it stands in `words.toml`: lower case, single spaces for hyphens and underscores.

    Example:
        >>> lookup_form("Passion-Fruit")
        'passion fruit'
    """
    return " ".join(re.sub(r"[-_]", " ", label).casefold().split())


def in_the_case_of(original: str, text: str) -> str:
    """A text in capitals, or with a capital first letter, if the original is so.

    Example:
        >>> in_the_case_of("Sofa", "couch"), in_the_case_of("TV SET", "television")
        ('Couch', 'TELEVISION')
    """
    if original.isupper() and len(original) > 1:
        return text.upper()
    return text[:1].upper() + text[1:] if original[:1].isupper() else text


# --- Articles ---------------------------------------------------------------------------------


def indefinite_article(text: str) -> str:
    """The indefinite article of a text, by how its first word sounds.

    Words that sound unlike their first letter are listed in `words.toml`. Of numbers, 8, 11, 18
    and 80 to 89 begin with a vowel. A single letter, and capitals without a vowel among them, are
    read by the letter's name.

    Example:
        >>> [indefinite_article(word) for word in ("apple", "hour", "unicorn", "8", "LCD")]
        ['an', 'an', 'a', 'an', 'an']
    """
    found = re.search(r"[^\W_]+", text)
    if found is None:
        return "a"
    word = found[0]
    listed = word_lists()["articles"]
    for article in ("a", "an"):
        if word.casefold() in listed[article]:
            return article
    if digits := re.match(r"\d+", word):
        vowel = digits[0] in ("8", "11", "18") or re.fullmatch(r"8\d", digits[0]) is not None
    elif len(word) == 1 or (word.isupper() and not set(word) & set("AEIOUY")):
        vowel = word[0].casefold() in "aefhilmnorsx"
    else:
        vowel = word[0].casefold() in "aeiou"
    return "an" if vowel else "a"


# --- Numbers ----------------------------------------------------------------------------------


def number_in_words(number: int) -> str:
    """A number from 0 to 100 in words.

    Raises:
        InputError: If it is another.

    Example:
        >>> number_in_words(42)
        'forty-two'
    """
    if not 0 <= number <= 100:
        raise InputError(f"got the number {number}: expected 0 to 100")
    if number == 100:
        return "one hundred"
    if number < 20:
        return _BELOW_20[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_BELOW_20[ones]}" if ones else "")


@functools.cache
def _numbers() -> dict[str, str]:
    """Words to digits, hyphens as spaces."""
    return {number_in_words(n).replace("-", " "): str(n) for n in range(101)}


def digits_to_words(text: str) -> str:
    """A text with its whole numbers from 0 to 100 in words.

    Example:
        >>> digits_to_words("platform 7"), digits_to_words("a 4x4"), digits_to_words("747")
        ('platform seven', 'a 4x4', '747')
    """
    return _DIGITS.sub(lambda found: number_in_words(int(found[0])), text)


def words_to_digits(text: str) -> str:
    """The reverse of `digits_to_words`.

    Example:
        >>> words_to_digits("Forty-two roses"), words_to_digits("seven hundred")
        ('42 roses', 'seven hundred')
    """
    return _WORDS.sub(lambda found: _numbers()[lookup_form(found[0])], text)


# --- Slips of the finger ----------------------------------------------------------------------


def transpositions(text: str) -> list[str]:
    """All texts in which two unlike neighbouring letters of one word have changed places.

    A word's first letter stays, and so do words of fewer than four letters.

    Example:
        >>> transpositions("a bird")
        ['a brid', 'a bidr']
    """
    return [
        text[:i] + text[i + 1] + text[i] + text[i + 2 :]
        for start, end in _long_words(text)
        for i in range(start + 1, end - 1)
        if text[i].casefold() != text[i + 1].casefold()
    ]


def dropped_letters(text: str) -> list[str]:
    """All texts from which one letter of one word is missing.

    A word's first letter stays, and so do words of fewer than four letters.

    Example:
        >>> dropped_letters("a bird")
        ['a brd', 'a bid', 'a bir']
    """
    return [
        text[:i] + text[i + 1 :] for start, end in _long_words(text) for i in range(start + 1, end)
    ]


def _long_words(text: str) -> list[tuple[int, int]]:
    """Where words of four letters or more begin and end."""
    return [found.span() for found in re.finditer(r"[^\W\d_]{4,}", text)]
