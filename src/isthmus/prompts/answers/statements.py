"""The parts of an output in which an answer is stated."""

from __future__ import annotations

import re
import unicodedata

CIRCLED = 0xE000
"""Circled numbers (1 to 20) become private characters from here on: NFKC makes plain digits of
them, and a choice "②3" would read 23."""

_MOST_STATEMENTS = 16
_LONGEST_STATEMENT = 1000
"""Both keep the time linear in a text that repeats itself to the end of its tokens."""

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_RUNAWAY = re.compile(
    r"<\|endofchunk\|>|<\|im_end\|>|<\|eot_id\|>|<\|endoftext\|>|</s>|<end_of_turn>"
    r"|\n\s*(?:Q|Question|질문|문제)\s*[:.]"
)
_SENTENCE_END = re.compile(r"[.!?。](?=[\s\"')\]”’」]|$)")  # noqa: RUF001
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Jr|Sr|vs|etc|approx|ca|e\.g|i\.e|Prof|Mt|Fig|Eq)|(?:^|[\s.(])[A-Z])$"
)
_USUAL = re.compile(
    r"(?:\banswer|\b(?:correct|right|best|my|your|final)\s+(?:option|choice))"
    r"(?:\s+(?:to|for|of|here)\b[^.:\n]{0,60}?)?\s*(?:\([^()\n]*\)\s*)?"
    r"(?:\b(?:is|are|was|would\s+be|should\s+be|must\s+be|will\s+be)\b(?:\s*:)?|[\"']?\s*:|=)"
    r"|\bfinal\s+answer\b\s*[:-]?|####"
    r"|(?:정답|해답|대답|답변|답|결론)\s*(?:\([^()\n]*\)\s*)?(?:은|는|:|=)\s*:?",
    re.IGNORECASE,
)
# A parenthesis that tells what kind of answer is wanted, as extraction prompts have it.
_HINT = re.compile(
    r"\s*\([^()\n]*(?:numeral|number|yes or no|through|letter|숫자|아니요|부터|글자)[^()\n]*\)",
    re.IGNORECASE,
)
# What models are told to put their answer into: <answer>B</answer>; cut off, it has no end.
_TAGS = re.compile(
    r"<(?P<xml>(?:final[_-]?)?answer|ans)\s*>(?P<said>.*?)(?:</\s*(?P=xml)\s*>|$)"
    r"|\[answer\](?P<bracketed>.*?)(?:\[/answer\]|$)"
    r"|<\|begin_of_box\|>(?P<in_box>.*?)(?:<\|end_of_box\|>|$)",
    re.IGNORECASE | re.DOTALL,
)
_OPENING = re.compile(r"(?:\s|:|\$\$|\\\[|\\\()+")


def cleaned(text: str) -> str:
    """The text in one spelling: full-width characters, LaTeX and Markdown made plain.

    Only the model's own answer stays: what comes before `</think>`, after an end token, or after a
    question that it went on to ask itself, is dropped.
    """
    thought, mark, said = text.rpartition("</think>")
    text = said if mark and said.strip() else thought + said
    begin = len(text) - len(text.lstrip())
    runaway = _RUNAWAY.search(text, begin + 1)
    text = text[: runaway.start()] if runaway and text[: runaway.start()].strip() else text
    text = re.sub("[①-⑳]", lambda m: chr(CIRCLED + ord(m[0]) - ord("①")), text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda m: "^" + m[0].translate(_SUPERSCRIPTS), text)
    # A subscript behind digits is their base: NFKC would make 1012 of 101 to the base of 2
    text = re.sub("(?<=[0-9)])[₀-₉]+", lambda m: "_" + m[0].translate(_SUBSCRIPTS), text)
    text = re.sub("[¼-¾⅐-⅞]", lambda m: " " + unicodedata.normalize("NFKC", m[0]), text)
    text = spelled(text).replace("⁄", "/").replace("−", "-")  # noqa: RUF001
    text = re.sub(r"(?<=[^\w\s])–(?=\d)|(?<=\s)–(?=\d)|(?<=\d)\s?–\s?(?=\d)", "-", text)  # noqa: RUF001
    return _without_markdown(_without_latex(text))


def spelled(text: str) -> str:
    """NFKC, but for single Korean letters, which it would take apart from labels such as ㄱ."""
    return re.sub("[^ㄱ-ㆎ]+", lambda m: unicodedata.normalize("NFKC", m[0]), text)


_SAID_PLAINLY = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt|normal)|boldsymbol|bm|emph|mbox|hbox"
    r"|operatorname\*?)\s*\{([^{}]*)\}"
)
_SHOWS_NOTHING = re.compile(
    r"\\(?:(?:text)?color|[hv]space\*?|[hv]?phantom|label|tag\*?|ref|eqref)\s*\{[^{}]*\}"
    r"|\\(?:displaystyle|textstyle|limits|quad|qquad|left|right|[bB]igg?[lr]?)(?![A-Za-z])"
)
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_DEEPEST = 8
"""Groups within groups that are looked into: more have no meaning."""


def _without_latex(text: str) -> str:
    if "\\" not in text and "{" not in text:
        return text
    text = text.replace("{,}", ",").replace("\\$", "$").replace("\\%", "%")
    text = re.sub(r"\\[,!;: ]", "", text)
    text = re.sub(r"\^\s*\{?\s*\\circ(?![A-Za-z])\s*\}?|\\degree(?![A-Za-z])", "°", text)
    text = re.sub(r"(\d)\s*\\([dtc]?frac)", r"\1 \\\2", text)
    for _ in range(_DEEPEST):
        plainer = _SAID_PLAINLY.sub(r" \1 ", _SHOWS_NOTHING.sub(" ", text))
        plainer = _FRACTION.sub(_as_fraction, plainer)
        if plainer == text:
            break
        text = plainer
    text = re.sub(r"\\(?:times|cdot)(?![A-Za-z])", "×", text)  # noqa: RUF001
    text = re.sub(r"\\div(?![A-Za-z])", "÷", text)
    return re.sub(r"\\approx(?![A-Za-z])", "≈", text)


def _as_fraction(match: re.Match[str]) -> str:
    r"""\frac{3}{4} as 3/4; what is no fraction of two numbers stays as it is."""
    above, below = (match[1] or match[2] or "").strip(), (match[3] or match[4] or "").strip()
    number = r"(-?)\s*(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    one, other = re.fullmatch(number, above), re.fullmatch(number, below)
    if not one or not other:
        return match[0]
    sign = "-" if bool(one[1]) != bool(other[1]) else ""
    return f"{sign}{one[2]}/{other[2]}".replace(",", "")


def _without_markdown(text: str) -> str:
    # Two stars between numbers raise to a power, and are no bold type
    text = re.sub(r"(?<=\d)\*\*(?=[-+]?\d)|(?<=[\d)])\s+\*\*\s+(?=[-+(]*\d)", "^", text)
    text = re.sub(r"\*\*|`", "", text)
    text = re.sub(r"(?<![\w_])__(?=\S)|(?<=\S)__(?![\w_])", "", text)
    return re.sub(r"(?<![\w*])[*_](\S[^*_\n]{0,60}?)[*_](?![\w*])", r"\1", text)


def first_sentence(text: str) -> str:
    """The first sentence of the first line that is not empty."""
    line = text.lstrip().partition("\n")[0]
    for end in _SENTENCE_END.finditer(line):
        if line[end.start()] == "." and _ABBREVIATION.search(line[: end.start()]):
            continue
        return line[: end.end()]
    return line


def boxed(text: str) -> list[str]:
    r"""What stands in `\boxed{...}`, the last first."""
    found: list[str] = []
    for match in re.finditer(r"\\f?boxed\s*\{", text):
        depth, i = 1, match.end()
        while i < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            i += 1
        if not depth:
            found.append(text[match.end() : i - 1].strip())
    return found[::-1]


def statements(text: str, after: tuple[str, ...] | None) -> list[str]:
    r"""The sentences that state an answer, the one to be believed first at the front.

    Sentences after a given marker come first, then what answer tags hold (`<answer>7</answer>`),
    then `\boxed{...}`, then sentences after the usual markers ("The answer is", "Answer:",
    "####", "정답은"). Of several, the last is first, since people and models correct themselves.
    "" is a statement that was cut off.

    Args:
        text: A cleaned text.
        after: Markers; white space and case do not matter. An empty one stands for the beginning
            of the text, as after an extraction prompt.
    """
    found: list[str] = []
    given = sorted({m for m in after or () if m.strip()}, key=len, reverse=True)
    if given:
        words = (
            r"\s+".join(re.escape(w) for w in cleaned_marker(marker).split()) for marker in given
        )
        found += _after(re.compile("|".join(words), re.IGNORECASE), text)
    if after and any(not m.strip() for m in after):
        found.append(_sentence(text))
    found += _tagged(text)
    found += boxed(text)
    found += _after(_USUAL, text)
    return list(dict.fromkeys(found))


def _tagged(text: str) -> list[str]:
    """What the last answer tag that is not empty holds, or states."""
    held = [m["said"] or m["bracketed"] or m["in_box"] or "" for m in _TAGS.finditer(text)]
    last = next((said.strip() for said in reversed(held) if said.strip()), None)
    if last is None:
        return []
    return boxed(last) + _after(_USUAL, last) or [_sentence(last)]


def cleaned_marker(marker: str) -> str:
    """A marker in the spelling of a cleaned text."""
    return _without_markdown(spelled(marker)).strip()


def _after(marker: re.Pattern[str], text: str) -> list[str]:
    found: list[str] = []
    for match in list(marker.finditer(text))[-_MOST_STATEMENTS:]:
        sentence = _sentence(text[match.end() :])
        if not re.match(r"[.!?,;]", sentence):  # "what the answer is. ..." states nothing
            found.append(sentence)
    return found[::-1]


def _sentence(rest: str) -> str:
    """The sentence that goes on, without what opens it."""
    hint = _HINT.match(rest)
    rest = rest[hint.end() :] if hint else rest
    opening = _OPENING.match(rest)
    rest = rest[opening.end() :] if opening else rest
    return first_sentence(rest).strip()[:_LONGEST_STATEMENT]


_NOT = re.compile(
    r"(?:\bnot|n't|\bnever|\bcannot|\brather than|\binstead of|\bneither|\bnor|\bunlike)\s+"
    r"(?:(?:be|a|an|the|equal to|just|simply|actually|option|choice|answer)\s+){0,3}"
    r"[\"'(\[“‘$]*$",  # noqa: RUF001
    re.IGNORECASE,
)
_NOT_KO = re.compile(
    r"[\"')\]”’]*\s?(?:번|개|명|원|마리)?\s?(?:이|가|은|는)?\s?(?:아니|아닌|아닙|아님)"  # noqa: RUF001
)


def negated(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] is said not to be the answer ("not 5", "5가 아니라")."""
    return bool(
        _NOT.search(text[max(0, start - 50) : start]) or _NOT_KO.match(text[end : end + 12])
    )
