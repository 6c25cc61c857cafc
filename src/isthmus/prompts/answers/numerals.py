"""Numbers in words: English, Sino-Korean and native Korean."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

_SMALL_WORDS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen
"""
_TENS_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
ENGLISH = {w: i for i, w in enumerate(_SMALL_WORDS.split())}
ENGLISH |= {w: 20 + 10 * i for i, w in enumerate(_TENS_WORDS.split())}
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
SCALES["trillion"] = 10**12
_PARTS = {"half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6}
_PARTS |= {"eighth": 8, "tenth": 10}

_SMALL = "|".join(sorted(ENGLISH, key=len, reverse=True))
_SCALE = "|".join(SCALES)
_WORDS = re.compile(
    rf"\b(?:a\s+(?=(?:{_SCALE})\b)(?:{_SCALE})|(?:{_SMALL}))\b"
    rf"(?:(?:[\s-]+|(?<=hundred)\s+and\s+|(?<=thousand)\s+and\s+)(?:{_SMALL}|{_SCALE})\b)*"
    rf"(?P<half>\s+and\s+a\s+half\b)?"
    rf"(?P<part>[\s-](?:{'|'.join(_PARTS)})s?\b)?",
    re.IGNORECASE,
)
# "one" as a pronoun, and words in which a number is no number
_PRONOUN_BEFORE = re.compile(
    r"\b(?:no|any|every|some|the|this|that|which|each|by|last|another|other|first|same|right|wrong)\s+$",
    re.IGNORECASE,
)
_PRONOUN_AFTER = re.compile(
    r"\s+(?:of\s+(?:the|them|these|those|us|my|his|her|our|their)|another|who|that|can|day|by|thing)"
    r"\b|['’-]",  # noqa: RUF001
    re.IGNORECASE,
)

_ORDINAL = re.compile(r"-(?:first|second|third|\w{2,7}th)\b", re.IGNORECASE)
_MINUS = re.compile(
    r"\b(?:is|are|be|=|:)\s+(?:minus|negative)\s+$|^\s*(?:minus|negative)\s+$", re.I
)

_COUNTERS = (
    "개|명|마리|권|대|장|번째|번|시간|시|살|송이|병|잔|그루|켤레|사람|가지|쌍|봉지|상자|조각|쪽|층|"
    "달|분|원|일|년|월|점|킬로|미터|달러|퍼센트|프로|세트|판|알|통|줄|척|채|벌|자루|곳|군데|차례|배"
)
_ENDING = r"입니다|이에요|예요|이다|이라고|라고|이고|이며|$|[\s.,!?)\]\"'~]"
_JOSA = r"이|가|을|를|은|는|으로|로|와|과|씩"
_TENS_KO = "열 스물 서른 마흔 쉰 예순 일흔 여든 아흔"
_UNITS_KO = "하나 둘 셋 넷 다섯 여섯 일곱 여덟 아홉"
_NATIVE_TENS = {w: 10 * i for i, w in enumerate(_TENS_KO.split(), 1)}
_NATIVE_UNITS = {w: i for i, w in enumerate(_UNITS_KO.split(), 1)}
_SHORT_UNITS = {"한": 1, "두": 2, "세": 3, "네": 4}
_NATIVE = re.compile(
    r"(?<![가-힣])(?:"
    rf"(?P<tens>{'|'.join(_NATIVE_TENS)})?(?P<unit>{'|'.join(_NATIVE_UNITS)})"
    rf"(?=\s?(?:{_COUNTERS})|{_ENDING}|(?:{_JOSA})(?![가-힣]))"
    rf"|(?P<lone>{'|'.join(_NATIVE_TENS)})(?=\s?(?:{_COUNTERS})|입니다|이에요|예요|$|[.,!)])"
    rf"|(?P<stens>{'|'.join(_NATIVE_TENS)})?(?P<short>한|두|세|네)(?=\s?(?:{_COUNTERS}))"
    rf"|(?P<score>스무)(?=\s?(?:{_COUNTERS}))"
    r")"
)
_SINO_DIGITS = {c: i for i, c in enumerate("영일이삼사오육칠팔구")}
_SINO_SMALL = {"십": 10, "백": 100, "천": 1000}
_SINO_LARGE = {"만": 10**4, "억": 10**8, "조": 10**12}
_SINO_LETTERS = "[영일이삼사오육칠팔구십백천만억조]"
_SINO = re.compile(
    rf"(?<![가-힣\d]){_SINO_LETTERS}{{1,16}}(?:(?<=[만억조])\s{_SINO_LETTERS}{{1,16}})?"
)
_SINO_NEXT = re.compile(rf"(?:\s?(?:{_COUNTERS})|{_ENDING}|(?:{_JOSA})(?![가-힣]))")
_SINO_ONLY = re.compile(rf"(?:(?:{_COUNTERS})|입니다|이에요|예요|이다|$|[.,!)])")
_SINO_SURE = re.compile(
    r"\s?(?:원|명|개|달러)(?![가-힣])|\s?(?:원|명|개|달러)(?:입니다|이다|이에요)"
)
_NO_NUMBERS = {"만", "천", "백", "조", "억", "이만", "천만", "만일", "구천", "사천", "이천", "일일"}


def english(text: str) -> Iterator[tuple[int, int, Fraction]]:
    """Numbers in English words, as (start, end, value)."""
    for match in _WORDS.finditer(text):
        words = re.split(r"[\s-]+", match[0].casefold())
        value = _english_value([w for w in words if w in ENGLISH or w in SCALES])
        if value is None:
            continue
        if match["part"]:
            denominator = _PARTS[match["part"].strip(" -\t\n").casefold().removesuffix("s")]
            if value >= denominator or len(words) != 2:
                continue  # "twenty fifth" counts places
            yield match.start(), match.end(), Fraction(value, denominator)
            continue
        if words == ["one"] and (
            _PRONOUN_BEFORE.search(text[: match.start()]) or _PRONOUN_AFTER.match(text, match.end())
        ):
            continue
        if _ORDINAL.match(text, match.end()):
            continue
        half = Fraction(1, 2) if match["half"] else Fraction(0)
        sign = -1 if _MINUS.search(text[: match.start()]) else 1
        yield match.start(), match.end(), sign * (value + half)


def _english_value(words: list[str]) -> int | None:
    total = current = 0
    spoken: list[int] = []
    for word in words:
        if word in ENGLISH:
            value = ENGLISH[word]
            room = current % 100
            fits = (value < 10 and (room == 0 or room >= 20) and room % 10 == 0) or (
                value >= 10 and room == 0
            )
            if not fits or (value == 0 and len(words) > 1) or (spoken and spoken[-1] == 0):
                return None
            current += value
            spoken.append(value)
        elif word == "hundred":
            if current > 99:
                return None
            current = max(1, current) * 100
        else:
            total += max(1, current) * SCALES[word]
            current = 0
    return total + current


def korean(text: str) -> Iterator[tuple[int, int, Fraction]]:
    """Numbers in Korean words, native and Sino-Korean, as (start, end, value)."""
    for match in _NATIVE.finditer(text):
        tens = match["tens"] or match["lone"] or match["stens"]
        value = _NATIVE_TENS.get(tens or "", 0) + _NATIVE_UNITS.get(match["unit"] or "", 0)
        value += _SHORT_UNITS.get(match["short"] or "", 0) + (20 if match["score"] else 0)
        yield match.start(), match.end(), Fraction(value)
    for match in _SINO.finditer(text):
        for end in range(match.end(), match.start(), -1):
            word = text[match.start() : end]
            value_or_none = sino_value(word.replace(" ", ""))
            if value_or_none is None:
                continue
            follows = _SINO_ONLY if len(word) == 1 else _SINO_NEXT
            if word in _NO_NUMBERS or (word in tuple("삼육칠팔십") and text[end : end + 1] == " "):
                follows = _SINO_SURE  # words of their own, too
            if follows.match(text, end):
                yield match.start(), end, Fraction(value_or_none)
                break


def sino_value(word: str) -> int | None:
    """The value of a Sino-Korean numeral, such as 이십삼; None if it is none."""
    total = section = digit = 0
    last_small, last_large = 10**4, 10**16
    have = False
    for c in word:
        if c in _SINO_DIGITS:
            if digit or have or (c == "영" and len(word) > 1):
                return None
            digit, have = _SINO_DIGITS[c], True
        elif c in _SINO_SMALL:
            if _SINO_SMALL[c] >= last_small:
                return None
            last_small = _SINO_SMALL[c]
            section += (digit if have else 1) * last_small
            digit, have = 0, False
        else:
            if _SINO_LARGE[c] >= last_large:
                return None
            last_large = _SINO_LARGE[c]
            total += (section + digit or 1) * last_large
            section = digit = 0
            have, last_small = False, 10**4
    return total + section + digit
