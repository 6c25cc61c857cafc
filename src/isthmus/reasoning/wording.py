r"""Published prompts for reasoning in steps, letter by letter. Pure: no torch.

Zero-shot chain of thought (Kojima et al. 2022, "Large Language Models are Zero-Shot Reasoners",
section 3; strings as in github.com/kojima-takeshi188/zero_shot_cot, main.py) asks twice.
First `Q: ...\nA: Let's think step by step.`, and the model writes a chain.
Then question, trigger and chain once more, a space, and an extraction prompt that depends on the
kind of answer, such as `\nTherefore, the answer (arabic numerals) is`.

Korean wordings have no publication that we know of; they say the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from isthmus.errors import ConfigError, suggestion
from isthmus.prompts.answers import AnswerKind
from isthmus.prompts.template import CONCLUSION


@dataclass(frozen=True)
class Wording:
    """How a language asks for an answer and states one.

    Attributes:
        extraction: For each kind of answer, the prompt that asks for it after a chain; in that of
            a choice `{first}` and `{last}` stand for letters.
        therefore: What `extraction` begins with and what a direct question leaves out.
        conclusion: How a demonstration states its answer.
        markers: Words after which an answer stands.
    """

    extraction: Mapping[AnswerKind, str]
    therefore: str
    conclusion: str
    markers: tuple[str, ...]


ENGLISH = Wording(
    extraction=MappingProxyType(
        {
            "number": "\nTherefore, the answer (arabic numerals) is",
            "choice": "\nTherefore, among {first} through {last}, the answer is",
            "yes_no": "\nTherefore, the answer (Yes or No) is",
            "label": "\nTherefore, the answer is",
            "text": "\nTherefore, the answer is",
        }
    ),
    therefore="\nTherefore, ",
    conclusion=CONCLUSION,
    markers=("The answer is", "the answer (arabic numerals) is", "the answer (Yes or No) is"),
)
KOREAN = Wording(
    extraction=MappingProxyType(
        {
            "number": "\n따라서 정답은(숫자로)",
            "choice": "\n따라서 {first}부터 {last} 중에서 정답은",
            "yes_no": "\n따라서 정답은(예 또는 아니요)",
            "label": "\n따라서 정답은",
            "text": "\n따라서 정답은",
        }
    ),
    therefore="\n따라서 ",
    conclusion="정답은 {answer}입니다.",
    markers=("정답은", "정답은(숫자로)", "정답은(예 또는 아니요)"),
)


@dataclass(frozen=True)
class Trigger:
    r"""What makes a model reason, and how its answer is asked for afterwards.

    Attributes:
        text: What the answer begins with, so that the model goes on reasoning.
        wording: How the language asks for an answer and states one.
        source: Where it was published.

    Example:
        >>> Trigger("Let's count.").extraction("choice", choices=5)
        '\nTherefore, among A through E, the answer is'
    """

    text: str
    wording: Wording = ENGLISH
    source: str = ""

    def extraction(self, kind: AnswerKind, *, choices: int = 0) -> str:
        """The prompt of the second stage, which asks for the answer.

        Args:
            kind: What kind of answer it asks for.
            choices: How many choices there are; of meaning for choices alone.

        Raises:
            ConfigError: If the kind is unknown, or a choice is asked for among none.
        """
        if kind not in self.wording.extraction:
            raise ConfigError(
                f'unknown kind of answer "{kind}": {suggestion(kind, self.wording.extraction)}'
            )
        prompt = self.wording.extraction[kind]
        if kind != "choice":
            return prompt
        if not 1 <= choices <= 26:
            raise ConfigError(f"got {choices} choices, expected 1 to 26: they are named by letters")
        return prompt.format(first="A", last=chr(ord("A") + choices - 1))

    def direct(self, kind: AnswerKind, *, choices: int = 0) -> str:
        """The same question without reasoning: "The answer (arabic numerals) is".

        This is Kojima et al.'s zero-shot baseline: the extraction prompt without "Therefore".

        Raises:
            ConfigError: As for `extraction`.
        """
        prompt = self.extraction(kind, choices=choices).removeprefix(self.wording.therefore)
        return prompt[0].upper() + prompt[1:]

    def answer_lead(self, chain: str, kind: AnswerKind, *, choices: int = 0) -> str:
        r"""What the answer begins with in the second stage: trigger, chain, extraction prompt.

        Args:
            chain: What the model wrote after the trigger, as it wrote it.
            kind: What kind of answer is asked for.
            choices: How many choices there are.

        Raises:
            ConfigError: As for `extraction`.

        Example:
            >>> Trigger("Let's think step by step.").answer_lead(" 2 + 2 is 4.", "text")
            "Let's think step by step. 2 + 2 is 4. \nTherefore, the answer is"
        """
        return f"{self.text}{chain} {self.extraction(kind, choices=choices)}"


_KOJIMA = "Kojima et al. 2022, main.py, --cot_trigger_no"

TRIGGERS: dict[str, Trigger] = {
    "step-by-step": Trigger("Let's think step by step.", source=_KOJIMA),
    "we-should": Trigger("We should think about this step by step.", source=_KOJIMA),
    "first": Trigger("First,", source=_KOJIMA),
    "before": Trigger("Before we dive into the answer,", source=_KOJIMA),
    "proof": Trigger("Proof followed by the answer.", source=_KOJIMA),
    "realistic": Trigger("Let's think step by step in a realistic way.", source=_KOJIMA),
    "common-sense": Trigger(
        "Let's think step by step using common sense and knowledge.", source=_KOJIMA
    ),
    "detective": Trigger("Let's think like a detective step by step.", source=_KOJIMA),
    "logically": Trigger("Let's think about this logically.", source=_KOJIMA),
    "step-by-step-first": Trigger("Let's think step by step. First,", source=_KOJIMA),
    "think": Trigger("Let's think", source=_KOJIMA),
    "splitting": Trigger("Let's solve this problem by splitting it into steps.", source=_KOJIMA),
    "after-proof": Trigger("The answer is after the proof.", source=_KOJIMA),
    "be-realistic": Trigger("Let's be realistic and think step by step.", source=_KOJIMA),
    "be-sure": Trigger(
        "Let's work this out in a step by step way to be sure we have the right answer.",
        source="Zhou et al. 2022, Large Language Models Are Human-Level Prompt Engineers",
    ),
    "plan": Trigger(
        "Let's first understand the problem and devise a plan to solve the problem. "
        "Then, let's carry out the plan and solve the problem step by step.",
        source="Wang et al. 2023, Plan-and-Solve Prompting",
    ),
    "step-by-step-ko": Trigger("차근차근 생각해봐.", KOREAN),
}


_NAME = re.compile(r"[A-Za-z0-9_-]+")


def is_korean(text: str) -> bool:
    """Whether there is Hangul in a text.

    Example:
        >>> is_korean("사과 3개"), is_korean("3 apples")
        (True, False)
    """
    return any("가" <= character <= "힣" for character in text)


def trigger_named(name: str) -> Trigger:
    """A published trigger by its name, or one of your own by its text.

    Args:
        name: A name in `TRIGGERS`; anything that does not look like one, Latin letters,
            digits and hyphens alone, is a trigger of your own, with Korean wordings if there is
            Hangul in it.

    Raises:
        ConfigError: If there is none of that name.

    Example:
        >>> trigger_named("step-by-step").text
        "Let's think step by step."
        >>> trigger_named("Count them one by one.").text
        'Count them one by one.'
    """
    if name in TRIGGERS:
        return TRIGGERS[name]
    if name.strip() and not _NAME.fullmatch(name):
        return Trigger(name, KOREAN if is_korean(name) else ENGLISH)
    raise ConfigError(f'unknown trigger "{name}": {suggestion(name, TRIGGERS)}')
