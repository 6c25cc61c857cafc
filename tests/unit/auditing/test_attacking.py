"""Attacks: closed forms of linear models, bounds, and parity with other implementations."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.auditing.attacks.attackable import Attackable, accuracy, attackable_of, margins, scores
from isthmus.auditing.attacks.attacking import ATTACK_METHODS, attack, log_odds, noise
from isthmus.auditing.attacks.balls import distances, project
from isthmus.errors import ConfigError, InputError

SIDE = 8
NORMS: tuple[Any, ...] = ("linf", "l2")


def linear(classes: int, scale: float = 1.0, side: int = SIDE) -> tuple[Attackable, Tensor]:
    """logits = W (x - 1/2), and W."""
    weight = scale * torch.randn(
        classes, 3 * side * side, generator=torch.Generator().manual_seed(1)
    )
    return attackable_of(lambda x: (x - 0.5).flatten(1) @ weight.T, (side, side)), weight


def grey(n: int, side: int = SIDE) -> Tensor:
    """Images in the interior, so that clipping to [0, 1] never binds at a small eps."""
    return 0.4 + 0.2 * torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(2))


def closed_form(weight: Tensor, pixels: Tensor, norm: str) -> Tensor:
    """margin / dual norm of w_a - w_b, the least over b."""
    logits = (pixels - 0.5).flatten(1) @ weight.T
    found = logits.argmax(dim=-1)
    gaps = logits.gather(1, found[:, None]) - logits
    apart = weight[found][:, None] - weight[None]
    dual = apart.abs().sum(-1) if norm == "linf" else apart.norm(dim=-1)
    eps = gaps / dual.clamp(min=1e-12)
    return eps.scatter(1, found[:, None], torch.inf).amin(dim=1)


class Cnn(nn.Module):
    """A small network with fixed random weights."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.layers = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(8, 16, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(256, classes),
            )
        self.requires_grad_(False)
        some = torch.rand(500, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(6))
        self.centre = self.layers(some).mean(dim=0)  # else one class would take all images

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = 50 * (self.layers(pixels) - self.centre)
        return found


@pytest.fixture(scope="module")
def network() -> tuple[Attackable, Cnn, Tensor, Tensor]:
    """A network, and 200 images with what it says of them for labels."""
    net = Cnn()
    subject = attackable_of(net, (SIDE, SIDE))
    pixels = torch.rand(200, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    return subject, net, pixels, scores(subject, pixels).argmax(dim=-1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("classes", "method"), [(2, "fgsm"), (2, "pgd"), (2, "apgd-ce")])
def test_a_binary_linear_model_falls_at_the_closed_form(
    norm: Any, classes: int, method: Any
) -> None:
    subject, weight = linear(classes)
    pixels = grey(12)
    targets = scores(subject, pixels).argmax(dim=-1)
    eps = closed_form(weight, pixels, norm)
    assert float(eps.max()) < 0.4
    for factor, expected in ((1.001, 0.0), (0.999, 1.0)):
        told = {"method": method, "norm": norm, "steps": 20}
        if method == "apgd-ce":  # takes one eps for all
            some = [
                attack(
                    subject, pixels[i : i + 1], targets[i : i + 1], eps=factor * float(e), **told
                )
                for i, e in enumerate(eps)
            ]
            found = torch.cat(some)
        else:
            found = attack(subject, pixels, targets, eps=factor * eps, **told)
        assert accuracy(subject, found, targets) == expected


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_on_a_linear_model_of_five_classes(norm: Any) -> None:
    """The temperature is high, as CLIP's is, so that the nearest class alone pulls."""
    subject, weight = linear(5, scale=30.0)
    pixels = grey(12)
    targets = scores(subject, pixels).argmax(dim=-1)
    eps = closed_form(weight, pixels, norm)
    for factor, expected in ((1.01, 0.0), (0.999, 1.0)):
        found = attack(
            subject, pixels, targets, method="pgd", norm=norm, eps=factor * eps, steps=40
        )
        assert accuracy(subject, found, targets) == expected


def test_a_sure_model_still_has_a_gradient() -> None:
    """The right label's probability rounds to 1, and cross-entropy has no gradient left."""
    subject, weight = linear(2, scale=100.0)
    pixels = grey(40)
    sure = margins(scores(subject, pixels), scores(subject, pixels).argmax(dim=-1))
    pixels = pixels[sure > 40]
    assert len(pixels) > 5
    targets = scores(subject, pixels).argmax(dim=-1)
    eps = 1.001 * closed_form(weight, pixels, "linf")
    found = attack(subject, pixels, targets, method="fgsm", norm="linf", eps=eps)
    assert accuracy(subject, found, targets) == 0


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", ATTACK_METHODS)
def test_pixels_stay_within_the_ball_and_the_range(method: Any, norm: Any) -> None:
    subject, _ = linear(3, side=12)
    pixels = torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(3)).round(decimals=1)
    targets = scores(subject, pixels).argmax(dim=-1)
    for eps in (4 / 255, 0.3):
        told = {"norm": norm, "eps": eps, "steps": 5, "restarts": 2}
        found = attack(subject, pixels, targets, method=method, **told)
        assert float(found.min()) >= 0
        assert float(found.max()) <= 1
        reach = distances(found, pixels, norm)
        assert float(reach.max()) <= eps + 1e-6
        assert float(reach.max()) >= 0.5 * eps  # it used what it may
        again = attack(subject, pixels, targets, method=method, **told)
        assert torch.equal(found, again)


@pytest.mark.parametrize("norm", NORMS)
def test_noise_has_the_full_size_and_more_tries_break_no_less(norm: Any) -> None:
    subject, _ = linear(3)
    pixels = grey(40)
    targets = scores(subject, pixels).argmax(dim=-1)
    eps = 0.1 if norm == "linf" else 1.0
    one = noise(pixels, norm, eps, 0, 1, subject, targets)
    moved = distances(one, pixels, norm)
    assert sorted({round(d, 5) for d in moved.tolist()}) in ([eps], [0.0, eps])
    if norm == "linf":  # a corner: every pixel moves by all of eps
        assert {round(d, 5) for d in (one - pixels).abs().flatten().tolist()} == {0.0, eps}
    many = noise(pixels, norm, eps, 0, 20, subject, targets)
    own = [margins(scores(subject, p), targets) for p in (pixels, one, many)]
    assert bool((own[1] <= own[0]).all())
    assert float(own[2].mean()) < float(own[1].mean())


def test_images_that_were_wrong_are_left_alone(network: Any) -> None:
    subject, _, pixels, targets = network
    wrong = (targets + 1) % 4
    mixed = torch.where(torch.arange(200) < 100, targets, wrong)
    for method in ("fgsm", "square"):
        found = attack(subject, pixels, mixed, method=method, norm="linf", eps=0.1, steps=5)  # type: ignore[arg-type]
        assert torch.equal(found[100:], pixels[100:])
        assert not torch.equal(found[:100], pixels[:100])


def test_restarts_never_make_it_worse_and_the_best_margin_is_kept(network: Any) -> None:
    subject, _, pixels, targets = network
    told: dict[str, Any] = {"method": "pgd", "norm": "linf", "eps": 0.01, "steps": 2}
    one = attack(subject, pixels, targets, **told)
    five = attack(subject, pixels, targets, restarts=5, **told)
    first, best = (margins(scores(subject, p), targets) for p in (one, five))
    assert bool((best <= first).all())
    assert bool((best < first).any())
    assert bool((first <= margins(scores(subject, pixels), targets)).all())


@pytest.mark.parametrize("norm", NORMS)
def test_a_targeted_attack_reaches_the_wanted_class(network: Any, norm: Any) -> None:
    subject, _, pixels, targets = network
    wanted = (targets + 2) % 4
    eps = 0.2 if norm == "linf" else 2.0
    told = {"method": "pgd", "norm": norm, "eps": eps, "steps": 20}
    found = attack(subject, pixels, targets, wanted=wanted, **told)  # type: ignore[arg-type]
    assert accuracy(subject, found, wanted) > 0.95
    plain = attack(subject, pixels, targets, **told)  # type: ignore[arg-type]
    assert accuracy(subject, plain, wanted) < 0.9


def reference_pgd(
    net: nn.Module, pixels: Tensor, targets: Tensor, norm: str, eps: float, steps: int
) -> Tensor:
    """PGD in as few lines as it takes."""
    found, step = pixels.clone(), eps * 2.5 / steps
    for _ in range(steps):
        found = found.detach().requires_grad_()
        (grad,) = torch.autograd.grad(
            F.cross_entropy(net(found).double(), targets, reduction="sum"), found
        )
        if norm == "linf":
            moved = (found.detach() + step * grad.sign()).clamp(0, 1) - pixels
            delta = moved.clamp(-eps, eps)
        else:
            unit = grad / grad.flatten(1).norm(dim=1)[:, None, None, None]
            moved = (found.detach() + step * unit).clamp(0, 1) - pixels
            delta = moved * (eps / moved.flatten(1).norm(dim=1)).clamp(max=1)[:, None, None, None]
        found = (pixels + delta).clamp(0, 1)
    return found.detach()


@pytest.mark.parametrize(
    ("norm", "eps"), [("linf", 0.01), ("linf", 0.03), ("l2", 0.1), ("l2", 0.3)]
)
def test_pgd_agrees_with_a_plain_reference(network: Any, norm: Any, eps: float) -> None:
    subject, net, pixels, targets = network
    ours = attack(subject, pixels, targets, method="pgd", norm=norm, eps=eps, steps=10)
    theirs = reference_pgd(net, pixels, targets, norm, eps, 10)
    expected = accuracy(subject, theirs, targets)
    assert 0.02 < expected < 0.98  # else any attack would agree
    assert accuracy(subject, ours, targets) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.2)])
@pytest.mark.parametrize("method", ["fgsm", "pgd", "apgd-ce", "apgd-dlr", "square"])
def test_attacks_agree_with_torchattacks(network: Any, norm: Any, eps: float, method: Any) -> None:
    """Within a point; Square draws other squares, so its accuracies agree within three."""
    library = pytest.importorskip("torchattacks")
    subject, net, pixels, targets = network
    if method == "square":
        if norm == "l2":
            pytest.skip("ART's Square needs 10 pixels for L2")
        eps = 0.05
    if method == "fgsm" and norm == "l2":
        made: Any = library.PGDL2(net, eps=eps, alpha=eps, steps=1, random_start=False)
    elif method == "fgsm":
        made = library.FGSM(net, eps=eps)
    elif method == "pgd":
        made = (library.PGD if norm == "linf" else library.PGDL2)(
            net, eps=eps, alpha=eps / 4, steps=10, random_start=False
        )
    elif method == "square":
        made = library.Square(net, norm="Linf", eps=eps, n_queries=100, n_restarts=1, seed=0)
    else:
        told = {"norm": "Linf" if norm == "linf" else "L2", "eps": eps, "steps": 50, "seed": 0}
        made = library.APGD(net, loss=method[5:], n_restarts=1, **told)
    theirs = accuracy(subject, made(pixels, targets).detach().clamp(0, 1), targets)
    steps = {"pgd": 10, "square": 100}.get(method, 50)
    ours = accuracy(
        subject,
        attack(subject, pixels, targets, method=method, norm=norm, eps=eps, steps=steps),
        targets,
    )
    assert 0.02 < theirs < 0.98
    assert ours == pytest.approx(theirs, abs=0.03 if method == "square" else 0.01)


def test_square_uses_no_gradient() -> None:
    weight = torch.randn(3, 3 * 144, generator=torch.Generator().manual_seed(0))
    blind = attackable_of(lambda x: ((x - 0.5).flatten(1) @ weight.T).detach(), (12, 12))
    assert not blind.has_gradient
    pixels = grey(20, side=12)
    targets = scores(blind, pixels).argmax(dim=-1)
    found = attack(blind, pixels, targets, method="square", norm="linf", eps=0.05, steps=50)
    assert accuracy(blind, found, targets) < 0.5
    with pytest.raises(InputError, match="needs a gradient"):
        attack(blind, pixels, targets, method="pgd", norm="linf", eps=0.05)


def test_log_odds_are_what_cross_entropy_is_a_function_of() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 3, 0])
    expected = F.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(F.softplus(log_odds(logits, targets)), expected)


def test_projection_by_hand() -> None:
    pixels = torch.tensor([0.5, 0.5, 0.9]).view(1, 3, 1, 1)
    tried = torch.tensor([0.8, 0.1, 1.3]).view(1, 3, 1, 1)
    found = project(tried, pixels, "linf", 0.2).flatten().tolist()
    assert found == pytest.approx([0.7, 0.3, 1.0])
    found = project(tried, pixels, "l2", 0.1).flatten()
    expected = torch.tensor([0.3, -0.4, 0.4]) * 0.1 / 0.41**0.5
    torch.testing.assert_close(found - pixels.flatten(), expected)
    small = pixels + 0.001  # within the ball, so it stays
    torch.testing.assert_close(project(small, pixels, "l2", 0.1), small)
    tried[0, 0] = torch.nan
    assert project(tried, pixels, "linf", 0.2)[0, 0].item() == 0.5


def test_the_global_random_states_are_left_as_they_were(network: Any) -> None:
    subject, _, pixels, targets = network
    drawn = []
    for attacked in (False, True):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        if attacked:
            told: Any = {"norm": "linf", "eps": 0.01, "steps": 2, "restarts": 2, "seed": 9}
            for method in ("pgd", "square", "apgd-ce"):
                attack(subject, pixels[:4], targets[:4], method=method, **told)  # type: ignore[arg-type]
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]


def test_bad_input_is_told(network: Any) -> None:
    subject, _, pixels, targets = network
    told: Any = {"method": "pgd", "norm": "linf", "eps": 0.1}
    with pytest.raises(ConfigError, match='did you mean "pgd"'):
        attack(subject, pixels, targets, **{**told, "method": "pdg"})
    with pytest.raises(ConfigError, match='unknown norm "l1"'):
        attack(subject, pixels, targets, **{**told, "norm": "l1"})
    with pytest.raises(InputError, match="at least 0"):
        attack(subject, pixels, targets, **{**told, "eps": -0.1})
    with pytest.raises(ConfigError, match="at least 1 of each"):
        attack(subject, pixels, targets, **told, restarts=0)
    with pytest.raises(InputError, match="one class number"):
        attack(subject, pixels, targets[:3], **told)
    with pytest.raises(InputError, match="class numbers 0 to 3"):
        attack(subject, pixels, targets + 1, **told)
    with pytest.raises(ConfigError, match='expected method="pgd"'):
        attack(subject, pixels, targets, **{**told, "method": "fgsm"}, wanted=targets)
    with pytest.raises(ConfigError, match="one for each image"):
        attack(subject, pixels, targets, **{**told, "eps": torch.rand(200)}, restarts=2)
    two, _ = linear(2)
    with pytest.raises(InputError, match="at least 3"):
        attack(two, pixels, targets % 2, **{**told, "method": "apgd-dlr"})
    with pytest.raises(InputError, match="at least 10x10"):
        attack(subject, pixels, targets, **{**told, "method": "square", "norm": "l2"})
    assert torch.equal(attack(subject, pixels, targets, **{**told, "eps": 0.0}), pixels)
