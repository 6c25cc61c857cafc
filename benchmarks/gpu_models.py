"""Models of stated sizes with random weights, for `gpu.py`: nothing is downloaded.

Their tokenizer is over bytes. Only the 26 small letters are ever the likeliest token, so no text
ends early, and an answer has as many tokens as characters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

import isthmus as im
from isthmus.model.backbones.added_tokens import AddedTokens
from isthmus.model.backbones.tiny import END, PAD, START, byte_tokenizer

ROWS = 49_152
"""Rows of the embedding, as SmolLM2 has them."""
LETTERS = slice(97, 123)


@dataclass(frozen=True)
class Size:
    """Sizes of a language model of Llama's family, and of the CLIP tower before it."""

    width: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    rows: int = ROWS
    tower_width: int = 768
    tower_layers: int = 12
    image: int = 224
    patch: int = 16


SIZES = {
    "toy": Size(64, 128, 4, 4, 2, rows=512, tower_width=32, tower_layers=3, image=32, patch=8),
    "135M": Size(576, 1_536, 30, 9, 3),  # as SmolLM2-135M
    "360M": Size(960, 2_560, 32, 15, 5),  # as SmolLM2-360M
    "1.1B": Size(2_048, 8_192, 16, 32, 8),  # as Llama 3.2 1B, with fewer words
    "7B": Size(4_096, 14_336, 32, 32, 8),  # as Mistral 7B, likewise
}


@contextmanager
def built_in(dtype: torch.dtype, device: str) -> Iterator[None]:
    """New parameters are of this data type and on this device, so that nothing is converted."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def language_model(size: str, dtype: torch.dtype, device: str, *, rows: int = 0) -> Any:
    """A Llama with random weights that writes small letters.

    Args:
        size: One of `SIZES`.
        dtype: Data type of its weights.
        device: Where they are.
        rows: Rows of the embedding; 0 for those of the size.
    """
    import transformers

    of = SIZES[size]
    config = transformers.LlamaConfig(
        vocab_size=rows or of.rows,
        hidden_size=of.width,
        intermediate_size=of.inner,
        num_hidden_layers=of.layers,
        num_attention_heads=of.heads,
        num_key_value_heads=of.key_heads,
        max_position_embeddings=4_096,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
    )
    torch.manual_seed(0)
    with built_in(dtype, device):
        model: Any = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # the usual 0.02 would make every token's logits alike
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
        kept = model.lm_head.weight[LETTERS].clone()
        model.lm_head.weight.zero_()
        model.lm_head.weight[LETTERS] = kept
    model.generation_config.eos_token_id = END
    model.generation_config.pad_token_id = PAD
    return model.eval()


def bare(size: str, dtype: torch.dtype, device: str) -> im.VisionLanguageModel:
    """The language model alone, as our engine takes it."""
    from isthmus.model.join import bare_language_model

    return bare_language_model(language_model(size, dtype, device), tokenizer=byte_tokenizer())


def write_inline(folder: Path, size: str, dtype: torch.dtype, device: str) -> Path:
    """An inline model, exported: CLIP's tower, two maps and the language model, as a LLaVA.

    Returns:
        The folder, which ours, `transformers serve` and vLLM load alike.
    """
    import transformers

    of = SIZES[size]
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=of.tower_width,
        intermediate_size=4 * of.tower_width,
        num_hidden_layers=of.tower_layers,
        num_attention_heads=max(2, of.tower_width // 64),
        image_size=of.image,
        patch_size=of.patch,
    )
    square = {"height": of.image, "width": of.image}
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": of.image}, crop_size=square)
    transformers.CLIPVisionModel(config).save_pretrained(folder / "tower")
    processor.save_pretrained(folder / "tower")
    language_model(size, dtype, device).save_pretrained(folder / "language")
    byte_tokenizer().save_pretrained(folder / "language")
    model = im.compose(
        im.VisionConfig(name=f"hf:{folder / 'tower'}", feature_layer=-2, resize="own"),
        im.LanguageConfig(name=f"hf:{folder / 'language'}"),
        im.MLP(),
        im.Inline(),
        device=device,
        dtype=dtype,
    )
    with torch.no_grad():
        cast(AddedTokens, model.special_tokens).output_rows.zero_()
    im.export(model, folder / "model")
    return folder / "model"
