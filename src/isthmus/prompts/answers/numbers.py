"""Numbers in what a model wrote."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from isthmus.prompts.answers.expressions import expressions
from isthmus.prompts.answers.numerals import SCALES, english, korean
from isthmus.prompts.answers.statements import cleaned, negated, statements

_MOST_DIGITS = 400
"""Longer numbers are nobody's answer, and 1e999999999 would fill the memory."""

_PLAIN = (
    r"(?:(?>\d{1,3}(?:,\d{3})+(?![\d]|,\d)|\d{1,3}(?:['\u2019_]\d{3})+(?![\w])"
    r"|\d{1,2}(?:,\d{2})+,\d{3}(?![\d]|,\d)"
    r"|\d{1,3}(?:[ \u00a0\u2009\u202f]\d{3})+(?![\d]|-\w)|\d+)(?:\.\d++)?|\.\d++)"
)
_GROUPED = r"(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3})(?!\d|,\d)"
"""Commas between thousands, or as in India; elsewhere they part numbers, or are decimal."""
_KOREAN_UNITS = {"천": 10**3, "백": 10**2, "십": 10, "만": 10**4, "억": 10**8, "조": 10**12}
_TOKEN = re.compile(
    rf"""
    (?<![A-Za-z0-9_^])(?<![_^]\{{)(?<!\d[.,:/'])(?<![A-Za-z]-)(?<![A-Za-z]\.)
    (?P<sign>(?:(?<![\w)\]%])[-+]|(?<==\s)-\s|(?<=is\s)-\s)(?=[$€£¥₩]?\s?\.?\d))?
    (?P<currency>(?:US)?[$€£¥₩]\s?(?P<inner>-)?)?
    (?:
        (?P<composite>\d+(?:[:/.]\d+){{2,}}|\d+:\d+|\d{{4}}-\d{{1,2}}-\d{{1,2}}
            |(?!{_GROUPED})\d++(?:,\d++)+|\d+\.\d+,\d+|\d+['\u2019]\d{{1,2}})(?![\d])
        |(?P<parts>\d+)\s?분의\s?(?P<of>\d+)
        |(?P<korean>(?:{_PLAIN}\s?[천백십]?[만억조]\s?)+(?!큼)(?:{_PLAIN}[천백십]?)?(?:{_PLAIN})?
            |{_PLAIN}\s?[천백십](?![가-힣])|{_PLAIN}[천백십](?=\s?(?:원|명|개|달러|마리|년)))
        |(?P<whole>\d+)\s(?P<above>\d+)/(?P<below>\d++)(?![/\w]|\.\d)
        |(?P<number>{_PLAIN})
        (?:(?P<exponent>[eE][-+]?\d{{1,9}}(?!\w|\.\d)
            |\s*[x\u00d7*·]\s*10\s?\^\s?\{{?\s*[-+]?\d{{1,9}}\s*\}}?)
        |\s?/\s?(?P<denominator>{_PLAIN})(?!/|\.\d)
        |\s?\^\s?\{{?\s*(?P<power>[-+]?\d{{1,3}})\s*\}}?
        |\s?(?P<scale>{"|".join(SCALES)})s?\b
        |(?P<letter>[kKMB])(?![A-Za-z]))?
    )
    """,
    re.VERBOSE,
)
_OPERATOR = re.compile(
    r"\s*/?(?:(?:[A-Za-z가-힣%°]+\.?\s+){0,3}?|[A-Za-z가-힣%°]+\s*)\)?\s*"
    r"(?P<op>[-+*/\u00d7÷=≈x]|\b(?:plus|minus|times|equals|is|gives|makes|divided by)\b)"
    r"\s*(?:[A-Za-z]{1,12}\s*)?\(?\s*",
    re.IGNORECASE,
)
_EQUALS = {"=", "≈", "equals", "is", "gives", "makes"}
_EITHER = re.compile(
    r"\s*[A-Za-z가-힣%]{0,12}\s*(?:\bor\b|또는|혹은|이나|~|\bto\b)\s*", re.IGNORECASE
)
# "5 feet 6 inches", "2시간 30분": one quantity in two numbers
_GREATER = re.compile(
    r"\s*(?:feet|foot|ft|hours?|hrs?|minutes?|mins?|dollars?|pounds?|lbs?|years?|weeks?|days?"
    r"|met(?:er|re)s?|시간|분|년|달러|미터)\s*(?:,\s*)?(?:and\s+)?",
    re.IGNORECASE,
)
_LESSER = re.compile(
    r"\s*(?:inch|in\b|cm\b|centi|minute|min|second|sec|cent|ounce|oz|month|day|hour|분|초|개월|센트"
    r"|센티)",
    re.IGNORECASE,
)
_MINUS = re.compile(r"(?:\b(?:negative|minus)\s+|(?:마이너스|영하)\s?)(?=[\d.])", re.IGNORECASE)
_BOTH = re.compile(r"\s*(?:,\s*(?:and\b)?|\band\b|와|과)\s*", re.IGNORECASE)
_STEP = re.compile(
    r"(?:\b(?:steps?|questions?|options?|cases?|equations?|figures?|tables?|examples?|problems?)"
    r"|단계|문제)\s*#?\s*$",
    re.IGNORECASE,
)
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b|\s?번째|\s?단계")


@dataclass(frozen=True)
class _Found:
    """A number in a text; its value is None where it is something else, such as a time.

    An expression, such as 2π, would have to be worked out: nothing of it is read.
    """

    start: int
    end: int
    value: Fraction | None
    is_expression: bool = False


def _digits(text: str) -> list[_Found]:
    found: list[_Found] = []
    at = 0
    for start, end in [*expressions(text), (len(text), len(text))]:
        found += [_Found(m.start(), m.end(), _value(m)) for m in _TOKEN.finditer(text, at, start)]
        if start < end:
            found.append(_Found(start, end, None, is_expression=True))
        at = end
    return found


def _value(match: re.Match[str]) -> Fraction | None:
    if match["composite"] or len(match[0]) > _MOST_DIGITS:
        return None
    sign = -1 if "-" in (match["sign"] or "") or match["inner"] else 1
    if match["parts"]:
        parts = int(match["parts"])
        return sign * Fraction(int(match["of"]), parts) if parts else None
    if match["korean"]:
        return sign * _korean_value(match["korean"])
    if match["whole"]:
        below = int(match["below"])
        return (
            sign * (int(match["whole"]) + Fraction(int(match["above"]), below)) if below else None
        )
    value = _plain(match["number"])
    if match["exponent"]:
        power = int(re.sub(r"[^-\d]", "", re.split(r"[eE^]", match["exponent"])[-1]))
        if abs(power) > _MOST_DIGITS:
            return None
        value *= Fraction(10) ** power
    elif match["denominator"]:
        divisor = _plain(match["denominator"])
        if not divisor:
            return None
        value /= divisor
    elif match["power"]:
        if value != 10 or abs(int(match["power"])) > _MOST_DIGITS:
            return None  # 2^10 is to be worked out, not read
        value = Fraction(10) ** int(match["power"])
    elif match["scale"]:
        value *= SCALES[match["scale"].casefold()]
    elif match["letter"] in ("k", "K"):
        value *= 1000
    elif match["letter"] and match["currency"]:
        value *= {"M": 10**6, "B": 10**9}[match["letter"]]
    return sign * value


def _plain(digits: str) -> Fraction:
    return Fraction(re.sub(r"[,\s'\u2019_]", "", digits))


def _korean_value(text: str) -> Fraction:
    """3만 5천, 1억 2,000만: sums of sections."""
    total = Fraction(0)
    for digits, units in re.findall(rf"({_PLAIN})\s?([천백십만억조]*)", text):
        part = _plain(digits)
        for unit in units:
            part *= _KOREAN_UNITS[unit]
        total += part
    return total


def _words(text: str) -> list[_Found]:
    return [_Found(s, e, v) for s, e, v in (*english(text), *korean(text))]


def _numbers(text: str) -> list[_Found]:
    """Numbers in digits and in words, in their order, none within another."""
    found = _digits(text)
    taken = [(f.start, f.end) for f in found]
    found += [w for w in _words(text) if all(w.end <= s or w.start >= e for s, e in taken)]
    return sorted(found, key=lambda f: f.start)


def _operator(text: str, left: _Found, right: _Found) -> str | None:
    """What is done with two numbers that stand beside each other: "+", "=", ...; None: nothing."""
    between = text[left.end : right.start]
    signed = right.start < len(text) and text[right.start] in "+-"
    if signed and not between.strip() and len(between) <= 1:
        return text[right.start]
    match = _OPERATOR.fullmatch(between)
    return match["op"].casefold() if match else None


def _read(text: str, found: list[_Found], at: int) -> Fraction | None:
    """The number that the one at an index stands for: of "5 + 6 = 11" the 11."""
    first = last = at
    while first > 0 and _operator(text, found[first - 1], found[first]):
        first -= 1
    while last + 1 < len(found) and _operator(text, found[last], found[last + 1]):
        last += 1
    sides: list[list[_Found]] = [[found[first]]]
    for i in range(first, last):
        if _operator(text, found[i], found[i + 1]) in _EQUALS:
            sides.append([])
        sides[-1].append(found[i + 1])
    results = [side[0].value for side in sides if len(side) == 1]
    if text[found[last].end :].lstrip().startswith("="):  # cut off before its result
        results = results if len(sides) > 1 else []
    return results[-1] if results else None


def _compound(text: str, one: _Found, other: _Found) -> bool:
    between = text[one.end : other.start]
    return bool(_GREATER.fullmatch(between) and _LESSER.match(text, other.end))


def _alone(text: str, found: list[_Found], at: int) -> bool:
    """Whether no other number is offered beside it, as in "5 or 6"."""
    if at + 1 >= len(found) or found[at + 1].value == found[at].value:
        return True
    if _compound(text, found[at], found[at + 1]):
        return False
    between = text[found[at].end : found[at + 1].start]
    if _EITHER.fullmatch(between):
        return False
    listed = _BOTH.fullmatch(between)
    return not (listed and re.fullmatch(r"\s*\w{0,12}[.!]?\s*", text[found[at + 1].end :]))


def _first(text: str) -> Fraction | None:
    found = _numbers(text)
    for i, one in enumerate(found):
        if negated(text, one.start, one.end):
            continue
        return _read(text, found, i) if _alone(text, found, i) else None
    return None


def _is_label(text: str, one: _Found) -> bool:
    """Whether a number numbers something: an item of a list, a step, a place."""
    if _STEP.search(text[max(0, one.start - 14) : one.start]) or _ORDINAL.match(text, one.end):
        return True
    begins = not text[text.rfind("\n", 0, one.start) + 1 : one.start].strip(" \t#-")
    return (
        begins and bool(re.match(r"[.)]\s+\S|[.)]\s*$", text[one.end :])) and "\n" in text.strip()
    )


def _last(text: str) -> Fraction | None:
    found = _digits(text)
    stated = [i for i, f in enumerate(found) if f.value is not None]
    if found and found[-1].is_expression:
        at = len(found) - 1
        equal = at and _operator(text, found[at - 1], found[at]) in _EQUALS
        return found[at - 1].value if equal else None
    stated = [i for i in stated if not negated(text, found[i].start, found[i].end)]
    proper = [i for i in stated if not _is_label(text, found[i])]
    if proper or stated:
        at = (proper or stated)[-1]
        if at and _compound(text, found[at - 1], found[at]):
            return None
        return _read(text, found, at)
    if found:
        return None
    words = [w for w in _words(text) if not negated(text, w.start, w.end)]
    return sorted(words, key=lambda w: w.start)[-1].value if words else None


def number_in(text: str, after: tuple[str, ...] | None = None) -> Fraction | None:
    """The number that a text states as its answer; None if there is none."""
    text = _MINUS.sub("-", cleaned(text))
    marked = statements(text, after)
    for statement in marked:
        value = _first(statement)
        if value is not None:
            return value
    return None if marked else _last(text)


def canonical(value: Fraction) -> str:
    """A number in one spelling: "18", "-0.5", "1/3" where decimals would not end.

    Example:
        >>> canonical(Fraction(1800, 100)), canonical(Fraction(2, 6))
        ('18', '1/3')
    """
    n, d = value.numerator, value.denominator
    places = 0
    while d % 10 == 0:
        d, places = d // 10, places + 1
    for prime, other in ((2, 5), (5, 2)):
        while d % prime == 0:
            d, n, places = d // prime, n * other, places + 1
    if d != 1:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(n)).rjust(places + 1, "0")
    text = f"{digits[:-places]}.{digits[-places:]}" if places else digits
    text = text.rstrip("0").rstrip(".") if places else text
    return f"-{text}" if n < 0 else text
