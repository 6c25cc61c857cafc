"""The card of an exported model: `README.md`, its front matter as the hub reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from isthmus.config.model import ModelConfig
from isthmus.model.card import front_matter, shown, strictest

_CARD = """\
{front}

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

{licence}
{notes}"""


_DUAL = """\
{front}

# {name}

{base}, written by Isthmus after training. It is a `{architecture}` of Transformers; nothing of
Isthmus is needed to run it.

```python
from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained({quoted}), AutoProcessor.from_pretrained({quoted})
```

{licence}
"""


_GGUF = """\
{front}

# {name}

{vision} and {language}, joined by Isthmus: {connector}, {fusion}. Two files for llama.cpp:

```
llama-server -m {words} --mmproj {images}
```

Prompts are written as the model learned them (`{template}`).

{licence}
{notes}"""


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
        >>> print(card(config, "mine", "LlavaForConditionalGeneration", [])[:195])
        ---
        library_name: transformers
        pipeline_tag: image-text-to-text
        license: other
        base_model:
        - openai/clip-vit-large-patch14
        - Qwen/Qwen3-0.6B
        base_model_relation: finetune
        tags:
        - isthmus
        ---
        ...
    """
    parts = (config.vision.name, config.language.name)
    licence, told = strictest(parts)
    return _CARD.format(
        front=front_matter(
            "transformers", "image-text-to-text", parts, relation="finetune", licence=licence
        ),
        name=name,
        quoted=json.dumps(name, ensure_ascii=False),
        vision=shown(parts[0]),
        language=shown(parts[1]),
        licence=told,
        connector=config.connector,
        fusion=type(config.fusion).__name__,
        architecture=architecture,
        template=config.template,
        notes=_sentences(notes),
    )


def dual_card(source: str, name: str, architecture: str) -> str:
    """The card of a dual encoder.

    Args:
        source: What it was loaded from.
        name: What to call it.
        architecture: Its class in Transformers.
    """
    licence, told = strictest([source])
    task = "zero-shot-image-classification"
    return _DUAL.format(
        front=front_matter("transformers", task, [source], relation="finetune", licence=licence),
        name=name,
        quoted=json.dumps(name, ensure_ascii=False),
        base=shown(source),
        licence=told,
        architecture=architecture,
    )


def gguf_card(config: ModelConfig, name: str, files: tuple[str, str], notes: Sequence[str]) -> str:
    """The card of a model's two files for llama.cpp.

    Args:
        config: What it is made of.
        name: What to call it.
        files: The language model's, and the one that shows it images.
        notes: What whoever runs it should know.
    """
    parts = (config.vision.name, config.language.name)
    licence, told = strictest(parts)
    return _GGUF.format(
        front=front_matter(
            "llama.cpp", "image-text-to-text", parts, relation="quantized", licence=licence
        ),
        name=name,
        vision=shown(parts[0]),
        language=shown(parts[1]),
        connector=config.connector,
        fusion=type(config.fusion).__name__,
        words=files[0],
        images=files[1],
        template=config.template,
        licence=told,
        notes=_sentences(notes),
    )


def _sentences(notes: Sequence[str]) -> str:
    return "".join(f"\n{note[0].upper()}{note[1:]}.\n" for note in notes)
