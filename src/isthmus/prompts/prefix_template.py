r"""PaliGemma's prompt: images, the token that begins a text, the question, a line break. Pure.

    <image><bos>What is this?\n

Beyer et al. 2024 (arXiv 2407.07726, section 3.1). The model was trained on one question at a time
and sees its whole prompt at once, so there are no demonstrations and no further turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from isthmus.errors import ConfigError, PromptError
from isthmus.prompts.prompt import END_TAG, IMAGE_TAG, Example, Prompt, Span
from isthmus.prompts.template import refuse_tags, shown_answer

NAME = "paligemma"
_ONE = "expected one question, answered from its images alone (0 shots)"


@dataclass(frozen=True)
class PrefixTemplate:
    r"""PaliGemma's prompt for one question.

    Args:
        start: The token that begins a text.

    Example:
        >>> PrefixTemplate("<bos>")([], Example("a.jpg", "What is this?")).text
        '<image><bos>What is this?\n'
    """

    start: str

    def __call__(
        self,
        shots: Sequence[Example],
        query: Example,
        *,
        instruction: str = "",
        lead: str = "",
        conclusion: str = "",
    ) -> Prompt:
        """See `Template`; an instruction stands before the question.

        Raises:
            PromptError: If there are demonstrations, or a text contains a tag.
        """
        if shots:
            raise PromptError(
                f'got {len(shots)} demonstrations, and the template "{NAME}" shows none: {_ONE}'
            )
        spans = [*self._asked(query, instruction), Span(refuse_tags(lead), "assistant", True)]
        return Prompt.of(spans, query.images, 0, " " if lead else "")

    def conversation(
        self, turns: Sequence[Example], *, instruction: str = "", conclusion: str = ""
    ) -> tuple[Span, ...]:
        """See `Template`.

        Raises:
            PromptError: If there are several turns, or as above.
        """
        if len(turns) > 1:
            raise PromptError(
                f'got {len(turns)} turns, and the template "{NAME}" has one: {_ONE}; make each '
                "turn a record of its own"
            )
        return tuple(
            span
            for turn in turns
            for span in (
                *self._asked(turn, instruction),
                Span(shown_answer(turn, conclusion), "assistant", True),
                Span(END_TAG, "end", True),
            )
        )

    def _asked(self, example: Example, instruction: str) -> list[Span]:
        """Everything of a turn up to its answer."""
        if instruction:
            both = f"{instruction}\n{example.question}" if example.question else instruction
            example = replace(example, question=both)
        spans = [Span(IMAGE_TAG, "image")] * len(example.images)
        spans.append(Span(self.start))
        if example.question:
            spans.append(Span(refuse_tags(example.question), "user"))
        return [*spans, Span("\n")]


def prefix_template(tokenizer: Any) -> PrefixTemplate:
    """The template in the words of a tokenizer.

    Raises:
        ConfigError: If the tokenizer has no token that begins a text.
    """
    start = getattr(tokenizer, "bos_token", None)
    if not start:
        raise ConfigError(
            f'the template "{NAME}" begins a text with the tokenizer\'s own token: expected a '
            "tokenizer that has one (bos_token)"
        )
    return PrefixTemplate(start)
