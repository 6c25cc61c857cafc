"""What "auto" becomes, and that what is set is obeyed."""

from __future__ import annotations

import pytest
import torch

import isthmus as im
from isthmus.training.precision import choice, decided
from isthmus.training.vlm import freeze_in_half

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "attention", "expected"),
    [("fp32", "auto", "sdpa"), ("bf16", "auto", "eager"), ("bf16", "sdpa", "sdpa")],
)
def test_attention_follows_the_precision_unless_it_is_set(
    precision: str, attention: str, expected: str
) -> None:
    config = im.TrainConfig(precision=precision, attention=attention)  # type: ignore[arg-type]
    assert decided(config, CPU).attention == expected
    assert choice(config, CPU).endswith(f", attention {expected}")


@pytest.mark.parametrize(
    ("attention", "expected"), [("auto", "sdpa"), ("eager", "eager"), ("sdpa", "sdpa")]
)
def test_the_language_model_gets_the_attention(attention: str, expected: str) -> None:
    model = im.compose("tiny-vit", "tiny-lm", im.Linear())
    freeze_in_half(model, im.TrainConfig(precision="fp32", attention=attention))  # type: ignore[arg-type]
    assert model.language.model.config._attn_implementation == expected
