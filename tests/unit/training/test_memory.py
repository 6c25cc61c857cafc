"""The memory estimate: weights exactly, activations near to what autograd keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.config.model import LanguageConfig, TrainConfig
from isthmus.model.backbones.language import LanguageModel
from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_model, tiny_vit_model
from isthmus.model.backbones.vision import load_vision
from isthmus.training.memory import Load, memory, saved_bytes


def test_weights_by_precision_and_sharding() -> None:
    model = im.compose("tiny-vit", "tiny-lm", im.MLP())
    load = Load(rows=1, tokens=8, images=1, labelled=4)
    own = model.summary().parts
    frozen, trained = sum(p.frozen for p in own), sum(p.trained for p in own)
    full = memory(model, TrainConfig(precision="fp32"), load)
    assert full["frozen weights"] == 4 * frozen
    assert full["trained weights"] == full["their gradients"] == 4 * trained
    assert full["AdamW's moments"] == 8 * trained
    assert full["logits"] == 3 * 4 * 4 * (model.language.vocab_rows + 2)
    half = memory(model, TrainConfig(precision="bf16"), load)
    assert half["frozen weights"] == 2 * frozen
    assert half["trained weights"] == 4 * trained
    sharded = memory(model, TrainConfig(precision="fp32", sharding="fsdp"), load, processes=4)
    assert sharded["AdamW's moments"] == 2 * trained


def test_saved_bytes_of_a_known_module() -> None:
    # a trained linear map keeps its input (3 x 4), the GELU its own (3 x 8), in fp32
    module = nn.Sequential(nn.Linear(4, 8), nn.GELU())
    assert saved_bytes(module, torch.zeros(3, 4)) == 4 * (3 * 4 + 3 * 8)


class Held:
    """Bytes that autograd holds of the forward pass, without parameters."""

    def __init__(self, model: nn.Module) -> None:
        self.own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.kept: dict[int, int] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.kept[storage.data_ptr()] = storage.nbytes()
        return tensor


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("fusion", [im.Inline(), im.CrossAttention(every=2, heads=4, head_dim=32)])
def test_activations_are_near_to_what_autograd_keeps(fusion: Any, checkpointing: bool) -> None:
    compare("llama", fusion, checkpointing)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "glm4_moe", "deepseek_v3"])
def test_activations_of_experts_and_of_latent_attention(family: str) -> None:
    compare(family, im.Inline(), False)


def compare(family: str, fusion: Any, checkpointing: bool) -> None:
    language = tiny_language_model(family, width=256, layers=6, heads=4, vocab=259)
    lm = LanguageModel(language, byte_tokenizer(), LanguageConfig(name="hf:object"))
    model = im.compose(load_vision(tiny_vit_model(width=64)), lm, im.MLP(), fusion)
    rows, tokens, tags = 4, 128, model.layout.places
    ids = torch.full((rows, tokens), 65)
    ids[:, 1 : 1 + tags] = model.special_tokens.image_id
    features = torch.randn(rows, 16, 64)
    batch = im.Batch(
        input_ids=ids, attention_mask=torch.ones_like(ids), features=features, labels=ids % 259
    )
    if checkpointing:
        model.language.checkpoint_activations()
    model.train()
    held = Held(model)
    with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda t: t):
        loss = model(batch).loss
    assert loss is not None
    config = TrainConfig(gradient_checkpointing=checkpointing, precision="fp32")
    load = Load(rows=rows, tokens=tokens, images=rows, labelled=rows * (tokens - 1))
    items = memory(model, config, load)
    kept = sum(n for name, n in items.items() if "layers'" in name or "blocks'" in name)
    kept += items["connector's activations"]
    # of what the logits take only they themselves outlive the forward pass
    logits = rows * (tokens - 1) * 261 * 4
    assert kept + logits == pytest.approx(sum(held.kept.values()), rel=0.1)
