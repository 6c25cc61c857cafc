"""Whether a classifier's confidence can be believed, as deployed and after calibration.

Logits and right labels come in. Calibration itself is `isthmus.classification.scaling`.

Letters: n images, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isthmus.classification.calibration import CALIBRATION_METHODS, Calibration, fit_calibration
from isthmus.classification.identity import Identity
from isthmus.classification.scaling import BINS, measure
from isthmus.errors import InputError
from isthmus.evaluation.metrics import wilson

DRAWS = 1000
"""Resamples of a bootstrap, and draws of right and wrong under perfect calibration."""
_AT_ONCE = 1 << 22
"""Numbers of a resampling pass: 32 MB."""
_NOBODY = Identity(name="logits", fingerprint="0" * 16)

Floats = NDArray[np.float64]


# --- Reliability ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Bin:
    """Predictions of like confidence.

    Attributes:
        low: The bin holds confidences above this,
        high: and up to this.
        n: Predictions in it.
        confidence: Their mean confidence; None in an empty bin, here as below.
        accuracy: The share of them that is right.
        interval: The 95 % Wilson interval of that share.
    """

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Reliability:
    """How well confidence and accuracy agree.

    Attributes:
        n: Images.
        accuracy: The share of them that is classified correctly.
        confidence: Mean probability of the predicted class.
        ece: Expected calibration error (Guo et al. 2017, equation 3).
        ece_interval: Its 95 % basic bootstrap interval.
        ece_if_calibrated: The mean ECE of as many predictions of the same confidences if these were
            exactly right; an ECE near it is noise (Broecker and Smith 2007).
        ece_p: How probable an ECE at least as large is then.
        brier: Brier score, 0 to 2.
        nll: Mean negative log-likelihood of the right class, in nats.
        bins: The reliability diagram.
        seed: Seed of the resampling.
    """

    n: int
    accuracy: float
    confidence: float
    ece: float
    ece_interval: tuple[float, float]
    ece_if_calibrated: float
    ece_p: float
    brier: float
    nll: float
    bins: tuple[Bin, ...]
    seed: int


def reliability(
    logits: Tensor, targets: Tensor, *, bins: int = BINS, draws: int = DRAWS, seed: int = 0
) -> Reliability:
    """Measures softmax(logits) as probabilities.

    Bins have equal width, and the m-th holds confidences in ((m - 1) / bins, m / bins].

    The bootstrap interval is the basic one, twice the estimate less the percentiles. Resampling
    adds to the ECE what sampling had added before, and so percentiles as they are would lie too
    high. Where the true error is near 0 neither holds it reliably: `ece_p` is for that question.

    Args:
        logits: Logits (n, C).
        targets: The right classes (n,).
        bins: How many bins.
        draws: Resamples.
        seed: Their seed.

    Raises:
        InputError: If there is no image, shapes do not fit, or a logit is not finite.

    Example:
        >>> found = reliability(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
        >>> found.ece, [(b.n, b.accuracy) for b in found.bins if b.n]
        (0.25, [(4, 0.75)])
    """
    _check(logits, targets)
    confidence, right = confidence_and_right(logits, targets)
    conf: Floats = confidence.numpy()
    hits = right.numpy()
    # As `expected_calibration_error` sorts them, so that the diagram is that of the ECE
    which = (confidence * bins).ceil().long().clamp(1, bins).numpy() - 1
    member = np.eye(bins)[which]  # (n, bins)
    own = [hits[which == m] for m in range(bins)]
    diagram = tuple(
        Bin(
            low=m / bins,
            high=(m + 1) / bins,
            n=len(found),
            confidence=float(conf[which == m].mean()) if len(found) else None,
            accuracy=float(found.mean()) if len(found) else None,
            interval=wilson(int(found.sum()), len(found)) if len(found) else None,
        )
        for m, found in enumerate(own)
    )
    told = measure(logits, targets)
    resampled, calibrated = _resampled_errors(conf, hits, member, draws, seed)
    low, high = (2 * told.ece - np.quantile(resampled, q) for q in (0.975, 0.025))
    return Reliability(
        n=len(conf),
        accuracy=told.accuracy,
        confidence=float(conf.mean()),
        ece=told.ece,
        ece_interval=(float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1))),
        ece_if_calibrated=float(calibrated.mean()),
        # The observed one counts among the draws, so that p is never 0 (Phipson and Smyth 2010)
        ece_p=float((1 + (calibrated >= told.ece - 1e-12).sum()) / (1 + draws)),
        brier=told.brier,
        nll=told.nll,
        bins=diagram,
        seed=seed,
    )


def confidence_and_right(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The probability of each prediction (n,), float64, and whether it is right (n,).

    Args:
        logits: Logits (n, C).
        targets: The right classes (n,).

    Example:
        >>> confidence_and_right(torch.zeros(1, 2), torch.tensor([0]))
        (tensor([0.5000], dtype=torch.float64), tensor([True]))
    """
    confidence, found = logits.double().softmax(dim=-1).max(dim=-1)
    return confidence, found == targets


def _resampled_errors(
    conf: Floats, hits: NDArray[np.bool_], member: Floats, draws: int, seed: int
) -> tuple[Floats, Floats]:
    """ECEs of resampled predictions, and of predictions that are right as often as they say."""
    rng, n = np.random.default_rng(seed), len(conf)
    gaps = member * (conf - hits)[:, None]
    resampled: list[Floats] = []
    calibrated: list[Floats] = []
    most = max(1, _AT_ONCE // n)
    for start in range(0, draws, most):
        many = min(most, draws - start)
        counts = rng.multinomial(n, np.full(n, 1 / n), size=many)
        resampled.append(np.abs(counts @ gaps).sum(axis=1) / n)
        lucky = rng.random((many, n)) < conf
        calibrated.append(np.abs((conf - lucky) @ member).sum(axis=1) / n)
    return np.concatenate(resampled), np.concatenate(calibrated)


# --- Calibration ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Scaled:
    """Probabilities after one method of calibration.

    Attributes:
        method: "temperature" or "vector".
        temperature: The temperature T; None with vector scaling.
        scale: Factors on logits: one, or one for each class.
        bias: What is added then, likewise.
        after: The probabilities' quality on the test images; None where nothing could be fitted.
        note: Why nothing could be fitted; empty where it could.
    """

    method: str
    temperature: float | None
    scale: tuple[float, ...]
    bias: tuple[float, ...]
    after: Reliability | None
    note: str = ""


@dataclass(frozen=True)
class CalibrationStudy:
    """Confidence as deployed and after calibration, on the same test images.

    Attributes:
        n_fitted: Images that calibration was fitted on.
        before: The quality of the probabilities as deployed.
        scaled: The quality after each method.
    """

    n_fitted: int
    before: Reliability
    scaled: tuple[Scaled, ...]


def calibration_study(
    fitted_on: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> CalibrationStudy:
    """Fits temperature and vector scaling on some images and measures them on others.

    Args:
        fitted_on: Logits (m, C) and right classes (m,) to fit on.
        test: Logits (n, C) and right classes (n,) of other images.
        draws: Resamples.
        seed: Their seed.

    Raises:
        InputError: If there is no image in a part, shapes do not fit, or a logit is not finite.

    Example:
        >>> logits = 3 * torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
        >>> targets = torch.distributions.Categorical(logits=logits / 3).sample()
        >>> study = calibration_study((logits[::2], targets[::2]), (logits[1::2], targets[1::2]))
        >>> study.scaled[0].after.nll < study.before.nll
        True
    """
    for part in (fitted_on, test):
        _check(*part)
    logits, targets = fitted_on[0], fitted_on[1].long()
    labels = [str(number) for number in range(logits.shape[1])]
    scaled = []
    for method in CALIBRATION_METHODS:
        try:
            found: Calibration = fit_calibration(
                logits,
                targets,
                labels,
                model=_NOBODY,
                templates=_NOBODY,
                method=method,  # type: ignore[arg-type]
            )
        except InputError as error:  # nothing fits these images, and the audit goes on
            scaled.append(Scaled(method, None, (), (), None, str(error)))
            continue
        after = reliability(found.apply(test[0]), test[1], draws=draws, seed=seed)
        scaled.append(Scaled(method, found.temperature, found.scale, found.bias, after))
    before = reliability(*test, draws=draws, seed=seed)
    return CalibrationStudy(n_fitted=len(targets), before=before, scaled=tuple(scaled))


def _check(logits: Tensor, targets: Tensor) -> None:
    if logits.ndim != 2 or not len(logits) or targets.shape != logits.shape[:1]:
        raise InputError(
            f"got logits of shape {tuple(logits.shape)} and right labels of shape "
            f"{tuple(targets.shape)}: expected (n, C) and (n,), at least one image"
        )
    if not torch.isfinite(logits).all():
        raise InputError("a logit is not finite: check the model's weights and its images")
