r"""Our templates as chat templates in Jinja, which print the same prompts. Pure: no torch.

A processor of Transformers makes a prompt of messages, whose contents are texts or lists of parts
(`{"type": "image"}`, `{"type": "text", "text": ...}`). What stands here is the program that it
runs. Images of a message come before its words, as the model learned them; in the language model's
own chat format they stay where they are. Neighbouring texts are lines of one text.
"""

from __future__ import annotations

import json
from string import Template as StringTemplate
from typing import Any

from isthmus.errors import ExportError
from isthmus.prompts.chat_template import ChatTemplate
from isthmus.prompts.prompt import END_TAG, IMAGE_TAG
from isthmus.prompts.template import Template
from isthmus.prompts.templates import TextTemplate

_READ = """\
{%- set told = namespace(images='', text='', last='') -%}
{%- if message['content'] is string -%}
{%- set told.text = message['content'] -%}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] in ('image', 'image_url') -%}
{%- set told.$SHOWN = told.$SHOWN + $IMAGE -%}
{%- set told.last = 'image' -%}
{%- elif part['type'] == 'text' -%}
{%- set told.text = told.text + ('\\n' if told.last == 'text' else '') + part['text'] -%}
{%- set told.last = 'text' -%}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
"""

_WORDS = """\
{%- set seen = namespace(turns=0) -%}
{%- for message in messages -%}
$READ
{%- if message['role'] in ('system', 'developer') -%}
{{- $HEAD_BEFORE + told.text + $HEAD_AFTER -}}
{%- elif message['role'] == 'user' -%}
{%- if seen.turns -%}{{- $BETWEEN -}}{%- endif -%}
{%- set seen.turns = seen.turns + 1 -%}
{{- told.images -}}
{%- if told.text -%}{{- $BEFORE + told.text + $AFTER -}}{%- else -%}{{- $CAPTION -}}{%- endif -%}
{%- else -%}
{{- $JUNCTION + told.text + $END -}}
{%- endif -%}
{%- endfor -%}
"""

_CHAT = """\
{%- set seen = namespace(messages=[], held='') -%}
{%- for message in messages -%}
$READ
{%- if message['role'] == 'system' and not $HAS_SYSTEM -%}
{%- set seen.held = told.text + '\\n\\n' -%}
{%- else -%}
{%- if message['role'] == 'user' -%}
{%- set told.text = seen.held + told.text -%}
{%- set seen.held = '' -%}
{%- endif -%}
{%- set seen.messages = seen.messages + [dict(message, content=$CONTENT)] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = seen.messages %}"""


def jinja_of(template: Template, *, image: str = IMAGE_TAG, end: str = END_TAG) -> str:
    r"""The chat template, in Jinja, that prints what a template of ours does.

    Args:
        template: One of `isthmus.prompts.templates`, or the language model's own.
        image: What to print for an image.
        end: What to print for the end of an answer, where the template has our tag.

    Raises:
        ExportError: If it is a template of somebody's own.

    Example:
        >>> from isthmus.prompts.templates import plain
        >>> import jinja2
        >>> parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
        >>> jinja2.Template(jinja_of(plain)).render(messages=[{"role": "user", "content": parts}])
        '<image>Question: What is it? Answer:'
    """
    if isinstance(template, TextTemplate):
        return _of_words(template, image, end)
    if isinstance(template, ChatTemplate):
        return _of_chat(template, image)
    raise ExportError(
        f"the template is a {type(template).__name__} of your own: expected one with a name, which "
        "can be written as a chat template; set another as model.template"
    )


def messages_of(shots: Any, query: Any, *, instruction: str = "") -> list[dict[str, Any]]:
    """Demonstrations and a query as messages, for a processor of Transformers.

    Args:
        shots: Examples with answers.
        query: The example that is asked.
        instruction: What the system says.

    Example:
        >>> from isthmus.prompts.prompt import Example
        >>> messages_of([], Example((), "Why?"))
        [{'role': 'user', 'content': [{'type': 'text', 'text': 'Why?'}]}]
    """
    messages = []
    if instruction:
        messages.append({"role": "system", "content": _text(instruction)})
    for example in (*shots, query):
        images = [{"type": "image", "image": image} for image in example.images]
        asked = _text(example.question) if example.question else []
        messages.append({"role": "user", "content": [*images, *asked]})
        if example is not query:
            messages.append({"role": "assistant", "content": _text(example.answer)})
    return messages


def _text(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}]


def _of_words(template: TextTemplate, image: str, end: str) -> str:
    """Of fixed words around questions and answers."""
    before, _, after = template.question.partition("{}")
    head_before, _, head_after = template.heading.partition("{}")
    caption = before + after if template.caption is None else template.caption
    return _filled(
        _WORDS,
        READ=_read("images", image),
        HEAD_BEFORE=_quoted(head_before),
        HEAD_AFTER=_quoted(head_after),
        BETWEEN=_quoted(template.between),
        BEFORE=_quoted(before),
        AFTER=_quoted(after),
        CAPTION=_quoted(caption),
        JUNCTION=_quoted(template.junction),
        END=_quoted(template.end.replace(END_TAG, end)),
    )


def _of_chat(template: ChatTemplate, image: str) -> str:
    """The language model's own behind a prologue that writes images as one token."""
    form = template.format
    source = str(form.tokenizer.chat_template)
    if not form.shows_images:
        content = "[{'type': 'text', 'text': told.text}]" if form.in_parts else "told.text"
        prologue = _filled(
            _CHAT,
            READ=_read("text", image),
            HAS_SYSTEM="true" if form.has_system else "false",
            CONTENT=content,
        )
        return f"{prologue}\n{source}"  # trimmed, so that the source begins a line as it did
    if form.placeholder == image:
        return source
    replaced = f"{_quoted(form.placeholder)}, {_quoted(image)}"
    return f"{{% set written %}}{source}{{% endset %}}{{{{- written | replace({replaced}) -}}}}"


def _read(shown: str, image: str) -> str:
    """Reads a message's content, its images noted in one of `told`'s fields."""
    return _filled(_READ, SHOWN=shown, IMAGE=_quoted(image)).rstrip("\n")


def _filled(program: str, **values: str) -> str:
    """A program with literals in place of its names."""
    return StringTemplate(program).substitute(values)


def _quoted(text: str) -> str:
    """A string literal of Jinja."""
    return json.dumps(text, ensure_ascii=False)
