"""A tiny Qwen-VL in a folder, as its repositories are: for tests, and to try things out offline.

It is one of Transformers' own classes with random weights, a processor that keeps an image's own
resolution, a byte tokenizer with Qwen's special tokens, and a chat template of Qwen's form.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isthmus.errors import ConfigError, suggestion
from isthmus.model.backbones.tiny import END, PAD, START, VOCABULARY, byte_tokenizer
from isthmus.model.backbones.tiny_repository import random_model

SPECIAL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Special tokens, whose ids follow the byte vocabulary."""
IM_START, IM_END, VISION_START, VISION_END, IMAGE, VIDEO = range(VOCABULARY, VOCABULARY + 6)
ROWS = VOCABULARY + 13
"""Rows of the embedding: more than there are tokens, as released models have."""
PATCH, MERGE = 4, 2
SIDE = PATCH * MERGE
"""Side in pixels of a square of patches."""
PIXELS = {"shortest_edge": 2 * SIDE**2, "longest_edge": 48 * SIDE**2}
"""Least and most pixels of an image."""
WIDTH, VISION_WIDTH = 64, 32

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _text(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "vocab_size": ROWS,
        "bos_token_id": START,
        "eos_token_id": IM_END,
        "pad_token_id": PAD,
        **more,
    }


def _rope(*section: int, **more: Any) -> dict[str, Any]:
    theta = {"rope_type": "default", "rope_theta": 10_000.0}
    return {"rope_parameters": {**theta, "mrope_section": list(section), **more}}


_VISION = {
    "depth": 3,
    "num_heads": 2,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": 2,
}
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2_vl": (
        "Qwen2VL",
        _text(**_rope(2, 3, 3)),
        {**_VISION, "embed_dim": VISION_WIDTH, "hidden_size": WIDTH, "mlp_ratio": 2},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        _text(**_rope(2, 3, 3)),
        {
            **_VISION,
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 48,
            "out_hidden_size": WIDTH,
            "window_size": 2 * SIDE,
            "fullatt_block_indexes": [1],
        },
    ),
    "qwen3_vl": (
        "Qwen3VL",
        _text(head_dim=16, **_rope(4, 2, 2, mrope_interleaved=True)),
        {
            **_VISION,
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 48,
            "out_hidden_size": WIDTH,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
    ),
}
"""Transformers' names of classes, and options of text and vision, by model types."""


def write_tiny_qwen_vl(
    folder: str | Path, family: str = "qwen2_5_vl", *, seed: int = 0, **changes: Any
) -> Path:
    """Writes a Qwen-VL with random weights to a folder.

    Args:
        folder: Where to; made if missing.
        family: One of `FAMILIES`.
        seed: Seed of the weights; the global generator is left alone.
        **changes: Options of the configuration of the whole model, such as `tie_word_embeddings`.

    Returns:
        The folder.

    Raises:
        ConfigError: If the family is unknown.

    Example:
        >>> import isthmus as im, tempfile
        >>> model = im.load(write_tiny_qwen_vl(tempfile.mkdtemp()))
        >>> model.config.media, model.language.axes
        ((NativeImages(min_pixels=None, max_pixels=None),), 3)
    """
    import transformers

    if family not in FAMILIES:
        raise ConfigError(f'unknown family "{family}": {suggestion(family, FAMILIES)}')
    name, text, vision = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(
        text_config=dict(text),
        vision_config=dict(vision),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        **changes,
    )
    silent = [IMAGE, VIDEO, VISION_START, VISION_END]
    architecture = f"{name}ForConditionalGeneration"
    model = random_model(
        getattr(transformers, architecture), config, seed=seed, never=silent, end=[IM_END, END]
    )
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    tokenizer.eos_token = "<|im_end|>"
    options = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    images = transformers.Qwen2VLImageProcessor(size=dict(PIXELS), **options)
    videos = "Qwen3VL" if family == "qwen3_vl" else "Qwen2VL"
    processor = getattr(transformers, f"{name}Processor")(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=getattr(transformers, f"{videos}VideoProcessor")(**options),
        chat_template=CHAT_TEMPLATE,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)
