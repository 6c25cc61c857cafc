"""What every template is, and what all of them refuse. Pure: no torch.

A template renders demonstrations and a query as a `Prompt`, and a whole conversation as what is
trained on. Both are the same spans of text. A template of your own can be passed wherever a
template is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from isthmus.errors import ConfigError, PromptError
from isthmus.prompts.prompt import END_TAG, IMAGE_TAG, Example, Prompt, Span

CONCLUSION = "The answer is {answer}."
"""How a demonstration with a rationale states its answer (Wei et al. 2022, table 20)."""


class Template(Protocol):
    """Makes prompts, and conversations to train on, of the same spans.

    A plain function that is called as a template is called renders prompts too; a template that
    models are trained with needs `conversation` besides.
    """

    def __call__(
        self,
        shots: Sequence[Example],
        query: Example,
        *,
        instruction: str = "",
        lead: str = "",
        conclusion: str = "",
    ) -> Prompt:
        """Renders a prompt, up to the open answer of its query.

        Args:
            shots: Demonstrations, each with an answer.
            query: What is asked; its answer, if it has one, is not shown.
            instruction: Stands before everything.
            lead: What the query's answer begins with, such as "Let's think step by step.".
            conclusion: A sentence with `{answer}` in it, such as `CONCLUSION`, in which
                demonstrations state their answer behind their rationale; empty shows the answer
                alone.

        Returns:
            The prompt; `shared` is where the query begins.

        Raises:
            PromptError: If a demonstration has no answer, or a text contains a tag.
        """
        ...

    def conversation(
        self, turns: Sequence[Example], *, instruction: str = "", conclusion: str = ""
    ) -> tuple[Span, ...]:
        """Renders a whole conversation, its answers and their ends marked as learned.

        The spans before a turn's answer are those of the prompt that asks for it, with the turns
        before it as demonstrations.

        Args:
            turns: Questions with their answers.
            instruction: As for a prompt.
            conclusion: As for a prompt.

        Raises:
            PromptError: If a turn has no answer, a text contains a tag, or the template does not
                write an answer as its prompts leave it open.
        """
        ...


def refuse_tags(text: str) -> str:
    """A user's text as it is; a tag in it would do what only the template may do.

    Raises:
        PromptError: If there is a tag in it.
    """
    if IMAGE_TAG in text:
        raise PromptError(
            f'"{text[:60]}" has more {IMAGE_TAG} tags than images: {IMAGE_TAG} is placed by the '
            "template, one for each image; leave it out of questions and answers"
        )
    if END_TAG in text:
        raise PromptError(
            f'"{text[:60]}" contains {END_TAG}, which ends an answer: {END_TAG} is placed by the '
            "template, after each answer; leave it out of questions and answers"
        )
    return text


def shown_answer(shot: Example, conclusion: str = "") -> str:
    """What a demonstration shows as its answer.

    Args:
        shot: The demonstration.
        conclusion: As for `Template`.

    Raises:
        PromptError: If it has no answer, or a text contains a tag.
        ConfigError: If the conclusion does not say where the answer goes.

    Example:
        >>> shown_answer(Example((), "2 + 3?", "5", "2 and 3 more."), CONCLUSION)
        '2 and 3 more. The answer is 5.'
    """
    if shot.answer is None:
        raise PromptError(f'the demonstration "{shot.question}" has no answer')
    answer = refuse_tags(shot.answer)
    lead = f"{refuse_tags(shot.lead)} " if shot.lead else ""
    if not conclusion:
        return f"{lead}{answer}"
    if "{answer}" not in conclusion:
        raise ConfigError(
            f'the conclusion is "{conclusion}": expected a sentence with {{answer}} in it, such as '
            f'"{CONCLUSION}"'
        )
    stated = conclusion.replace("{answer}", answer)
    rationale = refuse_tags(shot.rationale or "")
    return f"{lead}{rationale} {stated}" if rationale else f"{lead}{stated}"
