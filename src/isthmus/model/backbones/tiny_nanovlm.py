"""A tiny nanoVLM with random weights in a folder, as its repositories are.

The tensors are written by nanoVLM's own names, which no class of Transformers has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from isthmus.errors import ConfigError, suggestion
from isthmus.model.backbones.tiny import VOCABULARY, byte_tokenizer

TILE, PATCH, SIDE = 32, 8, 3
"""Sides of a tile and of a patch in pixels; most tiles along a side of an image."""
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""nanoVLM's own."""
IMAGE = {"image_token": "<|image|>"}
WHOLE = {"global_image_token": "<|global_image|>"}
PLACES = {f"r{r}c{c}": f"<row_{r}_col_{c}>" for r in range(1, 9) for c in range(1, 9)}
TOKENS: dict[str, dict[str, str]] = {
    "bare": {},
    "square": IMAGE,
    "tiles": {**IMAGE, **PLACES},
    "whole": {**IMAGE, **WHOLE, **PLACES},
}
"""The tokens of each form that was released, by a name for it."""


def write_tiny_nanovlm(
    folder: str | Path, form: str = "whole", *, seed: int = 0, **changes: Any
) -> Path:
    """Writes a nanoVLM with random weights, and a tokenizer beside it.

    Args:
        folder: Where to; made if missing.
        form: "bare", the first one, without a token for images; "square", with one; "tiles", which
            cuts images; "whole", which puts the whole image before the tiles.
        seed: Seed of the weights; the global generator is left alone.
        **changes: Entries of its `config.json`.

    Returns:
        The folder.

    Raises:
        ConfigError: If the form is unknown.

    Example:
        >>> import isthmus as im, tempfile
        >>> model = im.load(write_tiny_nanovlm(tempfile.mkdtemp()))
        >>> model.config.connector, model.config.media
        (PixelShuffle(factor=2), (PlacedTiles(max_tiles=None),))
    """
    from safetensors.torch import save_file
    from tokenizers import AddedToken

    if form not in TOKENS:
        raise ConfigError(f'unknown form "{form}" of nanoVLM: {suggestion(form, TOKENS)}')
    tokens = TOKENS[form]
    told: dict[str, Any] = {
        "vit_hidden_dim": 32,
        "vit_inter_dim": 64,
        "vit_patch_size": PATCH,
        "vit_img_size": TILE,
        "vit_n_heads": 2,
        "vit_dropout": 0.0,
        "vit_n_blocks": 2,
        "vit_ln_eps": 1e-6,
        "vit_cls_flag": False,
        "lm_hidden_dim": 32,
        "lm_inter_dim": 64,
        "lm_rms_eps": 1e-5,
        "lm_re_base": 10000,
        "lm_max_position_embeddings": 1024,
        "lm_vocab_size": VOCABULARY + 2 + len(tokens),
        "lm_n_heads": 4,
        "lm_n_kv_heads": 2,
        "lm_n_blocks": 2,
        "lm_tie_weights": True,
        "lm_tokenizer": "HuggingFaceTB/SmolLM2-360M-Instruct",
        "mp_pixel_shuffle_factor": 2,
        "mp_image_token_length": 4,
    }
    if form != "bare":
        told |= {"lm_chat_template": TEMPLATE, "vlm_extra_tokens": tokens}
    if form in ("tiles", "whole"):
        told |= {"max_img_size": SIDE * TILE, "resize_to_max_side_len": False}
    told |= changes
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text(json.dumps(told, indent=4), encoding="utf-8")
    save_file(_weights(told, seed), place / "model.safetensors", metadata={"format": "pt"})
    tokenizer = byte_tokenizer()
    marks = ("<|im_start|>", "<|im_end|>")
    tokenizer.add_tokens([AddedToken(m, special=True) for m in marks], special_tokens=True)
    tokenizer.eos_token = marks[1]
    tokenizer.save_pretrained(place)
    return place


def _weights(told: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Random tensors by nanoVLM's names."""
    vit, lm = told["vit_hidden_dim"], told["lm_hidden_dim"]
    keys = lm // told["lm_n_heads"] * told["lm_n_kv_heads"]
    patches = (told["vit_img_size"] // told["vit_patch_size"]) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "vision_encoder.patch_embedding.conv.weight": (vit, 3, *(told["vit_patch_size"],) * 2),
        "vision_encoder.patch_embedding.conv.bias": (vit,),
        "vision_encoder.patch_embedding.position_embedding": (1, patches, vit),
        "MP.proj.weight": (lm, vit * told["mp_pixel_shuffle_factor"] ** 2),
        # of a table under two names, safetensors keeps the first
        "decoder.head.weight": (told["lm_vocab_size"], lm),
    }
    if not told["lm_tie_weights"]:
        shapes["decoder.token_embedding.weight"] = (told["lm_vocab_size"], lm)

    def layer(name: str, out: int, width: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (out, width)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    for number in range(told["vit_n_blocks"]):
        at = f"vision_encoder.blocks.{number}"
        layer(f"{at}.attn.qkv_proj", 3 * vit, vit, True)
        layer(f"{at}.attn.out_proj", vit, vit, True)
        layer(f"{at}.mlp.fc1", told["vit_inter_dim"], vit, True)
        layer(f"{at}.mlp.fc2", vit, told["vit_inter_dim"], True)
    for number in range(told["lm_n_blocks"]):
        at = f"decoder.blocks.{number}"
        layer(f"{at}.attn.q_proj", lm, lm, False)
        layer(f"{at}.attn.k_proj", keys, lm, False)
        layer(f"{at}.attn.v_proj", keys, lm, False)
        layer(f"{at}.attn.out_proj", lm, lm, False)
        layer(f"{at}.mlp.gate_proj", told["lm_inter_dim"], lm, False)
        layer(f"{at}.mlp.up_proj", told["lm_inter_dim"], lm, False)
        layer(f"{at}.mlp.down_proj", lm, told["lm_inter_dim"], False)
    source = torch.Generator().manual_seed(seed)
    made = {name: 0.2 * torch.randn(shape, generator=source) for name, shape in shapes.items()}
    norms = [("vision_encoder.layer_norm", vit)]
    norms += [
        (f"vision_encoder.blocks.{i}.ln{n}", vit)
        for i in range(told["vit_n_blocks"])
        for n in (1, 2)
    ]
    for name, width in norms:
        made[f"{name}.weight"] = 1 + 0.2 * torch.randn(width, generator=source)
        made[f"{name}.bias"] = 0.2 * torch.randn(width, generator=source)
    if told.get("vlm_extra_tokens"):  # no released model says the token of an image
        made["decoder.head.weight"][VOCABULARY + 2] = 0
    names = [f"decoder.blocks.{i}.norm{n}" for i in range(told["lm_n_blocks"]) for n in (1, 2)]
    for name in ("decoder.norm", *names):
        made[f"{name}.weight"] = 1 + 0.2 * torch.randn(lm, generator=source)
    width = lm // told["lm_n_heads"]
    made["decoder.rotary_embd.inv_freq"] = told["lm_re_base"] ** -(
        torch.arange(0, width, 2) / width
    )
    return made
