"""What the search for orders and calibration need of a template: a prompt around the question.

Any function from demonstrations and a query to a `Prompt` will do; options of a template are given
beforehand, with `functools.partial`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from isthmus.errors import PromptError
from isthmus.prompts.prompt import Example, Prompt, Span, cut, joined, skip

Render = Callable[[Sequence[Example], Example], Prompt]
"""A template: demonstrations and a query to a prompt."""
MARK = "QUESTION7MARK"


@dataclass(frozen=True)
class Frame:
    """A prompt with a gap where the query's question would stand.

    Attributes:
        before: The spans before the question.
        after: The spans after it.
        prompt: The prompt that they are of, with its images.
    """

    before: tuple[Span, ...]
    after: tuple[Span, ...]
    prompt: Prompt

    def filled(self, question: str) -> Prompt:
        """The prompt with a question in the gap, even an empty one."""
        spans = (*self.before, Span(question, "user"), *self.after)
        return replace(self.prompt, text=joined(spans), spans=spans)

    def opened(self) -> Prompt:
        """The prompt up to the question, for the model to write one."""
        return self.prompt.beginning(len(joined(self.before).rstrip()))


def frame(template: Render, shots: Sequence[Example], query: Example) -> Frame:
    """A template's prompt, with a gap in place of the query's question.

    Raises:
        PromptError: If the template does not show the question once, and as it is.

    Example:
        >>> from isthmus.prompts.templates import TEMPLATES
        >>> frame(TEMPLATES["plain"], [], Example((), "Why?")).filled("N/A").text
        'Question: N/A Answer:'
    """
    prompt = template(shots, replace(query, question=MARK))
    if prompt.text.count(MARK) != 1:
        raise PromptError(
            f"the template shows the query's question {prompt.text.count(MARK)} times: expected "
            "once and unchanged, so that another can be put in its place"
        )
    at = prompt.text.index(MARK)
    rest = skip(prompt.spans, at + len(MARK))
    return Frame(cut(prompt.spans, at), rest, prompt)
