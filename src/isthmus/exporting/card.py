"""The card of an exported model: `README.md`, its front matter as the hub reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from isthmus.config.model import ModelConfig

_CARD = """\
---
{front}
---

# {name}

{vision} and {language}, joined by Isthmus: {connector}, \
{fusion}. It is a `{architecture}` of Transformers; nothing of Isthmus is needed to run it.

```python
from transformers import pipeline

pipe = pipeline("image-text-to-text", model={quoted})
parts = [{{"type": "image", "url": "photo.jpg"}}, {{"type": "text", "text": "What is this?"}}]
print(pipe([{{"role": "user", "content": parts}}], return_full_text=False))
```

Prompts are written as the model learned them (`{template}`); demonstrations are earlier turns. An
answer ends at `<|endofchunk|>` or the language model's own end of text.

The licence is the strictest of the parts': add `license:` to the head of this file
before you publish it.
{notes}"""


_DUAL = """\
---
{front}
---

# {name}

{base}, written by Isthmus after training. It is a `{architecture}` of Transformers; nothing of
Isthmus is needed to run it.

```python
from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained({quoted}), AutoProcessor.from_pretrained({quoted})
```

The licence is that of {base}: add `license:` to the head of this file before you publish it.
"""


def card(config: ModelConfig, name: str, architecture: str, notes: Sequence[str]) -> str:
    """The card of a model.

    Args:
        config: What it is made of.
        name: What to call it.
        architecture: Its class in Transformers.
        notes: What whoever runs it should know.

    Example:
        >>> from isthmus.config.model import LanguageConfig, VisionConfig
        >>> from isthmus.model.connectors.mlp import MLP
        >>> config = ModelConfig(
        ...     vision=VisionConfig(name="hf:openai/clip-vit-large-patch14"),
        ...     language=LanguageConfig(name="hf:Qwen/Qwen3-0.6B"),
        ...     connector=MLP(),
        ... )
        >>> print(card(config, "mine", "LlavaForConditionalGeneration", [])[:150])
        ---
        library_name: transformers
        pipeline_tag: image-text-to-text
        base_model:
        - openai/clip-vit-large-patch14
        - Qwen/Qwen3-0.6B
        tags:
        - isthmus
        ---
        ...
    """
    front = ["library_name: transformers", "pipeline_tag: image-text-to-text"]
    parts = dict.fromkeys((config.vision.name, config.language.name))  # a released model is both
    bases = [repository for part in parts if (repository := _repository(part))]
    if bases:
        front += ["base_model:", *(f"- {json.dumps(b) if ':' in b else b}" for b in bases)]
    front += ["tags:", "- isthmus"]
    return _CARD.format(
        front="\n".join(front),
        name=name,
        quoted=json.dumps(name, ensure_ascii=False),
        vision=_shown(config.vision.name),
        language=_shown(config.language.name),
        connector=config.connector,
        fusion=type(config.fusion).__name__,
        architecture=architecture,
        template=config.template,
        notes="".join(f"\n{note[0].upper()}{note[1:]}.\n" for note in notes),
    )


def dual_card(source: str, name: str, architecture: str) -> str:
    """The card of a dual encoder.

    Args:
        source: What it was loaded from.
        name: What to call it.
        architecture: Its class in Transformers.
    """
    front = ["library_name: transformers", "pipeline_tag: zero-shot-image-classification"]
    if repository := _repository(source):
        front.append(f"base_model: {repository}")
    front += ["tags:", "- isthmus"]
    return _DUAL.format(
        front="\n".join(front),
        name=name,
        quoted=json.dumps(name, ensure_ascii=False),
        base=_shown(source),
        architecture=architecture,
    )


def _repository(part: str) -> str:
    """A part's repository on the hub; empty if it is a folder, or of another place."""
    scheme, _, rest = part.partition(":")
    return rest if scheme == "hf" and rest.count("/") == 1 and not Path(rest).exists() else ""


def _shown(part: str) -> str:
    """A part's name, of a folder its last piece: paths are nobody else's business."""
    rest = part.partition(":")[2] or part
    return _repository(part) or Path(rest).name
