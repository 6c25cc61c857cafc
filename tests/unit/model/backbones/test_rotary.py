"""Rotary frequencies of encoders are not rounded; what else is computed goes with the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from transformers import AutoModel, ModernBertConfig, ModernBertModel

import isthmus as im
from isthmus.model.backbones.text import TextConfig, TextEncoder
from isthmus.model.backbones.tiny import byte_tokenizer

HALF = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", HALF)
@torch.no_grad()
def test_a_text_encoder_in_half_precision_is_transformers_own(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    tokens |= {"cls_token_id": 1, "sep_token_id": 2}
    config = ModernBertConfig(vocab_size=300, num_hidden_layers=3, **sizes, **tokens)
    torch.manual_seed(0)
    model = ModernBertModel(config).eval()
    model.save_pretrained(tmp_path)
    theirs = AutoModel.from_pretrained(tmp_path, dtype=dtype).eval()
    ours = TextEncoder(model, byte_tokenizer(), TextConfig(name="object")).to(dtype)
    ids = torch.arange(1, 250)[None] % 200
    expected = theirs(input_ids=ids).last_hidden_state
    assert torch.equal(ours.model(input_ids=ids).last_hidden_state, expected)


@torch.no_grad()
def test_an_encoder_that_computes_with_other_buffers_runs_in_half_precision() -> None:
    """Swin 2 puts a table that no file holds through a linear map."""
    model = timm.create_model("swinv2_cr_tiny_ns_224", pretrained=False, img_size=64, window_size=2)
    vision = im.load_vision(model).to(torch.bfloat16)
    found = vision(torch.zeros(1, 3, *vision.image_size))
    assert found.dtype == torch.bfloat16
    assert bool(found.isfinite().all())
