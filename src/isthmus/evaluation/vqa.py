"""Answers made alike as the official VQA scorer does it. Pure: no torch.

Facts of the published evaluation (Antol et al. 2015, https://visualqa.org/evaluation.html and
GT-Vision-Lab/VQA, `vqaEval.py`), its oddities kept, since published numbers have them: punctuation
is removed where a space stands beside it or a number has a thousands comma, and becomes a space
elsewhere; a full stop goes unless a digit follows; the contraction of "somebody had" loses its
apostrophe.
"""

from __future__ import annotations

import re

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset(("a", "an", "the"))
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
WORDS = {word: str(i) for i, word in enumerate(NUMBERS)} | {"none": "0"}
RIGHT = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""
"""Contractions that are mended when one of their apostrophes is missing."""
MENDED = {
    word[:i] + word[i + 1 :]: word
    for word in RIGHT.split()
    for i, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}

_THOUSANDS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")


def normalised(answer: str) -> str:
    """An answer as the official VQA scorer compares it.

    Example:
        >>> normalised("The two dogs.")
        '2 dogs'
    """
    text = " ".join(answer.split())
    found = text
    for mark in PUNCTUATION:
        beside = f"{mark} " in text or f" {mark}" in text
        gone = beside or _THOUSANDS.search(text) is not None
        found = found.replace(mark, "" if gone else " ")
    words = [WORDS.get(w, w) for w in _FULL_STOP.sub("", found).lower().split()]
    return " ".join(MENDED.get(w, w) for w in words if w not in ARTICLES)
