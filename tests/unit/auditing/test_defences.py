"""Smoothing and crops: certified radii of linear models, abstention, and their votes."""

from __future__ import annotations

from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from isthmus.auditing.attacks.attackable import Attackable, accuracy, attackable_of, scores
from isthmus.auditing.attacks.attacking import attack
from isthmus.auditing.attacks.defences import (
    Certificate,
    averaged,
    certified_accuracy,
    certify,
    crop_view,
    gaussian_view,
    votes,
)
from isthmus.errors import InputError

# Not a seed that a sample of noise has too, which would then be the weight itself
WEIGHT = torch.randn(192, generator=torch.Generator().manual_seed(987_654_321))
UNIT = WEIGHT / WEIGHT.norm()


def border() -> Attackable:
    """Two classes, to both sides of a plane through plain grey."""

    def logits(x: Tensor) -> Tensor:
        side = (x - 0.5).flatten(1) @ UNIT
        return torch.stack([side, -side], dim=1)

    return attackable_of(logits, (8, 8))


def at(distance: float) -> Tensor:
    """An image at this distance from the plane, inside of [0, 1]."""
    return (0.5 + distance * UNIT).view(1, 3, 8, 8)


def test_the_certified_radius_of_a_linear_model_is_its_distance() -> None:
    """With p = Phi(distance / sigma), sigma Phi^-1(p) is the distance itself."""
    sigma, subject = 0.25, border()
    pixels = torch.cat([at(d) for d in (0.1, 0.2, 0.3, -0.2)])
    made = certify(subject, pixels, sigma=sigma, n=10_000, batch_size=400)
    assert [c.label for c in made] == [0, 0, 0, 1]
    for certificate, distance in zip(made, (0.1, 0.2, 0.3, 0.2), strict=True):
        assert distance - 0.03 < certificate.radius <= distance
        p = NormalDist().cdf(distance / sigma)
        assert certificate.votes / certificate.n == pytest.approx(p, abs=0.02)


def test_the_bound_is_clopper_and_pearson_s() -> None:
    """All n votes for one class: the bound is alpha ** (1 / n)."""
    subject = border()
    (made,) = certify(subject, at(1.2), sigma=0.25, n=500, alpha=0.01)
    assert made.votes == 500
    expected = 0.25 * NormalDist().inv_cdf(0.01 ** (1 / 500))
    assert made.radius == pytest.approx(expected, rel=1e-9)


def test_smoothing_abstains_on_the_border() -> None:
    made = certify(border(), torch.cat([at(0.0), at(0.002)]), sigma=0.25, n=1000)
    assert [(c.label, c.radius) for c in made] == [(None, 0.0)] * 2
    assert all(420 < c.votes < 580 for c in made)


def test_a_wrong_certificate_is_rarer_than_alpha() -> None:
    """On the border both answers are wrong, so no more than alpha of them may be given.

    Were the samples that pick the class counted again, it would be twice as many.
    """
    told = {"sigma": 0.25, "select": 99, "n": 99, "alpha": 0.05, "batch_size": 99}
    subject, image = border(), at(0.0)
    given = sum(certify(subject, image, seed=s, **told)[0].label is not None for s in range(400))  # type: ignore[arg-type]
    assert 0 < given <= 18  # 14 are expected, since votes are whole numbers; 28 of one sample


def test_votes_depend_neither_on_the_batch_nor_on_the_images_beside() -> None:
    subject, view = border(), gaussian_view(0.25)
    pixels = torch.cat([at(d) for d in (0.0, 0.1, -0.1)])
    all_ = votes(subject, pixels, view, n=50, seed=1)
    assert torch.equal(all_, votes(subject, pixels, view, n=50, seed=1, batch_size=7))
    assert torch.equal(all_[1:2], votes(subject, pixels[1:2], view, n=50, seed=1))
    assert torch.equal(
        all_, votes(subject, pixels, view, n=20, seed=1)
        + votes(subject, pixels, view, n=30, seed=1, first=20)
    )  # fmt: skip
    assert not torch.equal(all_, votes(subject, pixels, view, n=50, seed=2))
    assert all_.sum(dim=1).tolist() == [50] * 3


def test_crops_see_what_is_in_them() -> None:
    """The class is red or green; only the left half is red."""
    subject = attackable_of(lambda x: x.mean((2, 3)), (8, 8))
    pixels = torch.zeros(1, 3, 8, 8)
    pixels[:, 0, :, :4] = 1.0
    pixels[:, 1, :, 4:] = 1.0
    counts = votes(subject, pixels, crop_view(0.25), n=400)[0]
    # Crops of 2 columns start at 0 to 6: left at 0 to 2, both at 3, right at 4 to 6
    assert counts[0] / 400 == pytest.approx(3.5 / 7, abs=0.15)
    assert counts[1] / 400 >= 3 / 7 - 0.1
    assert counts[2] == 0
    whole = crop_view(1.0)(pixels, torch.Generator())
    torch.testing.assert_close(whole, pixels)


def test_the_averaged_model_is_the_mean_probability_and_can_be_attacked() -> None:
    subject = border()
    pixels = torch.cat([at(0.2), at(-0.1)])
    view = gaussian_view(0.25)
    made = averaged(subject, view, samples=400, seed=5)
    told = scores(made, pixels).exp()
    torch.testing.assert_close(told.sum(dim=1), torch.ones(2))
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(9)) * 0.25
    for row, distance in zip(told, (0.2, -0.1), strict=True):
        expected = torch.sigmoid(2 * (distance + noise)).mean()
        assert float(row[0]) == pytest.approx(float(expected), abs=0.02)
    few = averaged(subject, view, samples=5)
    targets = torch.tensor([0, 1])
    found = attack(few, pixels, targets, method="pgd", norm="l2", eps=0.5)
    assert accuracy(few, found, targets) == 0
    torch.testing.assert_close(scores(few, pixels)[1:], scores(few, pixels[1:]))


def test_certified_accuracy_by_hand() -> None:
    made = [
        Certificate(0, 0.5, 900, 1000),
        Certificate(1, 0.9, 999, 1000),
        Certificate(1, 0.1, 700, 1000),
        Certificate(None, 0.0, 510, 1000),
    ]
    targets = [0, 0, 1, 1]
    found = [certified_accuracy(made, targets, radius) for radius in (0.0, 0.1, 0.25, 0.6)]
    assert found == [0.5, 0.5, 0.25, 0.0]


def test_bad_input_is_told() -> None:
    subject = border()
    with pytest.raises(InputError, match="sigma"):
        certify(subject, at(0.1), sigma=0.0)
    with pytest.raises(InputError, match="alpha"):
        certify(subject, at(0.1), sigma=0.1, alpha=0.5)
    with pytest.raises(InputError, match="share"):
        crop_view(1.5)
    with pytest.raises(InputError, match="views"):
        votes(subject, at(0.1), crop_view(0.5), n=0)
    with pytest.raises(InputError, match="samples"):
        averaged(subject, crop_view(0.5), samples=0)
    with pytest.raises(InputError, match="expected one for each"):
        certified_accuracy([], [], 0.1)
