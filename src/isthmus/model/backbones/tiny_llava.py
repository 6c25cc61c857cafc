"""A tiny LLaVA in a folder, as its repositories are: for tests, and for trying things out offline.

It is Transformers' own class with random weights, a processor, a byte tokenizer that has `<image>`,
and the chat template of LLaVA-1.5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isthmus.errors import ConfigError, suggestion
from isthmus.model.backbones.tiny import VOCABULARY, byte_tokenizer, tiny_language_config
from isthmus.model.backbones.tiny_repository import write_repository

IMAGE = VOCABULARY
"""Id of `<image>`, inside the embedding."""
ROWS = VOCABULARY + 5
"""Rows of the embedding: more than there are tokens, as released models have."""
SIZE, PATCH = 32, 8
"""Sides of an image and of a patch, in pixels."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def write_tiny_llava(
    folder: str | Path,
    *,
    vision: str = "clip",
    language: str = "llama",
    tokenizer: Any = None,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Writes a LLaVA with random weights to a folder.

    Args:
        folder: Where to; made if missing.
        vision: "clip" or "siglip".
        language: A family of language models, one of `tiny.FAMILIES`.
        tokenizer: In place of the byte tokenizer; it has `<image>` as its token number 259 and no
            more than 264 tokens.
        seed: Seed of the weights; the global generator is left alone.
        **changes: Options of `transformers.LlavaConfig`, such as `vision_feature_layer`.

    Returns:
        The folder.

    Raises:
        ConfigError: If a tower or a family is unknown.

    Example:
        >>> import isthmus as im, tempfile
        >>> model = im.load(write_tiny_llava(tempfile.mkdtemp()))
        >>> model.config.template, model.layout.places
        ('chat', 16)
    """
    import transformers

    if vision not in ("clip", "siglip"):
        raise ConfigError(f'unknown tower "{vision}": {suggestion(vision, ("clip", "siglip"))}')
    name = {"clip": "CLIP", "siglip": "Siglip"}[vision]
    tower = getattr(transformers, f"{name}VisionConfig")(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=PATCH,
    )
    strategy = {"clip": "default", "siglip": "full"}[vision]
    options = {"vision_feature_select_strategy": strategy, **changes}
    config = transformers.LlavaConfig(
        vision_config=tower,
        text_config=tiny_language_config(language, vocab=ROWS),
        image_token_index=IMAGE,
        image_seq_length=(SIZE // PATCH) ** 2,
        **options,
    )
    if tokenizer is None:
        tokenizer = byte_tokenizer()
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    if vision == "clip":
        square = {"height": SIZE, "width": SIZE}
        images = transformers.CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=square)
    else:
        images = transformers.SiglipImageProcessor(size={"height": SIZE, "width": SIZE})
    processor = transformers.LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy=options["vision_feature_select_strategy"],
        num_additional_image_tokens=int(vision == "clip"),
        chat_template=CHAT_TEMPLATE,
    )
    kind = transformers.LlavaForConditionalGeneration
    return write_repository(folder, kind, config, processor, image_id=IMAGE, seed=seed)
