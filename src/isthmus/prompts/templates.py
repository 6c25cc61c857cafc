r"""The templates that have a name. Pure: no torch.

Published ones are letter by letter what was published, which the files under `tests/golden/` hold.
Each template names its source. What every template must have stands in `isthmus.prompts.template`;
the language model's own format is made by `isthmus.prompts.chat_template`.

    plain         <image>Question: What is this? Answer: a dog<|endofchunk|>
    openflamingo  <image>Question:What is this? Short answer:a dog<|endofchunk|>\n
    qa            <image>Q: What is this?\nA: a dog\n\n
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isthmus.errors import ConfigError, suggestion
from isthmus.prompts.chat_template import chat_template
from isthmus.prompts.prompt import END_TAG, IMAGE_TAG, Example, Prompt, Span, joined
from isthmus.prompts.template import Template, refuse_tags, shown_answer

_OPEN = Span("", "assistant", learned=True)
"""An answer that nothing has been said of yet."""


@dataclass(frozen=True)
class TextTemplate:
    r"""A template of fixed words around questions and answers.

    Images stand before the question. An answer, with the junction before it and the end after it,
    is tokenized apart from its question (see `backbones.span_tokens`).

    Args:
        about: What it is and where it was published.
        question: The words around a question, `{}` in its place.
        caption: The words where there is no question; None puts an empty one between the words.
        junction: Stands before an answer.
        end: Ends an answer; training learns it.
        between: Stands between a demonstration's end and what follows it.
        heading: The words around an instruction, `{}` in its place.

    Example:
        >>> plain([], Example("a.jpg", "What is this?")).text
        '<image>Question: What is this? Answer:'
        >>> [s.text for s in qa.conversation([Example((), "1 + 1?", "2")]) if s.learned]
        [' ', '2', '\n']
    """

    about: str
    question: str
    caption: str | None
    junction: str
    end: str
    between: str = ""
    heading: str = "{}\n"

    def __call__(
        self,
        shots: Sequence[Example],
        query: Example,
        *,
        instruction: str = "",
        lead: str = "",
        conclusion: str = "",
    ) -> Prompt:
        """See `Template`."""
        context = self.conversation(shots, instruction=instruction, conclusion=conclusion)
        if shots and self.between:
            context = (*context, Span(self.between))
        opened = self._answer(refuse_tags(lead)) if lead else [_OPEN]
        spans = (*context, *self._asked(query), *opened)
        images = [p for e in (*shots, query) for p in e.images]
        return Prompt.of(spans, images, len(joined(context)), " " if lead else self.junction)

    def conversation(
        self, turns: Sequence[Example], *, instruction: str = "", conclusion: str = ""
    ) -> tuple[Span, ...]:
        """See `Template`."""
        spans: list[Span] = []
        if instruction:
            spans += _around(self.heading, Span(refuse_tags(instruction), "system"))
        for number, turn in enumerate(turns):
            if number and self.between:
                spans.append(Span(self.between))
            spans += self._asked(turn)
            spans += self._answer(shown_answer(turn, conclusion))
            spans.append(Span(self.end, "end", learned=True))
        return tuple(spans)

    def _asked(self, example: Example) -> list[Span]:
        """Everything of a turn up to its answer."""
        images = [Span(IMAGE_TAG, "image")] * len(example.images)
        question = refuse_tags(example.question)
        if not question and self.caption is not None:
            return [*images, Span(self.caption)]
        return [*images, *_around(self.question, Span(question, "user"))]

    def _answer(self, text: str) -> list[Span]:
        """An answer without its end."""
        before = [Span(self.junction, learned=True)] if self.junction else []
        return [*before, Span(text, "assistant", learned=True)]


def _around(words: str, span: Span) -> list[Span]:
    """A span between words that have `{}` in its place."""
    before, _, after = words.partition("{}")
    return [s for s in (Span(before), span, Span(after)) if s.text]


plain = TextTemplate(
    about="""Flamingo's prompt for questions ("Question: ... Answer:") and captions ("Output:").

    Alayrac et al. 2022 (arXiv 2204.14198v1, section 4.1.3). Classification is a caption that is a
    label.""",
    question="Question: {} Answer:",
    caption="Output:",
    junction=" ",
    end=END_TAG,
)

hateful_memes = TextTemplate(
    about="""Flamingo's prompt for HatefulMemes; the question is the text on the meme.

    Alayrac et al. 2022 (arXiv 2204.14198v1, section 4.1.3).""",
    question='is an image with written: "{}" on it. Is it hateful? Answer:',
    caption=None,
    junction=" ",
    end=END_TAG,
)

openflamingo = TextTemplate(
    about="""OpenFlamingo's prompt for questions and captions, a line for each demonstration.

    Awadalla et al. 2023; open_flamingo 2.0.1, eval/models/open_flamingo.py and eval/evaluate.py:
    no space before an answer, "Short answer:", and a line break after `<|endofchunk|>`.""",
    question="Question:{} Short answer:",
    caption="Output:",
    junction="",
    end=END_TAG,
    between="\n",
)

openflamingo_classes = TextTemplate(
    about="""OpenFlamingo's prompt for classification: as `openflamingo`, without line breaks.

    Awadalla et al. 2023; open_flamingo 2.0.1, `get_imagenet_prompt`.""",
    question=openflamingo.question,
    caption=openflamingo.caption,
    junction="",
    end=END_TAG,
)

openflamingo_memes = TextTemplate(
    about="""OpenFlamingo's prompt for HatefulMemes; the question is the text on the meme.

    Awadalla et al. 2023; open_flamingo 2.0.1, `get_hateful_memes_prompt`.""",
    question="is an image with: '{}' written on it. Is it hateful? Answer:",
    caption=None,
    junction="",
    end=END_TAG,
)

blip2 = TextTemplate(
    about="""BLIP-2's prompt for questions; a caption has none, and begins its text.

    Li et al. 2023 (arXiv 2301.12597, section 4.2), for the models with OPT. Its end of text is a
    line break, which is what `<|endofchunk|>` stands for in such a model.""",
    question="Question: {} Answer:",
    caption="",
    junction=" ",
    end=END_TAG,
)

qa = TextTemplate(
    about="""The text-only form "Q: ... A: ..." of GPT-3 and of chain-of-thought prompts.

    Brown et al. 2020 (GPT-3, section 3.9.1); with a conclusion few-shot chain of thought, Wei et
    al. 2022 (table 20), and without rationales their standard prompting ("A: The answer is 11.").
    Images stand before "Q:". An answer ends with its line; the empty line after it belongs to the
    next question, which is also how GPT-2's tokenizer cuts the two.""",
    question="Q: {}\nA:",
    caption="A:",
    junction=" ",
    end="\n",
    between="\n",
    heading="{}\n\n",
)


TEMPLATES: dict[str, TextTemplate] = {
    "plain": plain,
    "hateful_memes": hateful_memes,
    "openflamingo": openflamingo,
    "openflamingo_classes": openflamingo_classes,
    "openflamingo_memes": openflamingo_memes,
    "blip2": blip2,
    "qa": qa,
}
"""Templates that need no tokenizer; "chat" is made of one by `chat_template`."""


def template_named(name: str, tokenizer: Any = None) -> Template:
    """The template of that name.

    Args:
        name: A name in `TEMPLATES`, or "chat" for the tokenizer's own chat template.
        tokenizer: A Transformers tokenizer; needed for "chat" alone.

    Raises:
        ConfigError: If there is none of that name, or "chat" has no tokenizer or no template.
    """
    if name == "chat":
        if tokenizer is None:
            raise ConfigError(
                'the template "chat" is the language model\'s own: expected its tokenizer, got '
                "none; choose " + ", ".join(sorted(TEMPLATES)) + ", or pass the tokenizer"
            )
        return chat_template(tokenizer)
    if name not in TEMPLATES:
        raise ConfigError(f'unknown template "{name}": {suggestion(name, [*TEMPLATES, "chat"])}')
    return TEMPLATES[name]
