"""Remedies against adversarial images: randomised smoothing and random crops, by votes.

A remedy must be attacked as it is deployed (Athalye et al. 2018, arXiv 1802.00420, section 4.2):
`averaged` gives the mean over random views, with its gradient, to attack. The third remedy, a head
that is tuned on adversarial images, is in `isthmus.auditing.attacks.tuned_head`.

Letters: B images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn import functional as F

from isthmus.auditing.attacks.attackable import BATCH, Attackable, checked_pixels
from isthmus.errors import InputError, MissingExtraError

View = Callable[[Tensor, torch.Generator], Tensor]
"""Pixels (B, 3, H, W) to a random view, of the same shape; all images get the same noise or crop,
so that what is drawn for an image does not depend on the images beside it."""


@dataclass(frozen=True)
class Certificate:
    """What smoothing can promise for one image.

    Attributes:
        label: The class number that smoothing answers; None where it abstains.
        radius: No perturbation of a smaller L2 length changes the label; 0 where it abstains.
        votes: How many of the samples voted for the label, or for the leading one.
        n: How many samples.
    """

    label: int | None
    radius: float
    votes: int
    n: int


# --- Random views -----------------------------------------------------------------------------


def gaussian_view(sigma: float) -> View:
    """A view with Gaussian noise of a standard deviation in pixel units, not clipped.

    Args:
        sigma: The standard deviation; 0.25 is the smallest of Cohen et al. (2019).

    Raises:
        InputError: If it is not more than 0.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> round(float(gaussian_view(0.25)(torch.zeros(1, 3, 99, 99), generator).std()), 2)
        0.25
    """
    if not sigma > 0:
        raise InputError(f"got sigma {sigma}: expected more than 0, in pixel units such as 0.25")

    def view(pixels: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(pixels.shape[1:], generator=generator)
        return pixels + sigma * noise.to(pixels.device, pixels.dtype)

    return view


def crop_view(share: float) -> View:
    """A view that is a random crop, enlarged to the full size.

    Args:
        share: The crop's side as a share of the image's.

    Raises:
        InputError: If it is not more than 0 and at most 1.

    Example:
        >>> crop_view(0.5)(torch.ones(1, 3, 8, 8), torch.Generator()).shape
        torch.Size([1, 3, 8, 8])
    """
    if not 0 < share <= 1:
        raise InputError(f"got a share of {share}: expected more than 0 and at most 1")

    def view(pixels: Tensor, generator: torch.Generator) -> Tensor:
        height, width = pixels.shape[2:]
        rows, columns = max(1, round(share * height)), max(1, round(share * width))
        top = int(torch.randint(height - rows + 1, (1,), generator=generator))
        left = int(torch.randint(width - columns + 1, (1,), generator=generator))
        part = pixels[:, :, top : top + rows, left : left + columns]
        return F.interpolate(part, size=(height, width), mode="bilinear", align_corners=False)

    return view


def _generator(seed: int, sample: int) -> torch.Generator:
    """One for each sample, so that batches change nothing."""
    return torch.Generator().manual_seed((seed * 1_000_003 + sample) % 2**63)


@torch.no_grad()
def votes(
    attackable: Attackable,
    pixels: Tensor,
    view: View,
    *,
    n: int,
    seed: int = 0,
    first: int = 0,
    batch_size: int = BATCH,
) -> Tensor:
    """How many of n random views of each image are classified as each class, (B, K).

    Args:
        attackable: The model without the remedy.
        pixels: Pixels (B, 3, H, W) in [0, 1].
        view: `gaussian_view` or `crop_view`.
        n: Views of each image.
        seed: Of the views.
        first: The number of the first view; views of other numbers are other ones.
        batch_size: Views in one pass; it changes no vote.

    Raises:
        InputError: If pixels do not fit, or n is less than 1.

    Example:
        >>> from isthmus.auditing.attacks.attackable import attackable_of
        >>> subject = attackable_of(lambda x: x.mean((2, 3)), (8, 8))
        >>> votes(subject, torch.rand(2, 3, 8, 8), crop_view(0.5), n=10).sum(dim=1).tolist()
        [10, 10]
    """
    checked_pixels(attackable, pixels)
    if n < 1:
        raise InputError(f"got {n} views: expected at least 1")
    counts = torch.zeros(len(pixels), attackable.classes, dtype=torch.long)
    at_once = max(1, batch_size // len(pixels))
    for start in range(first, first + n, at_once):
        samples = range(start, min(start + at_once, first + n))
        seen = torch.cat([view(pixels, _generator(seed, sample)) for sample in samples])
        found = [attackable.logits(part).argmax(dim=-1) for part in torch.split(seen, batch_size)]
        for answers in torch.cat(found).cpu().view(len(samples), len(pixels)):
            counts += F.one_hot(answers, attackable.classes)
    return counts


def averaged(attackable: Attackable, view: View, *, samples: int, seed: int = 0) -> Attackable:
    """The model with a remedy, to be attacked: its mean probability over fixed random views.

    The gradient of the mean is what defeats a random defence (expectation over transformation:
    Athalye et al. 2018, arXiv 1707.07397). Votes of fresh views then tell what the remedy is worth.

    Args:
        attackable: The model without the remedy.
        view: `gaussian_view` or `crop_view`.
        samples: Views that are averaged; each costs one pass forward and back.
        seed: Of the views, which are the same in each call.

    Raises:
        InputError: If there is no sample.

    Example:
        >>> from isthmus.auditing.attacks.attackable import attackable_of
        >>> subject = attackable_of(lambda x: x.mean((2, 3)), (8, 8))
        >>> averaged(subject, crop_view(0.5), samples=3).has_gradient
        True
    """
    if samples < 1:
        raise InputError(f"got {samples} samples: expected at least 1")

    def logits(pixels: Tensor) -> Tensor:
        views = (view(pixels, _generator(seed, sample)) for sample in range(samples))
        told = [attackable.logits(seen).log_softmax(dim=-1) for seen in views]
        return torch.stack(told).logsumexp(dim=0) - math.log(samples)

    return replace(attackable, logits=logits)


# --- Randomised smoothing -----------------------------------------------------------------------


def certify(
    attackable: Attackable,
    pixels: Tensor,
    *,
    sigma: float,
    select: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
    seed: int = 0,
    batch_size: int = BATCH,
) -> tuple[Certificate, ...]:
    """Certified L2 radii by randomised smoothing (Cohen et al. 2019, arXiv 1902.02918, CERTIFY).

    A first sample picks the class; a second one bounds its probability p from below, exactly
    (Clopper and Pearson 1934), and the radius is sigma Phi^-1(p) (equation 3 with the second
    class at 1 - p). Each certificate is wrong with a probability of at most alpha.

    Args:
        attackable: The model without the remedy.
        pixels: Pixels (B, 3, H, W) in [0, 1].
        sigma: Standard deviation of the noise, in pixel units.
        select: Samples that pick the class.
        n: Samples that bound its probability; the largest possible radius grows with it.
        alpha: The probability of a wrong certificate.
        seed: Of the noise.
        batch_size: Views in one pass; it changes no result.

    Returns:
        One for each image; it abstains where p may be 1/2 or less.

    Raises:
        InputError: If pixels do not fit, or an option is out of range.
        MissingExtraError: If SciPy is not installed.

    Example:
        >>> from isthmus.auditing.attacks.attackable import attackable_of
        >>> subject = attackable_of(lambda x: 9 * x.mean((2, 3)), (8, 8))
        >>> red = torch.zeros(1, 3, 8, 8)
        >>> red[:, 0] = 1.0
        >>> certify(subject, red, sigma=0.25, n=100)[0].label
        0
    """
    if not 0 < alpha < 0.5:
        raise InputError(f"got alpha {alpha}: expected more than 0 and less than 0.5")
    view = gaussian_view(sigma)
    told: dict[str, int] = {"seed": seed, "batch_size": batch_size}
    picked = votes(attackable, pixels, view, n=select, **told).argmax(dim=-1)
    counts = votes(attackable, pixels, view, n=n, first=select, **told)
    found = []
    for label, row in zip(picked.tolist(), counts, strict=True):
        right = int(row[label])
        lower = _lower_bound(right, n, alpha)
        if lower > 0.5:
            found.append(Certificate(label, sigma * NormalDist().inv_cdf(lower), right, n))
        else:
            found.append(Certificate(None, 0.0, right, n))
    return tuple(found)


def certified_accuracy(
    certificates: Sequence[Certificate], targets: Sequence[int], radius: float
) -> float:
    """The share of images that are right and certified to stay so within an L2 radius.

    Args:
        certificates: What `certify` gave.
        targets: The right labels' numbers.
        radius: In pixel units; 0 for those that are right without abstaining.

    Raises:
        InputError: If there are not as many certificates as targets, or none.

    Example:
        >>> told = [Certificate(0, 0.5, 990, 1000), Certificate(None, 0.0, 510, 1000)]
        >>> certified_accuracy(told, [0, 0], 0.25)
        0.5
    """
    if len(certificates) != len(targets) or not len(targets):
        raise InputError(
            f"got {len(certificates)} certificates for {len(targets)} targets: expected one for "
            "each, at least one"
        )
    pairs = zip(certificates, targets, strict=True)
    return sum(c.label == target and c.radius >= radius for c, target in pairs) / len(targets)


def _lower_bound(right: int, n: int, alpha: float) -> float:
    """Clopper and Pearson's one-sided lower bound of a probability."""
    if right == 0:
        return 0.0
    try:
        from scipy.stats import beta  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise MissingExtraError("a certified radius", "audit") from error
    return float(beta.ppf(alpha, right, n - right + 1))
