"""Transfer of adversarial images between models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from isthmus.auditing.attacks.attackable import attackable_of, scores
from isthmus.auditing.attacks.attacking import attack
from isthmus.auditing.attacks.transfer import resized, transfer
from isthmus.errors import InputError


def test_images_fool_the_half_that_they_were_made_against() -> None:
    """Two models that look at different halves: nothing transfers, and all does to a copy."""
    weight = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))

    def half(which: slice) -> Any:
        return attackable_of(lambda x: (x[:, :, which] - 0.5).flatten(1) @ weight.T, (8, 8))

    top, bottom = half(slice(0, 4)), half(slice(4, 8))
    one = 0.4 + 0.2 * torch.rand(30, 3, 4, 8, generator=torch.Generator().manual_seed(1))
    pixels = torch.cat([one, one], dim=2)  # so that both agree
    targets = scores(top, pixels).argmax(dim=-1)
    told: dict[str, Any] = {"method": "pgd", "norm": "linf", "eps": 0.1}
    made = {
        "top": attack(top, pixels, targets, **told),
        "bottom": attack(bottom, pixels, targets, **told),
    }
    found = transfer(made, {"top": top, "bottom": bottom, "copy": top}, pixels, targets)
    assert found.sources == ("top", "bottom")
    assert found.models == ("top", "bottom", "copy")
    assert found.clean == (1.0, 1.0, 1.0)
    assert found.accuracies == ((0.0, 1.0, 0.0), (1.0, 0.0, 1.0))
    assert (found.n, found.note) == (30, "")


def test_images_are_resized_to_a_model_of_another_size() -> None:
    def channels(x: Tensor) -> Tensor:
        return x.mean((2, 3))

    small, large = attackable_of(channels, (8, 8)), attackable_of(channels, (16, 16))
    pixels = torch.eye(3)[:, :, None, None].expand(3, 3, 8, 8).contiguous()
    found = transfer({"small": pixels.roll(1, 0)}, {"large": large}, pixels, torch.arange(3))
    assert found.clean == (1.0,)
    assert found.accuracies == ((0.0,),)
    assert found.note == "resized to the input of large"
    assert transfer({"a": pixels}, {"small": small}, pixels, torch.arange(3)).note == ""


def test_resizing_keeps_the_range_and_plain_images() -> None:
    pixels = (torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    found = resized(pixels, (5, 12))
    assert found.shape == (2, 3, 5, 12)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    plain = torch.full((1, 3, 9, 7), 0.3)
    torch.testing.assert_close(resized(plain, (4, 4)), torch.full((1, 3, 4, 4), 0.3))
    assert resized(pixels, (9, 7)) is pixels


def test_what_does_not_fit_is_told() -> None:
    one = attackable_of(lambda x: x.mean((2, 3)), (8, 8))
    pixels, targets = torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])
    with pytest.raises(InputError, match="at least 1 of each"):
        transfer({}, {"one": one}, pixels, targets)
    with pytest.raises(InputError, match="one for each"):
        transfer({"a": pixels[:1]}, {"one": one}, pixels, targets)
    with pytest.raises(InputError, match="numbers of classes"):
        transfer({"a": pixels}, {"one": one, "two": replace(one, classes=4)}, pixels, targets)
