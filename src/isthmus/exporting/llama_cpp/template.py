"""The chat template for llama.cpp, which writes a mark of its own for each image.

It hands a template texts in which `<__media__>`, or a longer mark with random letters, stands for
an image. What stands here makes messages of them as a processor of Transformers gets them, runs the
template that is written for it, and puts the marks where that wrote images.
"""

from __future__ import annotations

import json
from string import Template as Program

from isthmus.exporting.jinja import jinja_of
from isthmus.exporting.tokens import WrittenTokens
from isthmus.prompts.template import Template

MARK = "<__media_"
"""How every mark of llama.cpp's begins; it ends with `>`."""

_PROGRAM = """\
{%- set media = namespace(messages=[], marks=[]) -%}
{%- for message in messages -%}
{%- set parsed = namespace(texts=[], parts=[]) -%}
{%- if message['content'] is string -%}
{%- set parsed.texts = [message['content']] -%}
{%- else -%}
{%- for part in message['content'] -%}
{%- set parsed.texts = parsed.texts + [part['text']] -%}
{%- endfor -%}
{%- endif -%}
{%- for text in parsed.texts -%}
{%- for piece in text.split($MARK) -%}
{%- if loop.first -%}
{%- set words = piece -%}
{%- else -%}
{%- set name = piece.split('>')[0] -%}
{%- set media.marks = media.marks + [$MARK + name + '>'] -%}
{%- set parsed.parts = parsed.parts + [{'type': 'image'}] -%}
{%- set words = piece[name | length + 1:] -%}
{%- endif -%}
{%- if words -%}
{%- set parsed.parts = parsed.parts + [{'type': 'text', 'text': words}] -%}
{%- endif -%}
{%- endfor -%}
{%- endfor -%}
{%- set media.messages = media.messages + [{'role': message['role'], 'content': parsed.parts}] -%}
{%- endfor -%}
{%- set messages = media.messages -%}
{%- set written %}$SOURCE{% endset -%}
{%- if $START and written[:$LENGTH] == $START -%}
{%- set written = written[$LENGTH:] -%}
{%- endif -%}
{%- for piece in written.split($IMAGE) -%}
{%- if not loop.first -%}
{{- media.marks[loop.index0 - 1] if loop.index0 <= media.marks | length else $IMAGE -}}
{%- elif piece and $SPACED and piece[0] != ' ' -%}
{{- ' ' -}}
{%- endif -%}
{{- piece -}}
{%- endfor -%}
"""


def program_of(
    template: Template, added: WrittenTokens, *, spaced: bool = False, starts: bool = False
) -> str:
    """The chat template that prints a template's prompts in llama.cpp.

    Args:
        template: The model's.
        added: Its tokens.
        spaced: Whether a text begins with a space that llama.cpp's tokenizer does not add.
        starts: Whether its tokenizer puts the begin-of-sequence token before texts, which is then
            left out where the template prints it.
    """
    start = (added.tokenizer.bos_token or "") if starts else ""
    return Program(_PROGRAM).substitute(
        START=json.dumps(start, ensure_ascii=False),
        LENGTH=len(start),
        MARK=json.dumps(MARK),
        IMAGE=json.dumps(added.image, ensure_ascii=False),
        SPACED="true" if spaced else "false",
        SOURCE=jinja_of(template, image=added.image, end=added.end),
    )
