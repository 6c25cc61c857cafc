r"""How examples become prompts. Pure: no torch.

A template is a function from demonstrations and a query to a `Prompt`; one of your own can be
passed wherever a name is taken. Published ones are letter by letter what was published, which the
files under `tests/golden/` hold; each function names its source. `chat_template` makes one that
speaks the language model's own format, in `isthmus.chat_template`.

    plain         <image>Question: What is this? Answer: a dog<|endofchunk|>
    openflamingo  <image>Question:What is this? Short answer:a dog<|endofchunk|>\n
    qa            <image>Q: What is this?\nA: a dog\n\n
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from isthmus.errors import ConfigError, PromptError, suggestion
from isthmus.prompt import END_TAG, IMAGE_TAG, Example, Prompt

CONCLUSION = "The answer is {answer}."
"""How a demonstration with a rationale states its answer (Wei et al. 2022, table 20)."""


class Template(Protocol):
    """Makes a prompt of demonstrations and a query."""

    def __call__(
        self,
        shots: Sequence[Example],
        query: Example,
        *,
        instruction: str = "",
        lead: str = "",
        reason: bool | str = False,
    ) -> Prompt:
        """Renders a prompt.

        Args:
            shots: Demonstrations, each with an answer.
            query: What is asked; its answer, if it has one, is not shown.
            instruction: Stands before everything.
            lead: What the query's answer begins with, such as "Let's think step by step.".
            reason: Demonstrations show their rationale and then their answer in a sentence,
                "The answer is {answer}."; a text with `{answer}` in it is another sentence.

        Returns:
            The prompt; `shared` is where the query begins.

        Raises:
            PromptError: If a demonstration has no answer, or a text contains a tag.
        """
        ...


def refuse_tags(text: str) -> str:
    """A user's text as it is; a picture's tag in it would have nobody to stand for it.

    Raises:
        PromptError: If there is a tag in it.
    """
    for tag in (IMAGE_TAG, END_TAG):
        if tag in text:
            raise PromptError(
                f'"{text[:60]}" has more {IMAGE_TAG} tags than pictures: {tag} is placed by the '
                "template, one for each picture; leave it out of questions and answers"
            )
    return text


def shown_answer(shot: Example, reason: bool | str) -> str:
    """What a demonstration shows as its answer.

    Args:
        shot: The demonstration.
        reason: As for `Template`.

    Raises:
        PromptError: If it has no answer, or a text contains a tag.
        ConfigError: If `reason` is a text that does not say where the answer goes.

    Example:
        >>> shown_answer(Example((), "2 + 3?", "5", "2 and 3 more."), reason=True)
        '2 and 3 more. The answer is 5.'
    """
    if shot.answer is None:
        raise PromptError(f'the demonstration "{shot.question}" has no answer')
    answer = refuse_tags(shot.answer)
    if not reason:
        return answer
    sentence = CONCLUSION if reason is True else str(reason)
    if "{answer}" not in sentence:
        raise ConfigError(
            f'got reason="{sentence}", expected True or a sentence with {{answer}} in it, such as '
            f'"{CONCLUSION}"'
        )
    stated = sentence.replace("{answer}", answer)
    rationale = refuse_tags(shot.rationale or "")
    return f"{rationale} {stated}" if rationale else stated


def _rendered(
    ask: Callable[[str], str],
    before: str,
    after: str,
    shots: Sequence[Example],
    query: Example,
    head: str,
    lead: str,
    reason: bool | str,
) -> Prompt:
    """Demonstrations and query, one behind the other.

    Args:
        ask: Makes of a question everything up to its answer, but for the pictures' tags.
        before: Stands between that and an answer.
        after: Ends a demonstration.
        shots: The demonstrations.
        query: The query.
        head: Stands before everything.
        lead: The beginning of the query's answer.
        reason: As for `Template`.
    """

    def up_to_answer(example: Example) -> str:
        return IMAGE_TAG * len(example.pictures) + ask(refuse_tags(example.question))

    context = refuse_tags(head) + "".join(
        f"{up_to_answer(shot)}{before}{shown_answer(shot, reason)}{after}" for shot in shots
    )
    begun = f"{before}{refuse_tags(lead)}" if lead else ""
    pictures = tuple(p for e in (*shots, query) for p in e.pictures)
    return Prompt(f"{context}{up_to_answer(query)}{begun}", pictures, len(context))


def _line(instruction: str) -> str:
    return f"{instruction}\n" if instruction else ""


def plain(
    shots: Sequence[Example],
    query: Example,
    *,
    instruction: str = "",
    lead: str = "",
    reason: bool | str = False,
) -> Prompt:
    """Flamingo's prompt for questions ("Question: ... Answer:") and captions ("Output:").

    Alayrac et al. 2022 (arXiv 2204.14198v1, section 4.1.3). Classification is a caption that is a
    label. Arguments and errors are `Template`'s.

    Example:
        >>> plain([], Example("a.jpg", "What is this?")).text
        '<image>Question: What is this? Answer:'
    """

    def ask(question: str) -> str:
        return f"Question: {question} Answer:" if question else "Output:"

    return _rendered(ask, " ", END_TAG, shots, query, _line(instruction), lead, reason)


def hateful_memes(
    shots: Sequence[Example],
    query: Example,
    *,
    instruction: str = "",
    lead: str = "",
    reason: bool | str = False,
) -> Prompt:
    """Flamingo's prompt for HatefulMemes; the question is the text on the meme.

    Alayrac et al. 2022 (arXiv 2204.14198v1, section 4.1.3). Arguments and errors are `Template`'s.

    Example:
        >>> hateful_memes([], Example("a.jpg", "hello")).text
        '<image>is an image with written: "hello" on it. Is it hateful? Answer:'
    """

    def ask(question: str) -> str:
        return f'is an image with written: "{question}" on it. Is it hateful? Answer:'

    return _rendered(ask, " ", END_TAG, shots, query, _line(instruction), lead, reason)


def _openflamingo_ask(question: str) -> str:
    return f"Question:{question} Short answer:" if question else "Output:"


def openflamingo(
    shots: Sequence[Example],
    query: Example,
    *,
    instruction: str = "",
    lead: str = "",
    reason: bool | str = False,
) -> Prompt:
    """OpenFlamingo's prompt for questions and captions, a line for each demonstration.

    Awadalla et al. 2023; open_flamingo 2.0.1, eval/models/open_flamingo.py and eval/evaluate.py:
    no space before an answer, "Short answer:", and a line break after `<|endofchunk|>`, which
    training never had. Arguments and errors are `Template`'s.

    Example:
        >>> openflamingo([], Example("a.jpg", "What is this?")).text
        '<image>Question:What is this? Short answer:'
    """
    head = _line(instruction)
    return _rendered(_openflamingo_ask, "", f"{END_TAG}\n", shots, query, head, lead, reason)


def openflamingo_classes(
    shots: Sequence[Example],
    query: Example,
    *,
    instruction: str = "",
    lead: str = "",
    reason: bool | str = False,
) -> Prompt:
    """OpenFlamingo's prompt for classification: as `openflamingo`, without line breaks.

    Awadalla et al. 2023; open_flamingo 2.0.1, `get_imagenet_prompt`. Arguments and errors are
    `Template`'s.

    Example:
        >>> openflamingo_classes([Example("a.jpg", answer="cat")], Example("b.jpg")).text
        '<image>Output:cat<|endofchunk|><image>Output:'
    """
    return _rendered(_openflamingo_ask, "", END_TAG, shots, query, _line(instruction), lead, reason)


def openflamingo_memes(
    shots: Sequence[Example],
    query: Example,
    *,
    instruction: str = "",
    lead: str = "",
    reason: bool | str = False,
) -> Prompt:
    """OpenFlamingo's prompt for HatefulMemes; the question is the text on the meme.

    Awadalla et al. 2023; open_flamingo 2.0.1, `get_hateful_memes_prompt`. Arguments and errors are
    `Template`'s.

    Example:
        >>> openflamingo_memes([], Example("a.jpg", "hello")).text
        "<image>is an image with: 'hello' written on it. Is it hateful? Answer:"
    """

    def ask(question: str) -> str:
        return f"is an image with: '{question}' written on it. Is it hateful? Answer:"

    return _rendered(ask, "", END_TAG, shots, query, _line(instruction), lead, reason)


def qa(
    shots: Sequence[Example],
    query: Example,
    *,
    instruction: str = "",
    lead: str = "",
    reason: bool | str = False,
) -> Prompt:
    r"""The text-only form "Q: ... A: ..." of GPT-3 and of chain-of-thought prompts.

    Brown et al. 2020 (GPT-3, section 3.9.1); with `reason=True` few-shot chain of thought, Wei et
    al. 2022 (table 20), and without rationales their standard prompting ("A: The answer is 11.").
    Pictures stand before "Q:". Arguments and errors are `Template`'s.

    Example:
        >>> shot = Example((), "2 + 3?", "5", "2 and 3 more is 5.")
        >>> qa([shot], Example((), "1 + 1?"), reason=True).text
        'Q: 2 + 3?\nA: 2 and 3 more is 5. The answer is 5.\n\nQ: 1 + 1?\nA:'
    """

    def ask(question: str) -> str:
        return f"Q: {question}\nA:" if question else "A:"

    head = f"{instruction}\n\n" if instruction else ""
    return _rendered(ask, " ", "\n\n", shots, query, head, lead, reason)


TEMPLATES: dict[str, Template] = {
    "plain": plain,
    "hateful_memes": hateful_memes,
    "openflamingo": openflamingo,
    "openflamingo_classes": openflamingo_classes,
    "openflamingo_memes": openflamingo_memes,
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
        from isthmus.chat_template import chat_template

        return chat_template(tokenizer)
    if name not in TEMPLATES:
        raise ConfigError(f'unknown template "{name}": {suggestion(name, [*TEMPLATES, "chat"])}')
    return TEMPLATES[name]
