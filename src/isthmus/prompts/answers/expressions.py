"""Expressions that would have to be worked out, and of which no number may be read.

The square root of 2 is not 2, and a number to the base of two is not what its digits say. What is
found here stands for one value that is not known; "√16 = 4" is read at its result.
"""

from __future__ import annotations

import re

_N = r"\d[\d,]*(?:\.\d+)?"
_ARGUMENT = rf"(?:\([^()\n]{{0,80}}\)|{_N})"
_FUNCTIONS = (
    "sqrt|cbrt|[dtc]?frac|[dt]?binom|log|ln|lg|exp|arc(?:sin|cos|tan)|(?:sin|cos|tan|cot)h?|sec|csc"
    "|max|min|gcd|lcm|lim|sum|prod|i?int|det|overline|bar|d?dot|vec|lfloor|lceil|lvert"
)
_SYMBOLS = (
    "(?:var)?(?:alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|pi|rho"
    "|sigma|tau|upsilon|phi|chi|psi|omega|nothing)|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Phi|Psi"
    "|Omega|infty|ell|hbar|emptyset|pm|mp"
)
_EXPRESSION = re.compile(
    rf"""
    \\begin\{{(?P<block>\w*matrix\*?|cases|array)\}}.*?(?:\\end\{{(?P=block)\}}|\Z)
    # 2\sqrt{{3}}, \log 2, 2\pi, √2, 2π
    |(?:(?<![\w.,^]){_N}\.?\s*)?(?:\\(?P<function>{_FUNCTIONS})(?![A-Za-z])|(?P<root>[√∛∜]))
    |(?:(?<![\w.,^]){_N}\s*)?(?:\\(?:{_SYMBOLS})(?![A-Za-z])|[πℯ∞]|(?<=\d)(?:pi\b|파이|\s\*?\s?pi\b))
    |(?<![\w.,]){_N}\s*(?:±|\\pm\b)\s*{_N}
    # sqrt(2), log 2, log_2(8), gcd(4, 6), the square root of 2
    |(?:(?<![\w.,^]){_N}\s*\*?\s*)?(?<![A-Za-z\\])
        (?:(?:sqrt|cbrt|log|ln|lg|exp|(?:arc)?(?:sin|cos|tan)|루트|로그)
            \s*(?:_?\{{?\d+\}}?(?=\s*[(\d])\s*)?{_ARGUMENT}
        |(?:max|min|gcd|lcm|floor|ceil|abs|round)\([^()\n]{{0,80}}\)
        |(?:square|cube)\s+roots?\s+of\s+{_ARGUMENT}
        |log(?:arithm)?\s+(?:to\s+the\s+)?base\s+{_N}\s+of\s+{_ARGUMENT})
    # a power that is none of ten: 2^10, 2^n, 2의 10제곱, 2 to the power of 10
    |(?<![\w.,]){_N}\s?\^(?!(?<=10\^)\s?\{{?\s*[-+]?\d{{1,3}}\s*\}}?(?![\w^{{]|\.\d))
                        (?!(?<=10\s\^)\s?\{{?\s*[-+]?\d{{1,3}}\s*\}}?(?![\w^{{]|\.\d))(?P<power>)
    |(?<![\w.,]){_N}\s?의\s?(?:{_N}\s?(?:제곱|승)|세?제곱근?|계승)
    |(?<![\w.,]){_N}\s+(?:(?:raised\s+)?to\s+the\s+(?:power\b(?:\s+of\s+{_N})?
        |{_N}(?:st|nd|rd|th)\s+power\b)|squared\b|cubed\b|factorial\b|choose\s+{_N})
    # another base: 101_2, (101)_2, 101 in base 2, 1011(2), 2진수 101
    |(?<![\w.,]){_N}_(?!\d{{3}}(?!\d))\{{?[\w(]+\}}? | \(\s*{_N}\s*\)\s*_\{{?\w+\}}?
    |(?<![\w.,]){_N}\s*(?:\(\s*|in\s+)?base[\s-]+\d+ | \d+\s?진[수법]\s*(?:으로)?\s*{_N}
    # products and remainders: 2(x + 1), 5x, 10 mod 3
    |(?<![\w.,]){_N}\((?=[\w\s]*[-+*/^][^()]*\)|\s*\d+\s*\))[^()\n]*\)
    |(?<![\w.,]){_N}[abeinxyz](?![\w]|\.\w|['\u2019]|\^\{{?-)
    |(?<![\w.,]){_N}\s*\\?[bp]?mod(?:\s*\{{|\s+)\s*{_N}\}}?
    |(?<![\w.,]){_N}[eE][-+]?\d+\.\d+
    """,
    re.VERBOSE | re.DOTALL,
)
_BESIDE = re.compile(r"\s*[_^]\s*(?=\S)|\s*(?=[\[{])")
_PLAIN_ARGUMENT = re.compile(rf"\s*(?:{_ARGUMENT}|[A-Za-z](?![A-Za-z]))")


def expressions(text: str) -> list[tuple[int, int]]:
    r"""Where the expressions of a text begin and end, in their order, none within another.

    Example:
        >>> expressions(r"\sqrt{2} is 2\pi or 7")
        [(0, 8), (12, 16)]
    """
    found: list[tuple[int, int]] = []
    at = 0
    while match := _EXPRESSION.search(text, at):
        end = match.end()
        if match["function"] or match["root"] or match["power"] is not None:
            end = _arguments(text, end, grouped=match["power"] is not None)
        found.append((match.start(), end))
        at = max(end, match.start() + 1)
    return found


def _arguments(text: str, at: int, *, grouped: bool) -> int:
    """Where the arguments of a function end: groups, limits, or one plain number or letter."""
    bound = True
    if grouped and not text.startswith(("{", " {"), at):
        plain = re.compile(rf"\s?[-+]?(?:{_N}|\w)").match(text, at)
        return plain.end() if plain else at
    while bound:
        beside = _BESIDE.match(text, at)
        bound = beside is not None
        if beside is None:
            break
        limit = bool(beside[0].strip())
        at = beside.end()
        if text[at : at + 1] in ("{", "["):
            at = _closed(text, at)
            grouped |= not limit
        elif limit:
            at += 1
    if not grouped and (plain := _PLAIN_ARGUMENT.match(text, at)):
        at = plain.end()
    return at


def _closed(text: str, at: int) -> int:
    """The place behind the bracket that closes the one here; the text's end if none does."""
    closing = {"{": "}", "[": "]"}[text[at]]
    opening, depth = text[at], 0
    for place in range(at, len(text)):
        depth += (text[place] == opening) - (text[place] == closing)
        if not depth:
            return place + 1
    return len(text)
