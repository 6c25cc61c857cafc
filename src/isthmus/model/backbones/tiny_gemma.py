"""Tiny Gemma 3 and PaliGemma in folders, as their repositories are: for tests, and for trying out.

They are Transformers' own classes with random weights, their processors, and a byte tokenizer with
the tokens around an image.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from isthmus.model.backbones.tiny import END, PAD, VOCABULARY, tiny_language_config
from isthmus.model.backbones.tiny_whole import shaken, tokenizer_with

IMAGE, BEGIN, AFTER = VOCABULARY, VOCABULARY + 1, VOCABULARY + 2
"""Ids of the token of an image, and of those before and behind it in Gemma 3."""
ROWS = VOCABULARY + 9
"""Rows of the embedding: more than there are tokens, as released models have."""
SIZE, PATCH = 32, 4
"""Sides of an image and of a patch, in pixels."""
TOKENS = 4
"""Visual tokens that Gemma 3 makes of an image."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<start_of_image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def _tower() -> dict[str, Any]:
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": PATCH,
        "vision_use_head": False,
    }


def _save(make: Callable[[], Any], processor: Any, folder: str | Path, seed: int) -> Path:
    import torch

    model = shaken(make, seed)
    with torch.no_grad():
        model.get_input_embeddings().weight[IMAGE] = 0  # and so the head's, which nobody says
    model.generation_config.eos_token_id = END
    model.generation_config.pad_token_id = PAD
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def write_tiny_gemma3(
    folder: str | Path, *, window: int = 16, slides: bool = True, seed: int = 0
) -> Path:
    r"""Writes a Gemma 3 with random weights to a folder.

    Args:
        folder: Where to; made if missing.
        window: How many tokens those of a sliding layer see.
        slides: Whether every other layer slides; otherwise none does.
        seed: Seed of the weights; the global generator is left alone.

    Returns:
        The folder.

    Example:
        >>> import isthmus as im, tempfile
        >>> model = im.load(write_tiny_gemma3(tempfile.mkdtemp()))
        >>> model.config.connector.tokens, model.config.tokens.text_before
        (4, '\n\n<start_of_image>')
    """
    import transformers

    text = tiny_language_config("gemma3", vocab=ROWS).to_dict()
    kinds = ["sliding_attention" if slides and n % 2 == 0 else "full_attention" for n in range(4)]
    text |= {"sliding_window": window, "layer_types": kinds}
    config = transformers.Gemma3Config(
        vision_config=_tower(),
        text_config=text,
        mm_tokens_per_image=TOKENS,
        boi_token_index=BEGIN,
        eoi_token_index=AFTER,
        image_token_index=IMAGE,
    )
    tokenizer = tokenizer_with(
        image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>"]})
    images = transformers.Gemma3ImageProcessor(
        size={"height": SIZE, "width": SIZE}, do_pan_and_scan=False
    )
    processor = transformers.Gemma3Processor(
        images, tokenizer, chat_template=CHAT_TEMPLATE, image_seq_length=TOKENS
    )
    return _save(
        lambda: transformers.Gemma3ForConditionalGeneration(config), processor, folder, seed
    )


def write_tiny_paligemma(
    folder: str | Path, *, language: str = "gemma", window: int = 8, seed: int = 0
) -> Path:
    """Writes a PaliGemma with random weights to a folder.

    Args:
        folder: Where to; made if missing.
        language: "gemma", or "gemma2" for PaliGemma 2, whose layers slide.
        window: How many tokens those of a sliding layer see.
        seed: Seed of the weights; the global generator is left alone.

    Returns:
        The folder.

    Example:
        >>> import isthmus as im, tempfile
        >>> model = im.load(write_tiny_paligemma(tempfile.mkdtemp()))
        >>> model.config.template, model.layout.places
        ('paligemma', 64)
    """
    import transformers

    text = tiny_language_config(language, vocab=ROWS).to_dict()
    if language == "gemma2":
        text["sliding_window"] = window
    config = transformers.PaliGemmaConfig(
        vision_config=_tower(),
        text_config=text,
        image_token_index=IMAGE,
        projection_dim=text["hidden_size"],
        hidden_size=text["hidden_size"],
    )
    tokenizer = tokenizer_with(image_token="<image>")
    images = transformers.SiglipImageProcessor(size={"height": SIZE, "width": SIZE})
    images.image_seq_length = (SIZE // PATCH) ** 2
    processor = transformers.PaliGemmaProcessor(images, tokenizer)
    return _save(
        lambda: transformers.PaliGemmaForConditionalGeneration(config), processor, folder, seed
    )
