r"""Finding the answer in what a model wrote. Pure: no torch.

What does not parse is None, never a guess: a share of unparsed outputs that is hidden in the
accuracy has made direct answers look below chance (coin flips and StrategyQA in Kojima et al. 2022,
where three quarters of the direct outputs did not parse).

The rules, for every kind:

- An answer is looked for in the sentence after a marker: one that is given, then what answer tags
  hold (`<answer>...</answer>`), then `\boxed{...}`, then the usual ones ("The answer is",
  "Answer:", "####", "정답은"). Of several, the last; in its sentence, the first that is not
  negated. Where there is a marker, nothing is looked for outside of the marked sentences.
- Without a marker, the last number; a choice that is clearly marked as one ("(B)", "B.",
  "B is correct") or is the only one whose text is named; a yes or no at the beginning, or the only
  one; the only label that is named; the first sentence.
- Two answers offered as equals ("5 or 6") are none.
- What stands before `</think>`, and what follows a question that the model asked itself, does not
  count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from isthmus.errors import InputError, suggestion
from isthmus.prompts.answers.choices import choice_in
from isthmus.prompts.answers.free_text import same_words, text_in, vqa_normalize
from isthmus.prompts.answers.labels import label_in, yes_no_in
from isthmus.prompts.answers.numbers import canonical, number_in

__all__ = [
    "AnswerKind",
    "extract",
    "extract_choice",
    "extract_label",
    "extract_number",
    "extract_text",
    "extract_yes_no",
    "same_answer",
    "vqa_normalize",
]

AnswerKind = Literal["number", "choice", "yes_no", "label", "text"]
"""What an answer is: a number; a letter of a multiple choice; yes or no; one of given labels; or
any text."""


def extract_number(text: str, *, after: tuple[str, ...] | None = None) -> str | None:
    r"""The number that a text states.

    Digits with separators, signs, currencies and units; fractions, LaTeX, scientific notation;
    English and Korean words (`twenty-five`, `이십오`, `스물다섯`, `3만 5천`). A percentage is its
    number; times, dates, ranges and sums without a result are no numbers. Nor are expressions that
    would have to be worked out (`\sqrt{2}`, `2π`, `2^10`, `101_2`, `5x`); with a result they are
    read there. Powers of ten are numbers.

    Args:
        text: What the model wrote.
        after: Markers after which the answer stands, beside the usual ones; an empty one stands
            for the beginning, as after an extraction prompt.

    Returns:
        The number in one spelling ("1234", "-0.5", "1/3"), or None.

    Example:
        >>> extract_number("6 * 3 = 18. The answer is $18.00."), extract_number("정답은 7입니다")
        ('18', '7')
    """
    value = number_in(text, after)
    return None if value is None else canonical(value)


def extract_choice(
    text: str, choices: Sequence[str], *, after: tuple[str, ...] | None = None
) -> str | None:
    """The letter of the choice that a text states.

    Args:
        text: What the model wrote.
        choices: The choices' own texts, at most 26. Where they carry labels of their own
            ("(가) 사과", "1. apples"), those name them too. ② and "2번" are the second.
        after: As for `extract_number`.

    Returns:
        "A" to "Z", or None. A letter in prose is no answer.

    Raises:
        InputError: If there are no choices, or more than letters.

    Example:
        >>> extract_choice("As the question says, C.", ["red", "green", "blue"])
        'C'
        >>> extract_choice("A vitamin C deficiency.", ["red", "green", "blue"]) is None
        True
    """
    if not 1 <= len(choices) <= 26:
        raise InputError(f"got {len(choices)} choices, expected 1 to 26: they are named by letters")
    return choice_in(text, choices, after)


def extract_yes_no(text: str, *, after: tuple[str, ...] | None = None) -> str | None:
    """The yes or no that a text states, in English or Korean.

    Args:
        text: What the model wrote.
        after: As for `extract_number`.

    Returns:
        "yes", "no", or None.

    Example:
        >>> extract_yes_no("No, that is wrong."), extract_yes_no("There are no cats.")
        ('no', None)
    """
    return yes_no_in(text, after)


def extract_label(
    text: str, labels: Sequence[str], *, after: tuple[str, ...] | None = None
) -> str | None:
    """The label that a text states.

    Labels are whole words in any case, in the singular or plural, and with Korean particles; of
    labels within each other the longest counts.

    Args:
        text: What the model wrote.
        labels: The labels.
        after: As for `extract_number`.

    Returns:
        The label as it was given, or None if none or several are stated.

    Raises:
        InputError: If there are no labels.

    Example:
        >>> extract_label("Two golden retrievers.", ["retriever", "golden retriever"])
        'golden retriever'
    """
    if not labels:
        raise InputError("got no labels, expected those that an answer may be")
    return label_in(text, labels, after)


def extract_text(text: str, *, after: tuple[str, ...] | None = None) -> str | None:
    """The first sentence after a marker, or of the text, without quotes, article and full stop.

    Args:
        text: What the model wrote.
        after: As for `extract_number`.

    Returns:
        The text, or None if there is none.

    Example:
        >>> extract_text('The answer is "the red car". It is fast.')
        'red car'
    """
    return text_in(text, after)


def extract(
    text: str,
    kind: AnswerKind,
    choices: Sequence[str] = (),
    *,
    after: tuple[str, ...] | None = None,
) -> str | None:
    """The answer that a text states, of any kind.

    Args:
        text: What the model wrote.
        kind: What kind of answer it is.
        choices: The texts of a multiple choice, or the labels.
        after: As for `extract_number`.

    Returns:
        The answer in one spelling, or None if it does not parse.

    Raises:
        InputError: If the kind is unknown, or needs choices and has none.

    Example:
        >>> extract("so 2 + 3 = 5", "number"), extract("(B)", "choice", ["cat", "dog"])
        ('5', 'B')
    """
    kinds = get_args(AnswerKind)
    if kind not in kinds:
        raise InputError(f'unknown kind of answer "{kind}": {suggestion(str(kind), kinds)}')
    if kind == "number":
        return extract_number(text, after=after)
    if kind == "choice":
        return extract_choice(text, choices, after=after)
    if kind == "yes_no":
        return extract_yes_no(text, after=after)
    if kind == "label":
        return extract_label(text, choices, after=after)
    return extract_text(text, after=after)


def same_answer(got: str | None, expected: str, kind: AnswerKind) -> bool:
    """Whether two answers are the same.

    Numbers are compared as numbers and exactly, choices by letter, the others without regard to
    case, articles, punctuation and white space. An answer that did not parse is never the same.

    Args:
        got: An answer as `extract` returns it, or None.
        expected: What is right.
        kind: What kind of answer it is.

    Example:
        >>> same_answer("18", "18.00", "number"), same_answer("b", "(B)", "choice")
        (True, True)
    """
    if got is None:
        return False
    if kind == "number":
        one, other = number_in(got, ("",)), number_in(expected, ("",))
        return one is not None and one == other
    if kind == "choice":
        return got.strip(" ().[]").casefold() == expected.strip(" ().[]").casefold()
    return same_words(got, expected)
