"""OpenFlamingo 2.0.1's language model with gated blocks, for the benchmarks that compare with it.

Where it is not installed, `is_installed` says so, and the benchmarks leave it out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import isthmus as im
from isthmus.assets.registry import fetch_asset

try:
    from open_flamingo.src.flamingo_lm import FlamingoLMMixin
    from open_flamingo.src.utils import extend_instance

    MISSING = ""
except ImportError as error:
    FlamingoLMMixin, MISSING = object, str(error)


def is_installed() -> bool:
    """Whether OpenFlamingo can be imported; if not, prints that it is left out, and the remedy."""
    if MISSING:
        print(
            f"OpenFlamingo is not installed and left out ({MISSING}): "
            "pip install --no-deps open-flamingo==2.0.1 einops einops-exts",
            flush=True,
        )
    return not MISSING


class CurrentMixin(FlamingoLMMixin):
    """OpenFlamingo's mixin beside a current Transformers, which leaves out a mask of ones."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **rest: Any) -> Any:
        """As theirs, with a mask that may be missing."""
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **rest)


def bare_model(vocabulary: int) -> Any:
    """SmolLM2-135M-Instruct in fp32 under OpenFlamingo's mixin, without blocks.

    Args:
        vocabulary: Number of rows of its embedding, those of OpenFlamingo's two tokens included.
    """
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(
        fetch_asset("smollm2-135m-instruct"), dtype=torch.float32
    )
    extend_instance(lm, CurrentMixin)
    lm.set_decoder_layers_attr_name("model.layers")
    lm.resize_token_embeddings(vocabulary, mean_resizing=False)
    return lm


def model_with_blocks(model: im.VisionLanguageModel, *, every: int, width: int, gate: float) -> Any:
    """`bare_model` with random gated blocks before every so many layers, for `model`'s tokens.

    Args:
        model: Ours.
        every: One block before so many layers.
        width: Width of the visual tokens.
        gate: Of all blocks, before tanh.
    """
    lm = bare_model(model.special_tokens.image_id + 2)
    lm.init_flamingo(
        media_token_id=model.special_tokens.image_id,
        lang_hidden_size=lm.config.hidden_size,
        vis_hidden_size=width,
        cross_attn_every_n_layers=every,
        gradient_checkpointing=False,
    )
    for block in lm.gated_cross_attn_layers:
        if block is not None:
            nn.init.constant_(block.attn_gate, gate)
            nn.init.constant_(block.ff_gate, gate)
    return lm.eval()


def show(model: Any, visual: Tensor) -> None:
    """Gives visual tokens (P, M, D) to all blocks, for every call until they are cleared."""
    model._use_cached_vision_x = True
    for layer in model._get_decoder_layers():
        layer.condition_vis_x(visual[None])
