"""Labels, and yes or no, in what a model wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence

from isthmus.prompts.answers.statements import (
    cleaned,
    first_sentence,
    negated,
    spelled,
    statements,
)

# What may follow a Korean noun and leave it the same noun.
JOSA = (
    "입니다|이에요|예요|이었습니다|였습니다|이다|이고|이며|이라고|라고|이라는|라는|인데|인|에서|에게|으로|"
    "로|에는|에|은|는|이|가|을|를|의|와|과|이랑|랑|도|만|뿐|까지|부터|처럼|보다|들|다|네요|이네요|임|고"
)
_AFTER_HANGUL = rf"(?=(?:{JOSA}){{0,3}}(?![가-힣]))"


def label_pattern(label: str) -> str:
    """A regular expression for a label as a whole word, in the plural, with Korean particles."""
    name = spelled(label).strip()
    words = [re.escape(w) for w in re.split(r"[\s_-]+", name) if w]
    body = r"[\s_-]+".join(words)
    last = name[-1:]
    if "가" <= last <= "힣":
        return rf"(?<![가-힣A-Za-z0-9]){body}{_AFTER_HANGUL}"
    if not last.isalnum():
        return rf"(?<![A-Za-z0-9]){body}"
    plural = ""
    if last.isalpha() and len(name) > 2:
        if re.search(r"[^aeiou]y$", name, re.IGNORECASE):
            body, plural = body[:-1], "(?:y|ies)"
        else:
            plural = "(?:es|s)?"
    return rf"(?<![A-Za-z0-9]){body}{plural}(?![A-Za-z0-9])"


def mentions(text: str, labels: Sequence[str]) -> list[tuple[int, int, int]]:
    """Where labels are named, as (start, end, index of the label), in the text's order.

    A label within a longer one ("red" in "dark red") is not named; nor is one that is negated.
    """
    found: list[tuple[int, int, int]] = []
    for index, label in enumerate(labels):
        if label.strip():
            pattern = re.compile(label_pattern(label), re.IGNORECASE)
            found += [(m.start(), m.end(), index) for m in pattern.finditer(text)]
    found.sort(key=lambda f: (f[0], f[0] - f[1]))
    longest: list[tuple[int, int, int]] = []
    for one in sorted(found, key=lambda f: f[0] - f[1]):
        if all(one[1] <= s or one[0] >= e or (s, e) == one[:2] for s, e, _ in longest):
            longest.append(one)
    return sorted(f for f in longest if not negated(text, f[0], f[1]))


_OTHER = re.compile(r"[\s,]*(?:\bor\b|\band\b|/|또는|혹은|이나|와|과|하고|,)[\s,]*(?:an?\s|the\s)?")


def first_mention(text: str, labels: Sequence[str]) -> int | None:
    """The label that a statement names first; None if it names none, or several as equals."""
    found = mentions(text, labels)
    if not found:
        return None
    _, end, index = found[0]
    if len(found) > 1 and found[1][2] != index and _OTHER.fullmatch(text[end : found[1][0]]):
        return None
    return index


def only_mention(text: str, labels: Sequence[str]) -> int | None:
    """The one label that a text names; also where its first sentence is nothing but a label."""
    begin = first_sentence(text).strip(" \t\n.,!\"'()[]")
    for index, label in enumerate(labels):
        if re.fullmatch(rf"(?:an?\s|the\s)?{label_pattern(label)}(?:{JOSA})*", begin, re.I):
            return index
    named = {index for _, _, index in mentions(text, labels)}
    return named.pop() if len(named) == 1 else None


def label_in(text: str, labels: Sequence[str], after: tuple[str, ...] | None) -> str | None:
    """The label that a text states; None if there is none, or more than one."""
    text = cleaned(text)
    marked = statements(text, after)
    for statement in marked:
        index = first_mention(statement, labels)
        if index is not None:
            return labels[index]
    index = None if marked else only_mention(text, labels)
    return None if index is None else labels[index]


_YES = r"yes|yeah|yep|yup|true"
_NO = r"no|nope|nah|false"
_END = r"(?=\s*(?:[.,;:!?)\]\"'—-]|$|\n))"
_PLAIN_YES = re.compile(rf"\b(?:{_YES})\b", re.IGNORECASE)
# "no" is mostly a determiner ("no cats"): it answers only before a pause or a new clause
_CLAUSE = (
    r"(?=\s+(?:it|he|she|they|there|the|this|that|these|those|you|we|i|because|since|as|not)\b)"
)
_PLAIN_NO = re.compile(rf"\b(?:{_NO})\b(?!-)(?:{_END}|{_CLAUSE})", re.IGNORECASE)
_ECHO = re.compile(
    r"neither\s+yes\s+nor\s+no\b|\(?\b(?:yes|true|no|false)\s*(?:or|/|and)\s*(?:yes|true|no|false)\b\)?"
    r"|\(?(?:예|네)\s*(?:또는|혹은|이나|/)\s*(?:아니요|아니오|아뇨)\)?",
    re.IGNORECASE,
)
_KO_NO = re.compile(
    r"아니요|아니오|아뇨|아닙니다|아니다(?![가-힣])|아니에요|아녜요|아님(?![가-힣])"
    r"|(?:그렇지|맞지|옳지)\s?(?:않|못)|거짓(?![말을이])|틀렸습니다|틀립니다"
)
_KO_YES = re.compile(
    r"(?<![가-힣])(?:네|예|응)(?=\s*(?:[.,!?)\]\"']|$|\n)|입니다|이다|이에요|예요)"
    r"|(?<![가-힣])(?:그렇습니다|그렇다(?!면|고|가)|그래요|맞습니다|맞아요|맞다(?!면|고|가)|옳다(?!면|고)"
    r"|옳습니다|참입니다|참이다|참(?=\s*(?:[.,!]|$)))"
)


def _polarities(text: str) -> list[tuple[int, str, bool]]:
    """Every yes and no, as (where, which, whether it is negated), in the text's order."""
    found: list[tuple[int, str, bool]] = []
    for pattern, polarity in (
        (_PLAIN_YES, "yes"),
        (_PLAIN_NO, "no"),
        (_KO_YES, "yes"),
        (_KO_NO, "no"),
    ):
        for m in pattern.finditer(text):
            if polarity == "no" and pattern is _KO_NO and _negates_a_noun(text, m.start()):
                continue
            found.append((m.start(), polarity, negated(text, m.start(), m.end())))
    return sorted(found)


def _negates_a_noun(text: str, start: int) -> bool:
    """Whether it says what something is not, as in "고양이가 아닙니다"."""
    return bool(re.search(r"[가-힣](?:이|가|은|는|도)\s?$", text[:start]))


def _settled(polarity: str, is_negated: bool) -> str:
    """Not yes is no."""
    if not is_negated:
        return polarity
    return "no" if polarity == "yes" else "yes"


def yes_no_in(text: str, after: tuple[str, ...] | None) -> str | None:
    """The yes or no that a text states; None if it states neither."""
    text = cleaned(text)
    marked = statements(text, after)
    for statement in marked:
        said = _ECHO.sub(" ", statement)
        if said.strip(" .,!") != statement.strip(" .,!") and not _polarities(said):
            continue
        found = _polarities(said)
        # after a marker a bare "no" needs no pause, unless it begins another phrase
        bare = re.match(
            r"\W*no\b(?!\s+(?:longer|one|more|matter|doubt|way|idea|such|other|clear)\b)(?!-)",
            said,
            re.IGNORECASE,
        )
        if bare and (not found or found[0][0] >= bare.end() - 2):
            return "no"
        if found:
            return _settled(*found[0][1:])
    if marked:
        return None
    text = _ECHO.sub(" ", text)
    found = _polarities(text)
    if not found:
        return None
    if not text[: found[0][0]].strip(" \t\n\"'([*:-"):
        return _settled(*found[0][1:])
    settled = {_settled(polarity, is_negated) for _, polarity, is_negated in found}
    return settled.pop() if len(settled) == 1 else None
