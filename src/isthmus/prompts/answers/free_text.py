"""Free text as an answer, and the official VQA evaluation's spelling of it."""

from __future__ import annotations

import re
import unicodedata

from isthmus.prompts.answers.numerals import ENGLISH
from isthmus.prompts.answers.statements import cleaned, first_sentence, statements

_QUOTES = "\"'“”‘’«»「」『』`"  # noqa: RUF001
_ARTICLE = re.compile(r"^(?:an?|the)\s+(?=\S)", re.IGNORECASE)
_COPULA = re.compile(r"(?<=[가-힣A-Za-z0-9\"'”’」])(?:입니다|이에요|예요)$")  # noqa: RUF001


def bare(text: str) -> str:
    """Without quotes, a final full stop, an article at the beginning and a Korean copula."""
    text = text.strip().strip(_QUOTES).strip()
    text = re.sub(r"(?<![.])[.。,;:]+$", "", text).strip()
    text = _COPULA.sub("", text).strip().strip(_QUOTES).strip()
    return _ARTICLE.sub("", text, count=1).strip()


def text_in(text: str, after: tuple[str, ...] | None) -> str | None:
    """The first sentence after a marker, or of the text; None if there is none."""
    text = cleaned(text)
    marked = statements(text, after)
    for statement in marked:
        said = bare(statement)
        if said:
            return said
    return None if marked else bare(first_sentence(text)) or None


def same_words(got: str, expected: str) -> bool:
    """Whether two texts are the same but for case, articles, punctuation and white space."""
    return _folded(got) == _folded(expected)


def _folded(text: str) -> str:
    text = bare(unicodedata.normalize("NFKC", text)).casefold().rstrip(".!? ")
    text = re.sub(r"[\s_-]+", " ", text)
    return re.sub(r"\b(?:an?|the)\s+", "", text).strip()


_NUMBER_WORDS = {w: str(i) for w, i in ENGLISH.items() if i <= 10} | {"none": "0"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the official code hands re.UNICODE, which is 32, as the count

# Words as the official table spells them; each stands for itself without some of its apostrophes.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
    mightn't've mustn't must've needn't not've o'clock oughtn't shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
    won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""


def _contractions() -> dict[str, str]:
    table = {"somebody'd": "somebodyd", "twas": "'twas"}  # the first is the table's own quirk
    table |= dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at")
    for word in _CONTRACTED.split():
        marks = [i for i, c in enumerate(word) if c == "'"]
        dropped = [{m} for m in marks] if len(marks) > 1 else [set(marks)]
        for drop in dropped:
            table["".join(c for i, c in enumerate(word) if i not in drop)] = word
    return table


_CONTRACTIONS = _contractions()


def vqa_normalize(answer: str) -> str:
    """An answer in the spelling in which the official VQA evaluation compares answers.

    Goyal et al. 2017; github.com/GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEval.py: punctuation,
    lower case, number words, articles and contractions, in this order, quirks included.

    Example:
        >>> vqa_normalize("The two dogs, dont!")
        "2 dogs don't"
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    has_comma_number = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space or has_comma_number else " ")
    out = _PERIOD.sub("", out, count=_MOST_PERIODS)
    words = [_NUMBER_WORDS.get(w, w) for w in out.lower().split()]
    return " ".join(_CONTRACTIONS.get(w, w) for w in words if w not in ("a", "an", "the"))
