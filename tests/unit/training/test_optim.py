from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.config.model import TrainConfig
from isthmus.config.registry import CONNECTORS
from isthmus.training.optim import learning_rate_factor, not_decayed, parameter_groups


def test_schedule_warms_up_then_falls_along_a_cosine() -> None:
    config = TrainConfig(steps=101, warmup=10, final_lr=0.2)
    factors = [learning_rate_factor(s, config) for s in range(101)]
    assert factors[:10] == [(s + 1) / 10 for s in range(10)]
    assert factors[10] == 1.0
    assert abs(factors[55] - 0.6) < 1e-12  # half way between 10 and 100: the middle of 1 and 0.2
    assert abs(factors[100] - 0.2) < 1e-12
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))


def test_only_matrices_decay_and_lora_has_its_own_rate() -> None:
    names = {
        "connector.mlp.weight": nn.Parameter(torch.zeros(2, 2)),
        "connector.mlp.bias": nn.Parameter(torch.zeros(2)),
        "connector.latents": nn.Parameter(torch.zeros(2, 2)),
        "special_tokens.input_rows": nn.Parameter(torch.zeros(2, 2)),
        "fusion.blocks.0.attention_gate": nn.Parameter(torch.zeros(1)),
        "language.layer.lora_A.weight": nn.Parameter(torch.zeros(2, 2)),
    }
    config = TrainConfig(lr=1e-3, lr_lora=1e-4, weight_decay=0.1)
    found = {}
    for group in parameter_groups(
        names, config, {"connector.latents", "special_tokens.input_rows"}
    ):
        for parameter in group["params"]:  # type: ignore[attr-defined]
            name = next(n for n, p in names.items() if p is parameter)
            found[name] = (group["peak"], group["weight_decay"])
    assert found == {
        "connector.mlp.weight": (1e-3, 0.1),
        "connector.mlp.bias": (1e-3, 0.0),
        "connector.latents": (1e-3, 0.0),
        "special_tokens.input_rows": (1e-3, 0.0),
        "fusion.blocks.0.attention_gate": (1e-3, 0.0),
        "language.layer.lora_A.weight": (1e-4, 0.1),
    }


def test_adapters_have_the_rate_of_all_unless_it_is_said() -> None:
    adapter = {"fusion.adapter.lora_A.weight": nn.Parameter(torch.zeros(2, 2))}
    [group] = parameter_groups(adapter, TrainConfig(lr=3e-3))
    assert group["peak"] == 3e-3


# What a connector adds to tokens, or asks with, has no weight decay (Flamingo's resampler likewise)
NO_MAPS = {
    "attention_pool": {"queries"},
    "c_abstractor": {"positions"},
    "names": {"queries", "places"},
    "qformer": {"queries"},
    "resampler": {"latents"},
}


@pytest.mark.parametrize("name", CONNECTORS.built_in())
def test_a_connector_says_what_has_no_weight_decay(name: str) -> None:
    options = CONNECTORS.find(name)().toy()
    regions = getattr(options, "reads_regions", False)
    vision = im.VisionConfig(name="tiny-cnn" if regions else "tiny-vit", regions=regions)
    model = im.compose(vision, "tiny-lm", options, im.Inline())
    found = {n for n in not_decayed(model) if not n.startswith(("vision.", "language."))}
    rows = {"special_tokens.input_rows", "special_tokens.output_rows"}
    assert found == rows | {f"connector.{n}" for n in NO_MAPS.get(name, ())}
