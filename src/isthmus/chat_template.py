"""Prompts in the language model's own chat format. Pure: no torch; the tokenizer is handed in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isthmus.errors import ConfigError, PromptError
from isthmus.prompt import IMAGE_TAG, Example, Prompt
from isthmus.templates import Template, refuse_tags, shown_answer

Message = dict[str, str]


def chat_template(tokenizer: Any) -> Template:
    r"""A template that renders through a tokenizer's chat template.

    Demonstrations are turns of user and assistant, the instruction is the system's turn, and a lead
    is the beginning of the assistant's. `<image>` stands in the user's turn, before the question.
    Where the chat template has no system role, the instruction heads the first user turn.

    What the language model's tokenizer puts before every text by itself (a begin-of-sequence
    token) is left out of the prompt, since it would be there twice.

    Args:
        tokenizer: A Transformers tokenizer with a chat template.

    Raises:
        ConfigError: If the tokenizer has no chat template, or the template drops what users say.
        PromptError: When rendering: if a demonstration has no answer, or a text contains a tag or
            one of the markers between turns, which would speak for somebody else.

    Example:
        >>> from isthmus.backbones.tiny import byte_tokenizer
        >>> tokenizer = byte_tokenizer()
        >>> tokenizer.chat_template = (
        ...     "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        ...     "{% if add_generation_prompt %}[assistant] {% endif %}"
        ... )
        >>> chat_template(tokenizer)([], Example("a.jpg", "What is it?")).text
        '[user] <image>What is it?\n[assistant] '
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"the tokenizer {type(tokenizer).__name__} has no chat template: expected that of a "
            'chat model; choose another template, such as "plain" or "qa"'
        )
    probe = [_turn("user", _PROBE)]
    try:
        framed = _render(tokenizer, probe)
    except Exception as error:  # Jinja's own errors, and whatever a template calls
        raise ConfigError(
            f"the tokenizer's chat template cannot be rendered ({error}); choose another "
            'template, such as "plain" or "qa"'
        ) from error
    if _PROBE not in framed:
        raise ConfigError(
            "the tokenizer's chat template leaves out what the user says, or expects it in parts; "
            'choose another template, such as "plain" or "qa"'
        )
    has_system = _takes_system(tokenizer, probe)
    prompts_assistant = framed != _render(tokenizer, probe, generation=False)
    markers = tuple(t for t in getattr(tokenizer, "all_special_tokens", ()) if t and t in framed)

    def clean(text: str) -> str:
        for marker in markers:
            if marker in text:
                raise PromptError(
                    f'"{text[:60]}" contains {marker}, which separates turns of the chat: expected '
                    "a text without it"
                )
        return refuse_tags(text)

    def user(example: Example) -> Message:
        return _turn("user", IMAGE_TAG * len(example.pictures) + clean(example.question))

    def render(
        shots: Sequence[Example],
        query: Example,
        *,
        instruction: str = "",
        lead: str = "",
        reason: bool | str = False,
    ) -> Prompt:
        """The language model's own chat format."""
        context: list[Message] = []
        for shot in shots:
            answer = clean(shown_answer(shot, reason))
            context += [user(shot), _turn("assistant", answer)]
        clean(instruction)
        clean(lead)

        def whole(asked: Message) -> str:
            turns = [*context, asked]
            if instruction and has_system:
                turns.insert(0, _turn("system", instruction))
            elif instruction:
                turns[0] = _turn("user", f"{instruction}\n\n{turns[0]['content']}")
            if lead and not prompts_assistant:
                return _render(tokenizer, [*turns, _turn("assistant", lead)], going_on=True)
            return _render(tokenizer, turns) + lead

        asked = user(query)
        text = whole(asked)
        # Where another question would make another prompt: demonstrations, and what a chat
        # template says at the beginning of every chat.
        other = "B" if asked["content"].lstrip().startswith("A") else "A"
        shared = _common(text, whole(_turn("user", other)))
        pictures = tuple(p for e in (*shots, query) for p in e.pictures)
        return Prompt(text, pictures, shared)

    return render


_PROBE = "isthmus-probe"


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _takes_system(tokenizer: Any, turns: list[Message]) -> bool:
    """Whether a system turn is shown: some templates raise, others drop it without a word."""
    said = f"system-{_PROBE}"
    try:
        return said in _render(tokenizer, [_turn("system", said), *turns])
    except Exception:  # raise_exception of the template, which is Jinja's TemplateError
        return False


def _render(
    tokenizer: Any, turns: list[Message], *, generation: bool = True, going_on: bool = False
) -> str:
    """The chat as text, without what the tokenizer puts before every text anyway."""
    text = str(
        tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=generation and not going_on,
            continue_final_message=going_on,
        )
    )
    start = getattr(tokenizer, "bos_token", None)
    if start and text.startswith(start) and _adds_start(tokenizer):
        return text[len(start) :]
    return text


def _adds_start(tokenizer: Any) -> bool:
    """Whether encoding a text begins with the begin-of-sequence token."""
    ids = list(tokenizer.encode("a"))
    return bool(ids) and ids[0] == tokenizer.bos_token_id
