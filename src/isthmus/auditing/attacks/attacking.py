"""Attacks on pixels, by adversarial-robustness-toolbox (ART).

FGSM (Goodfellow et al. 2015, arXiv 1412.6572), PGD with restarts (Madry et al. 2018, arXiv
1706.06083), APGD with cross-entropy and with the difference of logits ratio (Croce and Hein 2020,
arXiv 2003.01690), and the black-box Square (Andriushchenko et al. 2020, arXiv 1912.00049).

Letters: B images, K classes.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isthmus.auditing.attacks.attackable import BATCH, Attackable, checked_targets, margins, scores
from isthmus.auditing.attacks.balls import NORMS, Norm, project, radii, random_step, seeded
from isthmus.errors import ConfigError, InputError, MissingExtraError, suggestion

AttackMethod = Literal["fgsm", "pgd", "apgd-ce", "apgd-dlr", "square"]
ATTACK_METHODS = ("fgsm", "pgd", "apgd-ce", "apgd-dlr", "square")
PER_IMAGE = ("fgsm", "pgd")
"""Methods that take another eps for each image."""


def attack(
    attackable: Attackable,
    pixels: Tensor,
    targets: Tensor,
    *,
    method: AttackMethod,
    norm: Norm,
    eps: float | Tensor,
    steps: int = 20,
    restarts: int = 1,
    seed: int = 0,
    wanted: Tensor | None = None,
    batch_size: int = BATCH,
) -> Tensor:
    """Adversarial pixels within a ball around the images.

    Images that are classified wrongly are left as they are. Of all restarts, the pixels of least
    margin are kept, and where none lowers the margin, the image itself. Images that are broken
    are spared further restarts. PGD starts from the image itself, and its restarts from
    random points of the ball; its step is 2.5 eps / steps (Madry et al. 2018, appendix B).

    In place of cross-entropy stand the log-odds of which it is a rising function, see `log_odds`;
    steps go the same way, but their gradient does not vanish where a model is sure.

    Args:
        attackable: The subject.
        pixels: Pixels (B, 3, H, W) in [0, 1].
        targets: The right labels' numbers (B,).
        method: "fgsm" (one step), "pgd", "apgd-ce", "apgd-dlr" or "square", which uses no
            gradient, and `steps` of which are queries.
        norm: "linf" or "l2".
        eps: The ball's radius in pixel units, where 1 is the whole range: 8 levels are 8/255 in
            "linf", and in "l2" the length over all pixels and channels. For "fgsm" and "pgd" with
            one restart it may be one number for each image (B,).
        steps: Steps; "fgsm" has one.
        restarts: How often to start; "fgsm" starts once.
        seed: Of random starts and of "square". The global random states are left as they were.
        wanted: Classes (B,) that images are to be taken for ("pgd" only); None for any wrong one.
        batch_size: Images in one pass.

    Returns:
        Adversarial pixels (B, 3, H, W) in [0, 1], at most eps away up to rounding (1e-6).

    Raises:
        InputError: If shapes do not fit, the method needs a gradient and there is none, there are
            too few classes or pixels for it, or an eps is negative.
        ConfigError: If the method or the norm is unknown, or options do not go together.
        MissingExtraError: If adversarial-robustness-toolbox is not installed.

    Example:
        >>> from isthmus.auditing.attacks.attackable import accuracy, attackable_of
        >>> subject = attackable_of(lambda x: x.mean((2, 3)), (8, 8))
        >>> pixels = torch.full((1, 3, 8, 8), 0.5)
        >>> pixels[:, 0] += 0.1
        >>> found = attack(subject, pixels, torch.tensor([0]), method="pgd", norm="linf", eps=0.06)
        >>> accuracy(subject, found, torch.tensor([0]))
        0.0
    """
    _check(attackable, pixels, targets, method, norm, eps, steps, restarts, wanted)
    aim = targets if wanted is None else wanted
    best = pixels.detach().clone()
    found = scores(attackable, pixels, batch_size)
    lowest = _margins(found, aim, wanted is not None)
    open_ = (found.argmax(dim=-1) == targets) & (radii(eps, pixels).flatten() > 0)
    for restart in range(1 if method == "fgsm" else restarts):
        chosen = open_.nonzero().flatten()
        if not len(chosen):
            break
        radius = eps if isinstance(eps, float | int) else eps.to(pixels.device)[chosen]
        with seeded(seed + restart):
            tried = _run(
                attackable,
                pixels[chosen],
                aim[chosen],
                method=method,
                norm=norm,
                eps=radius,
                steps=steps,
                random_start=restart > 0,
                targeted=wanted is not None,
                batch_size=batch_size,
            )
        tried = project(tried, pixels[chosen], norm, radius)
        found = scores(attackable, tried, batch_size)
        margin = _margins(found, aim[chosen], wanted is not None)
        better = margin < lowest[chosen]
        best[chosen[better]], lowest[chosen[better]] = tried[better], margin[better]
        is_aim = found.argmax(dim=-1) == aim[chosen]
        open_[chosen[better & (is_aim if wanted is not None else ~is_aim)]] = False
    return best


def noise(
    pixels: Tensor,
    norm: Norm,
    eps: float,
    seed: int,
    tries: int,
    attackable: Attackable,
    targets: Tensor,
    *,
    batch_size: int = BATCH,
) -> Tensor:
    """The control of every attack: random noise of the same size, the best of a few tries.

    It is a random corner of the L-inf ball, or a random point of the L2 sphere. An attack that
    does no better than noise has found nothing.

    Args:
        pixels: Pixels (B, 3, H, W) in [0, 1].
        norm: "linf" or "l2".
        eps: The ball's radius in pixel units.
        seed: Of the noise.
        tries: How many; the one of least margin is kept, or the image itself.
        attackable: The subject.
        targets: The right labels' numbers (B,).
        batch_size: Images in one pass.

    Raises:
        InputError: If shapes do not fit, or eps is negative.
        ConfigError: If the norm is unknown, or there is no try.

    Example:
        >>> from isthmus.auditing.attacks.attackable import attackable_of
        >>> subject = attackable_of(lambda x: x.mean((2, 3)), (8, 8))
        >>> pixels, right = torch.full((1, 3, 8, 8), 0.5), torch.tensor([0])
        >>> found = noise(pixels, "linf", 0.25, 0, 5, subject, right)
        >>> sorted(set((found - pixels).abs().flatten().tolist()))
        [0.25]
    """
    _check(attackable, pixels, targets, "square", norm, eps, tries, 1, None, size=False)
    generator = torch.Generator().manual_seed(seed)
    best = pixels.detach().clone()
    lowest = margins(scores(attackable, pixels, batch_size), targets)
    for _ in range(tries):
        tried = project(pixels + random_step(pixels, norm, eps, generator), pixels, norm, eps)
        margin = margins(scores(attackable, tried, batch_size), targets)
        better = margin < lowest
        best[better], lowest[better] = tried[better], margin[better]
    return best


def log_odds(logits: Tensor, targets: Tensor) -> Tensor:
    """The log-odds against the right label (B,): log sum exp of the others, less its own logit.

    Cross-entropy is log(1 + exp(log-odds)), so both have gradients of one direction, and order
    images of one label alike. But cross-entropy's gradient rounds to 0 where a model is sure, which
    passes for robustness (Carlini and Wagner 2017, arXiv 1608.04644, section 4).

    Args:
        logits: Logits (B, K).
        targets: The right labels' numbers (B,).

    Example:
        >>> log_odds(torch.tensor([[1000.0, 0.0]]), torch.tensor([0]))
        tensor([-1000.])
    """
    others = logits.scatter(1, targets[:, None], -torch.inf)
    return others.logsumexp(dim=-1) - logits.gather(1, targets[:, None])[:, 0]


# --- Within ---------------------------------------------------------------------------------


class _Logits(nn.Module):
    """A subject as the module that ART takes; it holds no parameter."""

    def __init__(self, attackable: Attackable) -> None:
        super().__init__()
        self.attackable = attackable

    def forward(self, pixels: Tensor) -> Tensor:
        return self.attackable.logits(pixels)


class _LogOdds(nn.Module):
    """The loss as ART calls it, which sets the reduction and gives targets one-hot."""

    def __init__(self) -> None:
        super().__init__()
        self.reduction = "sum"  # a mean would shrink the gradient with the batch

    def forward(self, logits: Tensor, one_hot: Tensor) -> Tensor:
        found = log_odds(logits, one_hot.argmax(dim=-1))
        return found if self.reduction == "none" else found.sum()


def _run(
    attackable: Attackable,
    pixels: Tensor,
    aim: Tensor,
    *,
    method: AttackMethod,
    norm: Norm,
    eps: float | Tensor,
    steps: int,
    random_start: bool,
    targeted: bool,
    batch_size: int,
) -> Tensor:
    """What ART makes of pixels, on their device."""
    try:
        from art.attacks import evasion  # type: ignore[import-untyped, unused-ignore]
        from art.estimators.classification import (  # type: ignore[import-untyped, unused-ignore]
            PyTorchClassifier,
        )
    except ImportError as error:
        raise MissingExtraError("an attack on a classifier", "audit") from error
    estimator = PyTorchClassifier(
        model=_Logits(attackable),
        loss=_LogOdds(),
        input_shape=tuple(pixels.shape[1:]),
        nb_classes=attackable.classes,
        clip_values=(0.0, 1.0),
        device_type="cpu" if pixels.device.type == "cpu" else "gpu",
    )
    radius = _numbers(eps)
    told: dict[str, Any] = {"norm": np.inf if norm == "linf" else 2, "batch_size": batch_size}
    if method == "fgsm":
        made: Any = evasion.FastGradientMethod(estimator, eps=radius, eps_step=radius, **told)
    elif method == "pgd":
        made = evasion.ProjectedGradientDescentPyTorch(
            estimator,
            eps=radius,
            eps_step=radius * min(1.0, 2.5 / steps),
            max_iter=steps,
            num_random_init=int(random_start),
            targeted=targeted,
            verbose=False,
            **told,
        )
    elif method == "square":
        made = evasion.SquareAttack(estimator, eps=radius, max_iter=steps, verbose=False, **told)
    else:
        made = evasion.AutoProjectedGradientDescent(
            estimator,
            eps=radius,
            eps_step=2 * radius,
            max_iter=steps,
            nb_random_init=1,
            loss_type="difference_logits_ratio" if method == "apgd-dlr" else None,  # our own
            verbose=False,
            **told,
        )
    one_hot = np.eye(attackable.classes, dtype=np.float32)[aim.cpu().numpy()]
    with torch.enable_grad(), np.errstate(all="ignore"):
        found: NDArray[Any] = made.generate(pixels.detach().float().cpu().numpy(), one_hot)
    return torch.from_numpy(np.asarray(found, dtype=np.float32)).to(pixels.device)


def _numbers(eps: float | Tensor) -> Any:
    """An eps as ART takes it: a number, or an array (B, 1, 1, 1)."""
    if isinstance(eps, Tensor):
        return eps.float().cpu().numpy()[:, None, None, None]
    return float(eps)


def _margins(logits: Tensor, aim: Tensor, targeted: bool) -> Tensor:
    """What an attack lowers: below 0 it has succeeded."""
    aim = aim.to(logits.device)
    return -margins(logits, aim) if targeted else margins(logits, aim)


def _check(
    attackable: Attackable,
    pixels: Tensor,
    targets: Tensor,
    method: str,
    norm: str,
    eps: float | Tensor,
    steps: int,
    restarts: int,
    wanted: Tensor | None,
    *,
    size: bool = True,
) -> None:
    """Refuses what no attack can be made of."""
    if method not in ATTACK_METHODS:
        raise ConfigError(f'unknown attack "{method}": {suggestion(method, ATTACK_METHODS)}')
    if norm not in NORMS:
        raise ConfigError(f'unknown norm "{norm}": {suggestion(norm, NORMS)}')
    checked_targets(attackable, pixels, targets)
    if steps < 1 or restarts < 1:
        raise ConfigError(f"got {steps} steps and {restarts} restarts: expected at least 1 of each")
    if isinstance(eps, Tensor) and (
        eps.shape != (len(pixels),) or method not in PER_IMAGE or restarts > 1
    ):
        raise ConfigError(
            f'got an eps of shape {tuple(eps.shape)} for "{method}" with {restarts} restarts and '
            f"{len(pixels)} images: expected one number; one for each image is taken by "
            '"fgsm" and by "pgd" with one restart'
        )
    least = float(torch.as_tensor(eps).min())
    if not least >= 0:
        raise InputError(f"got eps {least}: expected at least 0, such as 4/255")
    if method != "square" and not attackable.has_gradient:
        raise InputError(
            f'the attack "{method}" needs a gradient, and this model gives none (ONNX, a remote '
            'model, or a step without a derivative): expected method="square", which needs none'
        )
    if method == "apgd-dlr" and attackable.classes < 3:
        raise InputError(
            f'got {attackable.classes} classes: the loss of "apgd-dlr" compares the first with the '
            'third logit, so expected at least 3; take "apgd-ce"'
        )
    if wanted is not None:
        if method != "pgd":
            raise ConfigError(f'got wanted classes for "{method}": expected method="pgd"')
        checked_targets(attackable, pixels, wanted)
    if size and method == "square":
        _check_square(attackable.size, norm)


def _check_square(size: tuple[int, int], norm: str) -> None:
    """ART's squares start with 80% of the image, and its L2 ones with 5 x 5 tiles of 2 pixels."""
    height, width = size
    side = round((0.8 * height * width) ** 0.5)
    side += norm == "l2" and side % 2 == 0
    if side >= min(height, width) or (norm == "l2" and (height < 10 or width < height)):
        raise InputError(
            f'got pixels of {height}x{width}: "square" needs a nearly square image of at least '
            f'{"10x10" if norm == "l2" else "5x5"} for norm "{norm}"; take "pgd", or another size'
        )
