"""A tiny BLIP-2 in a folder, as its repositories are: for tests, and for trying things offline.

It is Transformers' own class with random weights and OPT, a processor, and a byte tokenizer that
puts `<s>` before every text and has `<image>`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_config
from isthmus.model.backbones.tiny_repository import write_repository

IMAGE, ROWS, QUERIES = 259, 264, 4
START, LINE = 257, 10
"""Ids of the token that begins every text, and of the line break that ends one."""


def tiny_blip2_tokenizer() -> Any:
    """Bytes, `<s>` before every text, and `<image>`."""
    from tokenizers import processors

    made = byte_tokenizer()
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", START)]
    )
    made.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return made


def write_tiny_blip2(folder: str | Path, **changes: Any) -> Path:
    """Writes a BLIP-2 with random weights to a folder.

    Args:
        folder: Where to; made if missing.
        **changes: Options of `transformers.Blip2QFormerConfig`.

    Returns:
        The folder.

    Example:
        >>> import isthmus as im, tempfile
        >>> im.load(write_tiny_blip2(tempfile.mkdtemp())).config.template
        'blip2'
    """
    import transformers

    text = tiny_language_config("opt", vocab=ROWS)
    text.eos_token_id = LINE  # the class asks its language model's own
    vision: dict[str, Any] = {"image_size": 32, "patch_size": 8, "num_attention_heads": 2}
    vision |= {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
    reader: dict[str, Any] = {"num_hidden_layers": 3, "num_attention_heads": 2}
    reader |= {"hidden_size": 16, "intermediate_size": 64}
    config = transformers.Blip2Config(
        vision_config=transformers.Blip2VisionConfig(**vision),
        qformer_config=transformers.Blip2QFormerConfig(**{**reader, **changes}),
        text_config=text,
        num_query_tokens=QUERIES,
        image_token_index=IMAGE,
    )
    images = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    processor = transformers.Blip2Processor(images, tiny_blip2_tokenizer(), QUERIES)
    kind = transformers.Blip2ForConditionalGeneration
    return write_repository(folder, kind, config, processor, image_id=IMAGE)
