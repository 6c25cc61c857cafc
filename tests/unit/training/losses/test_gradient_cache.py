"""Gradient caching gives every parameter the gradient of one large batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.errors import InputError
from isthmus.training.losses.contrastive import clip_loss, siglip_loss
from isthmus.training.losses.gradient_cache import RandomState, cached_backward

PAIRS, WIDTH = 12, 8


class Towers(nn.Module):
    """Two small towers with dropout, a temperature and a bias."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.image, self.text = (
            nn.Sequential(
                nn.Linear(WIDTH, 32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, WIDTH)
            )
            for _ in range(2)
        )
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.logit_bias = nn.Parameter(torch.tensor(-3.0))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.image(pixels), dim=-1)

    def encode_texts(self, texts: Tensor) -> Tensor:
        return F.normalize(self.text(texts), dim=-1)

    def loss(self, image: Tensor, text: Tensor) -> Tensor:
        scale = self.logit_scale.exp()
        return clip_loss(image, text, scale) + siglip_loss(image, text, scale, self.logit_bias)

    def gradients(self) -> dict[str, Tensor]:
        found = {n: p.grad.clone() for n, p in self.named_parameters() if p.grad is not None}
        self.zero_grad()
        return found


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    drawn = torch.randn(2, PAIRS, WIDTH, dtype=torch.float64)
    return drawn[0], drawn[1]


def cached(model: Towers, inputs: tuple[Tensor, Tensor], size: int) -> tuple[Tensor, ...]:
    image, text = inputs
    return (
        cached_backward(
            model.loss,
            (model.encode_pixels, image.split(size)),
            (model.encode_texts, text.split(size + 1)),
        ),
    )


def test_without_dropout_it_is_the_large_batch(inputs: tuple[Tensor, Tensor]) -> None:
    model = Towers(0.0).double()
    loss = model.loss(model.encode_pixels(inputs[0]), model.encode_texts(inputs[1]))
    loss.backward()
    expected = model.gradients()
    assert len(expected) == len(list(model.parameters()))
    for size in (1, 5, PAIRS):
        (value,) = cached(model, inputs, size)
        torch.testing.assert_close(value, loss.detach(), rtol=0, atol=1e-12)
        found = model.gradients()
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-12)


def test_dropout_is_replayed(inputs: tuple[Tensor, Tensor]) -> None:
    """As one graph over all chunks with the same random numbers, which then go on the same."""
    model = Towers(0.5).double()
    torch.manual_seed(1)
    image = torch.cat([model.encode_pixels(c) for c in inputs[0].split(5)])
    text = torch.cat([model.encode_texts(c) for c in inputs[1].split(6)])
    loss = model.loss(image, text)
    after = torch.rand(1)
    loss.backward()
    expected = model.gradients()
    torch.manual_seed(1)
    (value,) = cached(model, inputs, 5)
    assert torch.equal(torch.rand(1), after)
    torch.testing.assert_close(value, loss.detach(), rtol=0, atol=1e-12)
    for name, gradient in model.gradients().items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-12)


def test_the_dropout_test_can_fail(
    inputs: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RandomState, "restore", lambda self: None)
    with pytest.raises(AssertionError):
        test_dropout_is_replayed(inputs)


def test_one_autocast_around_everything(inputs: tuple[Tensor, Tensor]) -> None:
    """Weights that autocast casts without gradients must not be taken for the second pass."""
    model = Towers(0.0)
    with torch.autocast("cpu", torch.bfloat16):
        cached(model, (inputs[0].float(), inputs[1].float()), 4)
    found = model.gradients()
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all(float(g.abs().max()) > 0 for g in found.values())


def test_a_locked_tower_is_left_alone(inputs: tuple[Tensor, Tensor]) -> None:
    model = Towers(0.0).double()
    model.image.requires_grad_(False)
    cached(model, inputs, 4)
    found = model.gradients()
    assert not any(name.startswith("image") for name in found)
    assert float(found["text.0.weight"].abs().max()) > 0


def test_gradients_add_up_and_are_scaled(inputs: tuple[Tensor, Tensor]) -> None:
    model = Towers(0.0).double()
    cached(model, inputs, 4)
    once = model.gradients()
    sides = (model.encode_pixels, inputs[0].split(4)), (model.encode_texts, inputs[1].split(4))
    for _ in range(2):
        cached_backward(model.loss, *sides, scale=4.0)
    for name, gradient in model.gradients().items():
        torch.testing.assert_close(gradient, 8 * once[name], rtol=1e-12, atol=1e-15)


def test_no_chunks() -> None:
    with pytest.raises(InputError, match="a side without chunks"):
        cached_backward(lambda v: v.sum(), (lambda c: c, []))
