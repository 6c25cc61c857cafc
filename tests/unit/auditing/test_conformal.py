"""Label sets by hand, and the promised coverage on exchangeable data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import Tensor

from isthmus.auditing.measures.conformal import conformal, conformal_quantile, label_scores
from isthmus.errors import ConfigError, InputError
from isthmus.evaluation.metrics import wilson

Draw = Callable[..., tuple[Tensor, Tensor]]


def logs(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_lac_by_hand() -> None:
    # Right labels have probabilities 0.9, 0.6, 0.5, 0.2: scores 0.1, 0.4, 0.5, 0.8
    calibration = logs([0.9, 0.05, 0.05], [0.3, 0.6, 0.1], [0.2, 0.3, 0.5], [0.2, 0.7, 0.1])
    targets = torch.tensor([0, 1, 2, 0])
    # alpha 0.4: the ceil(5 * 0.6) = third smallest score, 0.5: labels of probability 0.5 and more
    test = logs([0.8, 0.1, 0.1], [0.4, 0.35, 0.25], [0.52, 0.28, 0.2])
    right = torch.tensor([0, 1, 1])
    found = conformal((calibration, targets), (test, right), method="lac", alpha=0.4)
    assert found.threshold == pytest.approx(0.5)
    assert (found.n_calibration, found.n) == (4, 3)
    assert found.coverage == pytest.approx(1 / 3)
    assert found.interval == wilson(1, 3)
    assert found.mean_size == pytest.approx(2 / 3)
    assert (found.singletons, found.empty) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert [(c.target, c.n, c.coverage) for c in found.by_class] == [(0, 1, 1.0), (1, 2, 0.0)]
    assert found.worst_class == 1
    # alpha 0.2: the fourth, 0.8: labels of probability 0.2 and more; all sets have two or three
    found = conformal((calibration, targets), (test[1:], right[1:]), method="lac", alpha=0.2)
    assert found.threshold == pytest.approx(0.8)
    assert (found.coverage, found.mean_size) == (1.0, 3.0)
    assert [(s.least, s.most, s.n, s.coverage) for s in found.by_size] == [(2, 3, 2, 1.0)]
    assert found.size_violation == pytest.approx(0.2)
    json.dumps(asdict(found), allow_nan=False)


def test_aps_and_raps_scores_by_hand() -> None:
    logits = logs([0.2, 0.5, 0.3])
    noise = torch.tensor([0.5])
    # ranks: class 1 (0.5), class 2 (0.3), class 0 (0.2)
    expected = [0.8 + 0.1, 0.25, 0.5 + 0.15]
    assert label_scores(logits, "aps", noise)[0].tolist() == pytest.approx(expected)
    assert label_scores(logits, "aps")[0].tolist() == pytest.approx([1.0, 0.5, 0.8])
    added = [expected[0] + 0.2, expected[1], expected[2] + 0.1]
    got = label_scores(logits, "raps", noise, penalty=0.1, free_ranks=1)
    assert got[0].tolist() == pytest.approx(added)
    free = label_scores(logits, "raps", noise, penalty=0.1, free_ranks=3)
    assert free[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("method", ["lac", "aps", "raps"])
@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_sets_cover_what_they_promise(draw: Draw, method: str, alpha: float) -> None:
    """Over calibration sets of n, coverage is Beta distributed with mean k / (n + 1)."""
    n, m, repeats = 99, 200, 60
    held = []
    for seed in range(repeats):
        logits, targets = draw(n + m, classes=5, seed=seed)
        logits = 3 * logits + torch.tensor([1.0, 0, 0, 0, -1])  # overconfident and biased
        found = conformal(
            (logits[:n], targets[:n]),
            (logits[n:], targets[n:]),
            method=method,  # type: ignore[arg-type]
            alpha=alpha,
            seed=seed,
        )
        held.append(found.coverage)
    share = np.ceil((n + 1) * (1 - alpha)) / (n + 1)  # 1 - alpha, for scores without ties
    deviation = np.sqrt(share * (1 - share) * (1 / (n + 2) + 1 / m) / repeats)
    assert np.mean(held) > share - 3.5 * deviation
    assert np.mean(held) < share + 3.5 * deviation  # and not by making sets too large


def test_randomised_sets_are_exact_and_whole_ones_too_large() -> None:
    """Where the softmax is the truth, P(score <= t) is t under a random share, and less without."""
    logits = logs([0.6, 0.3, 0.1]).repeat(20_000, 1)
    generator = torch.Generator().manual_seed(0)
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator)
    noise = torch.rand(20_000, generator=generator, dtype=torch.float64)
    scores = label_scores(logits, "aps", noise).gather(1, targets)[:, 0]
    for t in (0.2, 0.6, 0.75, 0.95):
        assert float((scores <= t).double().mean()) == pytest.approx(t, abs=0.015)


def test_the_penalty_shortens_the_longest_sets(draw: Draw) -> None:
    logits, targets = draw(4000, classes=50)
    parts = (logits[:2000], targets[:2000]), (logits[2000:], targets[2000:])
    sizes = []
    for method, told in (("aps", {}), ("raps", {"penalty": 0.1, "free_ranks": 2})):
        found = conformal(*parts, method=method, alpha=0.1, **told)  # type: ignore[arg-type]
        assert abs(found.coverage - 0.9) < 0.04
        scores = label_scores(parts[1][0], method, **told)  # type: ignore[arg-type]
        sizes.append((scores <= found.threshold).sum(dim=1).double())
    assert sizes[1].max() < 0.8 * sizes[0].max()
    assert sizes[1].std() < 0.5 * sizes[0].std()


def test_the_seed_decides(draw: Draw) -> None:
    logits, targets = draw(400)
    parts = (logits[:200], targets[:200]), (logits[200:], targets[200:])
    assert conformal(*parts, method="aps", seed=1) == conformal(*parts, method="aps", seed=1)
    one, two = (conformal(*parts, method="aps", seed=s).threshold for s in (1, 2))
    assert one != two


def test_the_quantile_and_the_fewest_images() -> None:
    scores = torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0, 9.0, 7.0, 6.0, 8.0])
    assert conformal_quantile(scores, 0.1) == 9  # ceil(10 * 0.9) = 9, which n = 9 just has
    assert conformal_quantile(scores, 0.5) == 5
    assert conformal_quantile(scores, 0.55) == 5  # ceil(4.5)
    # 100 (1 - 0.41) is 59, though floating point makes it a little more
    assert conformal_quantile(torch.arange(1.0, 100.0), 0.41) == 59
    for alpha, least in ((0.1, 9), (0.05, 19), (0.3, 3), (0.01, 99), (0.07, 14)):
        conformal_quantile(torch.zeros(least), alpha)
        with pytest.raises(InputError, match=f"expected at least {least}; add images"):
            conformal_quantile(torch.zeros(least - 1), alpha)


def test_bad_input_is_refused(draw: Draw) -> None:
    logits, targets = draw(40)
    part = (logits, targets)
    with pytest.raises(ConfigError, match='unknown conformal method "apps"'):
        conformal(part, part, method="apps")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="alpha is 1"):
        conformal(part, part, alpha=1)
    with pytest.raises(InputError, match="no test images"):
        conformal(part, (logits[:0], targets[:0]))
    with pytest.raises(InputError, match="the same C for both parts"):
        conformal(part, (logits[:, :3], targets))
    with pytest.raises(InputError, match="not finite"):
        conformal((logits * float("nan"), targets), part)
