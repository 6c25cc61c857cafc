"""The smallest perturbation: the closed form of linear models, bounds, and what was never right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from isthmus.auditing.attacks.attackable import Attackable, attackable_of, scores
from isthmus.auditing.attacks.smallest import _summary, smallest_eps
from isthmus.errors import InputError


def linear(classes: int, scale: float) -> tuple[Attackable, Tensor]:
    weight = scale * torch.randn(classes, 192, generator=torch.Generator().manual_seed(1))
    return attackable_of(lambda x: (x - 0.5).flatten(1) @ weight.T, (8, 8)), weight


def grey(n: int) -> Tensor:
    return 0.4 + 0.2 * torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def closed_form(weight: Tensor, pixels: Tensor, norm: str) -> Tensor:
    logits = (pixels - 0.5).flatten(1) @ weight.T
    found = logits.argmax(dim=-1)
    gaps = logits.gather(1, found[:, None]) - logits
    apart = weight[found][:, None] - weight[None]
    dual = apart.abs().sum(-1) if norm == "linf" else apart.norm(dim=-1)
    return (gaps / dual.clamp(min=1e-9)).scatter(1, found[:, None], torch.inf).amin(dim=1)


@pytest.mark.parametrize(("classes", "scale"), [(2, 1.0), (5, 50.0)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_model_has_a_closed_form(classes: int, scale: float, norm: Any) -> None:
    subject, weight = linear(classes, scale)
    pixels = grey(10)
    targets = scores(subject, pixels).argmax(dim=-1)
    expected = closed_form(weight, pixels, norm)
    found = smallest_eps(subject, pixels, targets, norm=norm, steps=40, high=0.3, tolerance=1e-4)
    high = 0.3
    assert found.right == 10
    reached = [value for value in found.values if value is not None]
    assert len(reached) == int((expected < high).sum()) > 3
    for value, eps in zip(found.values, expected.tolist(), strict=True):
        if value is not None:
            assert value == pytest.approx(eps, abs=1e-3)
            assert value >= eps - 1e-5  # no perturbation can be smaller
    if len(reached) == 10:
        assert found.median == pytest.approx(float(expected.double().quantile(0.5)), abs=1e-3)


def test_wrong_and_unbreakable_images() -> None:
    subject, _ = linear(2, 1.0)
    pixels = grey(6)
    targets = scores(subject, pixels).argmax(dim=-1)
    wrong = targets.clone()
    wrong[:2] = 1 - wrong[:2]
    found = smallest_eps(subject, pixels, wrong, norm="linf", high=1e-5, tolerance=1e-6)
    assert found.values[:2] == (0.0, 0.0)
    assert found.values[2:] == (None,) * 4
    assert (found.right, found.broken) == (4, 0)
    assert found.median is found.breaks_half is None
    assert "0 of 4" in found.note
    none = smallest_eps(subject, pixels, 1 - targets, norm="linf", high=0.1, tolerance=0.01)
    assert (none.right, none.note) == (0, "no image was right")


def test_the_eps_that_breaks_half_by_hand() -> None:
    inf = float("inf")

    def summed(values: list[float], right: list[bool]) -> tuple[Any, Any]:
        told = torch.tensor(values, dtype=torch.float64), torch.tensor(right)
        made = _summary(*told, "linf", 9.0)
        return made.breaks_half, made.median

    assert summed([1, 4, 2, 3], [True] * 4) == (2.0, 2.5)
    assert summed([1, 3, 2], [True] * 3) == (2.0, 2.0)
    assert summed([0, 0, 5, 7, 9], [False, False, True, True, True]) == (7.0, 7.0)
    assert summed([1, 2, inf, inf], [True] * 4) == (2.0, None)
    assert summed([1, inf, inf], [True] * 3) == (None, None)


def test_shortening_follows_a_curved_border_to_the_bound() -> None:
    """The border is a sphere, so every direction has another length."""
    centre = torch.full((192,), 0.5)

    def logits(x: Tensor) -> Tensor:
        far = (x.flatten(1) - centre).square().sum(dim=1)
        return torch.stack([0.5 - far, torch.zeros_like(far)], dim=1) * 20

    subject = attackable_of(logits, (8, 8))
    pixels = 0.5 + 0.02 * torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    lengths = (pixels - 0.5).flatten(1).norm(dim=1)
    found = smallest_eps(
        subject, pixels, torch.zeros(5, dtype=torch.long), norm="l2", high=2.0, tolerance=1e-3
    )
    for value, length in zip(found.values, lengths.tolist(), strict=True):
        assert value == pytest.approx(0.5**0.5 - length, abs=2e-3)


def test_bisection_finds_what_the_largest_eps_leads_away_from() -> None:
    """Far away one direction is steep; near by another one is, and reaches the border sooner."""
    draw = torch.Generator().manual_seed(3)
    near, far = torch.linalg.qr(torch.randn(192, 2, generator=draw)).Q.T

    def logits(x: Tensor) -> Tensor:
        moved = (x - 0.5).flatten(1)
        rising = 4 * moved @ near + 30 * (moved @ far) * moved.square().sum(dim=1)
        return 20 * torch.stack([torch.zeros(len(x)), rising - 0.1], dim=1)

    subject, pixels = attackable_of(logits, (8, 8)), torch.full((1, 3, 8, 8), 0.5)
    told: Any = {"norm": "l2", "steps": 40, "high": 1.0}
    found = smallest_eps(subject, pixels, torch.tensor([0]), tolerance=1e-3, **told)
    assert found.values[0] == pytest.approx(0.1 / 4, abs=1e-3)
    coarse = smallest_eps(subject, pixels, torch.tensor([0]), tolerance=0.9, **told)
    assert coarse.values[0] is not None
    assert coarse.values[0] > 0.04  # along the direction of the largest eps


def test_a_found_perturbation_is_shortened_beyond_the_tolerance() -> None:
    subject, weight = linear(2, 1.0)
    pixels = grey(5)
    targets = scores(subject, pixels).argmax(dim=-1)
    found = smallest_eps(subject, pixels, targets, norm="linf", high=0.3, tolerance=0.29)
    expected = closed_form(weight, pixels, "linf").tolist()
    assert list(found.values) == pytest.approx(expected, abs=1e-3)


def test_bad_bounds_are_told() -> None:
    subject, _ = linear(2, 1.0)
    for bounds in ({"low": 0.2, "high": 0.1}, {"high": 0.1, "low": -1.0}):
        with pytest.raises(InputError, match="low < high"):
            smallest_eps(subject, grey(1), torch.tensor([0]), norm="linf", tolerance=1e-3, **bounds)
    with pytest.raises(InputError, match="more than 0"):
        smallest_eps(subject, grey(1), torch.tensor([0]), norm="linf", high=0.1, tolerance=0.0)
