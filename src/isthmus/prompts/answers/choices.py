"""The letter of a multiple choice in what a model wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from isthmus.prompts.answers.labels import first_mention, only_mention
from isthmus.prompts.answers.numbers import number_in
from isthmus.prompts.answers.statements import CIRCLED, cleaned, negated, spelled, statements

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SERIES = ("가나다라마바사아자차카타파하", "ㄱㄴㄷㄹㅁㅂㅅㅇㅈㅊㅋㅌㅍㅎ")
_LABELLED = re.compile(r"\s*[(\[]?(\d{1,2}|[A-Za-z가-힣ㄱ-ㅎ])[)\].:]\s*(.*)", re.DOTALL)
_CAUSE = re.compile(
    r"\s+(?:because|since|as|for|due|is|was|and\b(?!\s+[A-Z]\b)|which|with|but|based|according)\b"
    r"|\s*[가-힣(\[—–:=-]|\s*[.,;!?)\]}\"'”’]|\s*$|\s*\n"  # noqa: RUF001
)
# Several letters as equals, at the beginning: "A or B", "(A) and (B)", "A, B."
_LIST = re.compile(
    r"\W*(?:both\s+|either\s+)?[A-Z][)\]]?\s*"
    r"(?:(?:/|&|\bor\b|\band\b|또는|혹은|와|과)\s*[(\[]?[A-Z](?![A-Za-z])"
    r"|,\s*(?:(?:and|or)\s+)?[(\[]?[A-Z](?=[)\]]?\s*(?:,|[.!]?\s*$)))"
)
_CONCLUSION = re.compile(
    r"(?:^|(?<=[.!?\n]))\s*"
    r"(?=(?:so|thus|therefore|hence|overall|in conclusion|따라서|그러므로|결국)\b)",
    re.IGNORECASE,
)
_KO_AFTER = (
    r"(?=\s*(?:[.,!)\]\"']|$|입니다|이다|이에요|예요|번|항|이\s|가\s|을\s|를\s|라고|이라고|\n))"
)


@dataclass(frozen=True)
class _Named:
    """A place where a choice is named by its letter."""

    start: int
    end: int
    index: int


@dataclass(frozen=True)
class _Choices:
    """Choices with what they are called: texts without their labels, labels beside letters."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]

    @classmethod
    def of(cls, choices: Sequence[str]) -> _Choices:
        """Reads labels off choices such as "(가) 사과" or "1. apples"."""
        names = [spelled(_uncircled(c)).strip() for c in choices]
        n = len(names)
        for series in (*(s[:n] for s in _SERIES), [str(i + 1) for i in range(n)], LETTERS[:n]):
            if len(series) < n:
                continue
            split = [_LABELLED.fullmatch(c) for c in names]
            read = [m[1].upper() if m else "" for m in split]
            if read == list(series):
                own = tuple(m[2].strip() if m else "" for m in split)
                return cls(own, () if series == LETTERS[:n] else tuple(series))
            if names == list(series) and series is not LETTERS and not series[0].isdigit():
                return cls(("",) * n, tuple(series))
        return cls(tuple(re.sub(r"^(?:an?|the)\s+", "", t, flags=re.I) for t in names), ())


def _uncircled(text: str) -> str:
    return re.sub("[①-⑳]", lambda m: f"({ord(m[0]) - ord('①') + 1}) ", text)


def _letters(text: str, n: int) -> str:
    """Circled numbers as letters in parentheses: ② is (B)."""

    def letter(match: re.Match[str]) -> str:
        index = ord(match[0]) - CIRCLED
        return f"({LETTERS[index]})" if index < n else match[0]

    return re.sub(f"[{chr(CIRCLED)}-{chr(CIRCLED + 19)}]", letter, text)


def _aliases(labels: Sequence[str], text: str) -> list[_Named]:
    """Labels of the choices' own (가, 1) in parentheses, or alone before a pause."""
    found: list[_Named] = []
    for index, label in enumerate(labels):
        form = (
            rf"[(\[「]\s*{label}\s*[)\]」]"
            rf"|(?<![가-힣A-Za-z0-9.]){label}(?![0-9]|\.[0-9]){_KO_AFTER}"
        )
        found += [_Named(m.start(), m.end(), index) for m in re.finditer(form, text)]
    return found


def _strong(text: str, n: int, labels: Sequence[str]) -> list[_Named]:
    """Letters that can be nothing but a choice: "(B)", "option B", "B is correct", "B번"."""
    top = LETTERS[n - 1]
    upper, both = f"[A-{top}]", f"[A-{top}a-{top.lower()}]"
    edge = r"(?![A-Za-z0-9]|['’][a-z])"  # noqa: RUF001
    forms = [
        rf"[(\[{{]\s*(?P<l>{both})\s*[)\]}}]",
        rf"(?m:^\s*)(?P<l>{both})\s*[).:](?!\w)",
        rf"(?i:\b(?:option|choice|answer|letter|choose|chose|pick|select|go\s+with)\s+)"
        rf"(?P<l>{upper}){edge}",
        rf"(?i:\b(?:it'?s|it\s+is|must\s+be|should\s+be|would\s+be|say|think|guess|definitely"
        rf"|probably|surely|clearly|likely)\s+)(?P<l>{upper})(?=\s*[.!]?\s*$|[.!,]\s|\s*\n)",
        rf"(?<![A-Za-z0-9])(?P<l>{upper})\)?\s+(?:is|was|would\s+be|must\s+be|seems|looks)\s+"
        rf"(?:(?:clearly|most\s+likely|probably|the)\s+)*(?:correct|right|best|answer)\b",
        rf"(?<![A-Za-z0-9])(?P<l>{upper})(?=(?:를|을)\s?(?:선택|고르|골)|이?라고\s?생각|\s?번?\s?(?:이|가)\s(?:정답|답|맞|옳)|\s?번?입니다|\s?번(?:이|가|을|$))",
        rf"(?m:(?:^|[,;:—]|\b[Ss]o,?|\b[Tt]hus,?|\b[Tt]herefore,?|\b[Hh]ence,?)\s*)(?P<l>{upper})"
        rf"(?=\s*[.!]?\s*$|\s*[.!]\s|\s*\n)",
    ]
    found = [
        _Named(m.start("l"), m.end(), LETTERS.index(m["l"].upper()))
        for form in forms
        for m in re.finditer(form, text)
    ]
    numbered = (
        r"(?<!\d)(?P<d>\d{1,2})\s?번(?=\s?(?:이|가|을)\s?(?:정답|답|맞|옳)|입니다|이다|$|[.,!)])"
    )
    for m in re.finditer(numbered, text):
        if 1 <= int(m["d"]) <= n:
            found.append(_Named(m.start(), m.end(), int(m["d"]) - 1))
    found += [a for a in _aliases(labels, text) if labels]
    return found


def _kept(text: str, found: list[_Named]) -> list[_Named]:
    """Without those that are said to be wrong."""
    wrong = re.compile(
        r"[)\]\s:]*(?:은|는|이|가)?\s*(?:is|are|was|seems|can\s?not\s+be|can't\s+be|isn't)?\s*"
        r"(?:not\b|wrong|incorrect|false|n't|can\s?not|ruled\s+out|틀|오답|아니|아닙|아닌)",
        re.IGNORECASE,
    )
    none = re.compile(r"\b(?:none|neither)\s+of\b[^.!?\n]*$", re.IGNORECASE)
    return [
        f
        for f in found
        if not negated(text, f.start, f.end)
        and not wrong.match(text[f.end : f.end + 24])
        and not none.search(text[max(0, f.start - 200) : f.start])
    ]


def _at_start(statement: str, n: int) -> int | None:
    """The letter that a statement begins with, upper or lower case, if it is no article."""
    listed = _LIST.match(statement)
    if listed:
        return -1
    match = re.match(
        r"(?:\s|[\"'“‘$:{-])*(?:(?:option|choice|letter|answer|보기|선택지)\s*)?"  # noqa: RUF001
        r"(?P<open>[(\[{])?\s*(?P<l>[A-Za-z])(?P<rest>[)\]}.:,]|(?![A-Za-z0-9]))",
        statement,
        re.IGNORECASE,
    )
    if not match:
        return None
    letter, tail = match["l"], statement[match.end() :]
    if re.match(r"['’][a-z]|[-+#]\w|\s*[=^+*/<>]", tail):  # noqa: RUF001
        return None
    closed = match["rest"] in tuple(")]}.:,") if match["rest"] else False
    bare = bool(_CAUSE.match(tail)) or (letter.isupper() and letter not in "AI")
    if not closed and not bare:
        return None
    if letter.islower() and not closed and not re.match(r"\s*(?:$|[.!;\"']|번|입니다)", tail):
        return None
    if negated(statement, match.start("l"), match.end("l")):
        return None
    index = LETTERS.index(letter.upper())
    if index >= n:
        return -1
    return index


def _numeric(choices: _Choices) -> list[Fraction] | None:
    """What the choices' texts are as numbers, if all are and no two are equal."""
    values = [number_in(t) if re.match(r"\W*\d", t) else None for t in choices.texts]
    numbers = [v for v in values if v is not None]
    return numbers if len(numbers) == len(set(numbers)) == len(values) else None


def _by_text(statement: str, choices: _Choices, *, marked: bool) -> int | None:
    """The choice whose own text is stated."""
    numbers = _numeric(choices)
    if numbers is not None:
        value = number_in(statement, ("",) if marked else None)
        return numbers.index(value) if value in numbers else None
    find = first_mention if marked else only_mention
    return find(statement, choices.texts)


def _one(found: list[_Named]) -> int | None:
    named = {f.index for f in found}
    return named.pop() if len(named) == 1 else None


def _in_statement(statement: str, choices: _Choices) -> int | None:
    """The choice that a sentence after a marker names."""
    n = len(choices.texts)
    own = _kept(statement, _aliases(choices.labels, statement))
    if choices.labels and own:
        return min(own, key=lambda a: a.start).index
    start = _at_start(statement, n)
    if start is not None:
        return start if start >= 0 else None
    numbered = re.match(r"\W*(?:보기|선택지)?\s*(\d{1,2})\s?번(?!\s?문제)", statement)
    if numbered and 1 <= int(numbered[1]) <= n and not negated(statement, *numbered.span()):
        return int(numbered[1]) - 1
    strong = _kept(statement, _strong(statement, n, choices.labels))
    by_text = _by_text(statement, choices, marked=True)
    if strong:
        letter = _one(strong)
        return letter if by_text in (None, letter) else None
    if by_text is not None:
        return by_text
    lone = rf"(?<![A-Za-z0-9'’-])([B-{LETTERS[n - 1]}])(?![A-Za-z0-9'’+#-])" if n > 1 else r"(?!)"  # noqa: RUF001
    likely = [
        _Named(m.start(), m.end(), LETTERS.index(m[1]))
        for m in re.finditer(rf"{lone}(?=\s*(?:[.,;!)]|$|because|since))", statement)
        if m[1] != "I"
        and not re.search(
            r"\b(?:vitamin|plan|hepatitis|type|group|class|team|grade)\s+$",
            statement[: m.start()],
            re.IGNORECASE,
        )
    ]
    return _one(_kept(statement, likely))


def _in_text(text: str, choices: _Choices) -> int | None:
    """The choice that a text without a marker names clearly."""
    n = len(choices.texts)
    if _LIST.match(text):
        return None
    strong = _kept(text, _strong(text, n, choices.labels))
    named = _one(strong)
    if named is not None:
        return named
    if strong:
        conclusion = _CONCLUSION.split(text)
        if len(conclusion) > 1:
            return _one(_kept(conclusion[-1], _strong(conclusion[-1], n, choices.labels)))
        return None
    whole = re.fullmatch(r"[\W_]*([A-Za-z])[\W_]*", text)
    if whole:
        index = LETTERS.index(whole[1].upper())
        return index if index < n else None
    start = re.match(r"\W*([A-Z])(?=\s*[),.:](?!\w)|\s+-|\s*\n|\s+(?:because|since)\b)", text)
    if start and LETTERS.index(start[1]) < n:
        return LETTERS.index(start[1])
    return _by_text(text, choices, marked=False)


def choice_in(text: str, choices: Sequence[str], after: tuple[str, ...] | None) -> str | None:
    """The letter of the choice that a text states; None if there is none, or more than one."""
    called = _Choices.of(choices)
    text = _letters(cleaned(text), len(choices))
    marked = statements(text, after)
    for statement in marked:
        index = _in_statement(statement, called)
        if index is not None:
            return LETTERS[index]
    named = None if marked else _in_text(text, called)
    return None if named is None else LETTERS[named]
