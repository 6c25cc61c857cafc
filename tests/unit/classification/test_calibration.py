"""Calibration: planted temperatures, scales and biases are found again; files; refusals."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from isthmus.classification.calibration import Calibration
from isthmus.classification.scaling import (
    brier_score,
    expected_calibration_error,
    fit_temperature,
    fit_vector,
    measure,
    precision_threshold,
)
from isthmus.classification.zero_shot import NONE, ZeroShotClassifier
from isthmus.errors import ConfigError, InputError
from isthmus.model.clip.dual_encoder import DualEncoder

LABELS = ["cat", "great white shark", "ice cream", "truck"]


def drawn(n: int = 20_000, labels: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and labels that were drawn from their softmax."""
    torch.manual_seed(seed)
    logits = 2 * torch.randn(n, labels, dtype=torch.float64)
    return logits, torch.distributions.Categorical(logits=logits).sample()


def nll(logits: Tensor, targets: Tensor) -> float:
    """Written out with NumPy."""
    z = logits.double().numpy()
    top = z.max(1, keepdims=True)
    log_sum = np.log(np.exp(z - top).sum(1)) + top[:, 0]
    return float((log_sum - z[np.arange(len(z)), targets.numpy()]).mean())


# --- Temperature ------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.05, 1.0, 4.0, 100.0])
def test_a_planted_temperature_is_found(factor: float) -> None:
    logits, targets = drawn()
    got = fit_temperature(factor * logits, targets)
    # The Fisher information of the factor 1 / T, where logits are the true ones
    p = logits.softmax(1)
    information = ((p * logits**2).sum(1) - (p * logits).sum(1) ** 2).sum()
    error = 1 / math.sqrt(float(information))
    assert error < 0.02
    assert factor / got == pytest.approx(1, abs=4 * error)


def test_true_probabilities_need_no_calibration() -> None:
    logits, targets = drawn()
    # In each bin, a sample's share is off by 0.5 / sqrt(n of the bin) at most, as one deviation
    bound = 0.5 * math.sqrt(15 / len(targets))
    assert measure(logits, targets).ece < bound
    assert measure(3 * logits, targets).ece > 5 * bound
    mended = 3 * logits / fit_temperature(3 * logits, targets)
    assert measure(mended, targets).ece < bound


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("factor", [0.2, 1.0, 30.0])
def test_the_fitted_temperature_is_the_minimum(seed: int, factor: float) -> None:
    logits, targets = drawn(n=40, labels=3, seed=seed)
    logits = factor * logits
    got = fit_temperature(logits, targets)
    log_t = torch.tensor(math.log(got), dtype=torch.float64, requires_grad=True)
    F.cross_entropy(logits / log_t.exp(), targets).backward()  # type: ignore[no-untyped-call]
    assert log_t.grad is not None
    assert abs(float(log_t.grad)) < 1e-6
    best = nll(logits / got, targets)
    assert best <= nll(logits, targets)
    for other in np.geomspace(got / 50, got * 50, 200):
        assert best <= nll(logits / float(other), targets) + 1e-12


def test_where_no_temperature_fits_it_is_said() -> None:
    logits = torch.eye(3)
    with pytest.raises(InputError, match="all 3 images are classified correctly"):
        fit_temperature(logits, torch.arange(3))
    with pytest.raises(InputError, match="no higher than the others"):
        fit_temperature(logits, torch.tensor([1, 2, 0]))
    with pytest.raises(InputError, match="no higher than the others"):
        fit_temperature(torch.zeros(3, 3), torch.arange(3))


# --- Vector -----------------------------------------------------------------------------------


def test_planted_scales_and_biases_are_found() -> None:
    torch.manual_seed(1)
    scale = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    bias = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)  # they sum to 0
    logits = 10 * torch.randn(20_000, 3, dtype=torch.float64)
    targets = torch.distributions.Categorical(logits=scale * logits + bias).sample()

    def total(numbers: Tensor) -> Tensor:
        return F.cross_entropy(numbers[:3] * logits + numbers[3:], targets, reduction="sum")

    information = torch.autograd.functional.hessian(total, torch.cat([scale, bias]))  # type: ignore[no-untyped-call]
    # One constant on all biases changes nothing: the pseudoinverse leaves it out
    errors = torch.linalg.pinv(information, hermitian=True, rtol=1e-9).diagonal().sqrt()
    assert float(errors.max()) < 0.05
    got_scale, got_bias = fit_vector(logits, targets, fit_temperature(logits, targets))
    got = torch.cat([got_scale, got_bias - got_bias.mean()])
    assert bool(((got - torch.cat([scale, bias])).abs() < 4 * errors).all())


@pytest.mark.parametrize("seed", range(5))
def test_the_vector_is_the_minimum_and_no_worse_than_a_temperature(seed: int) -> None:
    logits, targets = drawn(n=60, labels=4, seed=seed)
    logits = 5 * logits - 10  # a constant, as SigLIP's bias
    temperature = fit_temperature(logits, targets)
    scale, bias = fit_vector(logits, targets, temperature)
    assert nll(scale * logits + bias, targets) <= nll(logits / temperature, targets)
    assert nll(logits / temperature, targets) <= nll(logits, targets)

    factor = (scale * temperature).requires_grad_()
    mean = logits.mean(0) / temperature
    shift = (bias + (factor.detach() - 1) * mean).requires_grad_()
    shifted = factor * (logits / temperature - mean) + mean + shift
    prior = ((factor - 1).square().sum() + shift.square().sum()) / (2 * 60)
    (F.cross_entropy(shifted, targets) + prior).backward()  # type: ignore[no-untyped-call]
    for number in (factor, shift):
        assert number.grad is not None
        assert float(number.grad.abs().max()) < 1e-6

    moved_scale, moved_bias = fit_vector(logits + 7, targets, temperature)
    torch.testing.assert_close(
        (moved_scale * (logits + 7) + moved_bias).softmax(1),
        (scale * logits + bias).softmax(1),
        atol=1e-6,
        rtol=0,
    )


def test_a_label_with_one_image_keeps_finite_numbers() -> None:
    """Its logit is highest for that image, by little: without the prior its scale is infinite."""
    logits, targets = drawn(n=60, labels=3)
    targets[targets == 2] = 0
    logits[0, 2], targets[0] = logits[:, 2].max() + 0.1, 2
    temperature = fit_temperature(logits, targets)
    scale, bias = fit_vector(logits, targets, temperature)
    assert float((scale * temperature - 1).abs().max()) < 2
    assert float(bias.abs().max()) < 5


# --- Metrics ----------------------------------------------------------------------------------


def test_metrics_equal_a_plain_computation() -> None:
    logits, targets = drawn(n=500, labels=4)
    p = logits.softmax(1).numpy()
    truth = targets.numpy()
    rows, brier = [], 0.0
    for row, right in zip(p, truth, strict=True):
        rows.append((float(row.max()), bool(row.argmax() == right)))
        brier += sum((float(q) - (k == right)) ** 2 for k, q in enumerate(row)) / 500
    ece = 0.0
    for m in range(1, 16):
        inside = [(c, r) for c, r in rows if (m - 1) / 15 < c <= m / 15]
        if inside:
            confidence = sum(c for c, _ in inside) / len(inside)
            accuracy = sum(r for _, r in inside) / len(inside)
            ece += len(inside) / 500 * abs(accuracy - confidence)
    got = measure(logits, targets)
    assert got.ece == pytest.approx(ece, abs=1e-12)
    assert got.brier == pytest.approx(brier, abs=1e-12)
    assert got.nll == pytest.approx(nll(logits, targets), abs=1e-12)
    assert got.accuracy == sum(r for _, r in rows) / 500


def test_metrics_at_the_edges() -> None:
    one = torch.tensor([1.0, 1.0])
    assert expected_calibration_error(one, torch.tensor([True, True])) == 0
    assert expected_calibration_error(one, torch.tensor([False, False])) == 1
    assert expected_calibration_error(0 * one, torch.tensor([False, False])) == 0
    # A bin holds its upper edge and not its lower: 1/4 and 1/2 are in two bins, 3/8 and 1/2 in one
    right = torch.tensor([True, False])
    assert expected_calibration_error(torch.tensor([0.25, 0.5]), right, bins=4) == 0.625
    assert expected_calibration_error(torch.tensor([0.375, 0.5]), right, bins=4) == 0.0625
    assert brier_score(torch.eye(2), torch.tensor([0, 1])) == 0


@given(
    st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.5, 0.7, 0.9]), st.booleans()), min_size=1),
    st.sampled_from([0.3, 0.5, 0.8, 1.0]),
)
def test_the_threshold_is_the_least_that_reaches_the_precision(
    rows: list[tuple[float, bool]], precision: float
) -> None:
    def share(threshold: float) -> float:
        kept = [right for confidence, right in rows if confidence >= threshold]
        return sum(kept) / len(kept)

    reaching = [c for c, _ in rows if share(c) >= precision]
    got = precision_threshold(
        torch.tensor([c for c, _ in rows], dtype=torch.float64),
        torch.tensor([r for _, r in rows]),
        precision,
    )
    assert got == min(reaching, default=None)


# --- The classifier ---------------------------------------------------------------------------


def classifier(model: DualEncoder, **options: Any) -> ZeroShotClassifier:
    told = {"labels": LABELS, "templates": "one", "cache": False, **options}
    return ZeroShotClassifier(model, **told)


def images_of(made: ZeroShotClassifier, each: int = 40, seed: int = 0) -> tuple[Tensor, list[str]]:
    """Features near the label's own vector, and labels; some are wrong at any temperature."""
    noise = torch.randn(each * len(LABELS), 12, generator=torch.Generator().manual_seed(seed))
    return made.weights_.repeat(each, 1) + 0.25 * noise, LABELS * each


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("method", ["temperature", "vector"])
def test_a_calibrated_classifier_is_a_new_one(build: Any, loss: str, method: Any) -> None:
    made = classifier(build(loss))
    features, labels = images_of(made)
    before, found = made.predict_proba(features), made.predict(features)
    calibrated = made.calibrate(features, labels, method=method)
    calibration = calibrated.calibration
    assert calibration is not None
    assert made.calibration is None
    assert np.array_equal(made.predict_proba(features), before)

    logits = torch.tensor(made.decision_function(features))
    targets = torch.tensor([LABELS.index(label) for label in labels])
    expected = (logits.double() * torch.tensor(calibration.scale)).double()
    expected = expected + torch.tensor(calibration.bias, dtype=torch.float64)
    after = calibrated.predict_proba(features)
    np.testing.assert_allclose(after, expected.softmax(1), atol=1e-6)
    np.testing.assert_allclose(after.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(calibrated.decision_function(features), expected, atol=1e-4)
    assert calibration.n == len(labels)
    assert calibration.before.nll == pytest.approx(nll(logits, targets))
    assert calibration.after.nll == pytest.approx(nll(expected, targets), rel=1e-5)
    assert calibration.after.nll < calibration.before.nll
    assert calibration.after.accuracy == calibrated.score(features, labels)
    if method == "temperature":
        assert calibrated.predict(features).tolist() == found.tolist()
        assert calibration.temperature == pytest.approx(fit_temperature(logits, targets))
        assert calibration.before.accuracy == calibration.after.accuracy
    best = calibrated.top(features, 1)
    assert [p for ((_, p),) in best] == pytest.approx(after.max(1).tolist())
    # Calibrated once more, it is calibrated anew and not on top
    again = calibrated.calibrate(features, labels, method=method)
    assert again.calibration == calibration


def test_parameters_make_the_same_calibrated_classifier(model: DualEncoder) -> None:
    made = classifier(model)
    features, labels = images_of(made)
    calibrated = made.calibrate(features, labels)
    again = ZeroShotClassifier(**calibrated.get_params())
    assert again.get_params() == calibrated.get_params()
    assert np.array_equal(again.predict_proba(features), calibrated.predict_proba(features))
    # As scikit-learn's `clone`: copies of all parameters, each kept as the very object
    told = {name: copy.deepcopy(value) for name, value in calibrated.get_params().items()}
    copied = ZeroShotClassifier(**told)
    assert all(value is told[name] for name, value in copied.get_params().items())
    assert np.array_equal(copied.predict_proba(features), calibrated.predict_proba(features))


@pytest.mark.parametrize("method", ["temperature", "vector"])
def test_a_file_gives_the_same_bits(model: DualEncoder, tmp_path: Path, method: Any) -> None:
    made = classifier(model)
    features, labels = images_of(made)
    calibrated = made.calibrate(features, labels, method=method, precision=0.9)
    assert calibrated.calibration is not None
    path = calibrated.calibration.save(tmp_path / "made" / "calibration.json")
    assert Calibration.load(path) == calibrated.calibration
    again = classifier(model, calibration=Calibration.load(path))
    assert np.array_equal(again.predict_proba(features), calibrated.predict_proba(features))
    assert again.predict(features).tolist() == calibrated.predict(features).tolist()
    told = json.loads(path.read_text())
    assert (told["format_version"], told["kind"], told["n"]) == (1, "calibration", 160)


@pytest.mark.parametrize("method", ["temperature", "vector"])
def test_labels_are_found_by_name(model: DualEncoder, method: Any) -> None:
    made = classifier(model)
    features, labels = images_of(made)
    calibrated = made.calibrate(features, labels, method=method)
    expected = calibrated.predict_proba(features)
    order = [2, 0, 3, 1]
    turned = classifier(
        model, labels=[LABELS[i] for i in order], calibration=calibrated.calibration
    )
    np.testing.assert_allclose(turned.predict_proba(features), expected[:, order], atol=1e-6)
    part = classifier(model, labels=LABELS[1:3], calibration=calibrated.calibration)
    given_part = expected[:, 1:3] / expected[:, 1:3].sum(1, keepdims=True)
    np.testing.assert_allclose(part.predict_proba(features), given_part, atol=1e-5)


def test_the_threshold_reaches_the_precision(model: DualEncoder) -> None:
    made = classifier(model)
    features, labels = images_of(made)
    plain = made.score(features, labels)
    wanted = plain + 0.1
    assert wanted < 1
    calibrated = made.calibrate(features, labels, precision=wanted)
    assert calibrated.calibration is not None
    threshold = calibrated.calibration.threshold
    assert threshold is not None
    found = calibrated.predict(features)
    kept = found != NONE
    assert np.mean(found[kept] == np.array(labels)[kept]) >= wanted
    assert kept.sum() == (calibrated.predict_proba(features).max(1) >= threshold).sum() > 20
    assert calibrated.calibration.coverage == kept.mean() < 1
    # The classifier's own threshold replaces it
    own = classifier(model, calibration=calibrated.calibration, threshold=0.0)
    assert NONE not in own.predict(features)
    assert calibrated.score(features[~kept], [NONE] * int((~kept).sum())) == 1
    with pytest.raises(ConfigError, match="leave one of them out"):
        classifier(model, threshold=0.5).calibrate(features, labels, precision=0.9)
    # A threshold was chosen among its labels
    with pytest.raises(InputError, match='chosen among other labels: "ice cream" is missing'):
        classifier(model, labels=LABELS[:2], calibration=calibrated.calibration)
    classifier(model, labels=LABELS[:2], calibration=calibrated.calibration, threshold=0.5)


def test_a_precision_out_of_reach_is_said(model: DualEncoder) -> None:
    made = classifier(model)
    features, labels = images_of(made)
    surest = int(made.predict_proba(features).max(1).argmax())
    labels[surest] = LABELS[LABELS.index(labels[surest]) - 1]
    with pytest.raises(InputError, match=r"no threshold reaches a precision of 1 on 160 images, "):
        made.calibrate(features, labels, precision=1.0)


@pytest.mark.parametrize("method", ["tip-adapter", "ncm", "linear", "coop"])
def test_a_few_shot_head_is_what_is_calibrated(
    model: DualEncoder, method: Any, tmp_path: Path
) -> None:
    made, plain = classifier(model), classifier(model)
    shots, shot_labels = images_of(made, each=4, seed=1)
    features, labels = images_of(made)
    made.fit(shots, shot_labels, method=method)
    calibrated = made.calibrate(features, labels)
    calibration = calibrated.calibration
    assert calibration is not None
    assert calibration.temperature == pytest.approx(
        fit_temperature(
            torch.tensor(made.decision_function(features)),
            torch.tensor([LABELS.index(label) for label in labels]),
        )
    )
    assert calibrated.predict(features).tolist() == made.predict(features).tolist()
    expected = calibrated.predict_proba(features)

    loaded = Calibration.load(calibration.save(tmp_path / "calibration.json"))
    again = classifier(model, calibration=loaded)
    with pytest.raises(InputError, match="fit it on the same images first"):
        again.predict(features)
    again.fit(shots, shot_labels, method=method)
    np.testing.assert_allclose(again.predict_proba(features), expected, atol=1e-6)
    again.fit(*images_of(made, each=4, seed=2), method=method)
    with pytest.raises(InputError, match="another few-shot head"):
        again.predict(features)

    # What was calibrated without a head is refused with one
    zero_shot = plain.calibrate(features, labels)
    zero_shot.fit(shots, shot_labels, method=method)
    with pytest.raises(InputError, match="fit first, then calibrate"):
        zero_shot.predict_proba(features)


# --- Others are refused -----------------------------------------------------------------------


def test_other_models_templates_and_labels_are_refused(
    build: Any, model: DualEncoder, tmp_path: Path
) -> None:
    made = classifier(model)
    features, labels = images_of(made)
    temperature = made.calibrate(features, labels).calibration
    vector = made.calibrate(features, labels, method="vector").calibration
    warmer, moved = build(), build()
    with torch.no_grad():
        warmer.logit_scale.add_(0.1)
        next(p for p in moved.text.parameters() if p.ndim > 1)[0, 0] += 0.5

    def refusal(of: DualEncoder, **options: Any) -> str:
        with pytest.raises(InputError) as caught:
            classifier(of, **options).predict(features)
        told = str(caught.value)
        assert "\n" not in told
        return told

    for other in (warmer, moved):
        told = refusal(other, calibration=temperature)
        assert "the calibration is for the model" in told
        assert "or calibrate again" in told
    told = refusal(model, calibration=temperature, templates="imagenet-7")
    assert 'the calibration is for the templates "one"' in told
    assert 'got "imagenet-7"' in told
    told = refusal(model, calibration=vector, labels=[*LABELS, "trucks"])
    assert 'no numbers for the label "trucks": did you mean "truck"' in told
    # A temperature holds for any labels; templates are what they say
    classifier(model, calibration=temperature, labels=["dog", "cow"]).predict(features)
    (tmp_path / "own.txt").write_text("a photo of a {}.\n")
    same = classifier(model, calibration=temperature, templates=tmp_path / "own.txt")
    assert same.predict(features).tolist() == made.predict(features).tolist()
    # An equal model from elsewhere is the same
    assert classifier(build(), calibration=temperature).predict(features).shape == (160,)


def test_bad_requests_are_said(model: DualEncoder) -> None:
    made = classifier(model)
    features, labels = images_of(made)
    for options, message in (
        ({"method": "vectr"}, 'did you mean "vector"'),
        ({"precision": 95}, "precision is 95: expected a share"),
    ):
        with pytest.raises(ConfigError, match=message):
            made.calibrate(features, labels, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="leave out multi_label"):
        classifier(model, multi_label=True).calibrate(features, labels)
    calibration = made.calibrate(features, labels).calibration
    with pytest.raises(ConfigError, match="leave one of them out"):
        classifier(model, multi_label=True, calibration=calibration)
    with pytest.raises(InputError, match=r"is of type str: expected Calibration\.load"):
        classifier(model, calibration="calibration.json")
    with pytest.raises(InputError, match="at least two"):
        classifier(model, labels=["cat"]).calibrate(features, ["cat"] * len(features))
    with pytest.raises(InputError, match='unknown label "cats"'):
        made.calibrate(features, ["cats"] * len(features))
    few = [i for i, label in enumerate(labels) if label != "truck"]
    some = [labels[i] for i in few]
    with pytest.raises(InputError, match='1 of 4 labels have no image, the first is "truck"'):
        made.calibrate(features[few], some, method="vector")
    made.calibrate(features[few], some)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "clip"}, "is no calibration"),
        ({"format_version": 2}, "has format version 2: expected 1"),
        ({"n": None}, r"calibration\.json\.n = None: expected int"),
        ({"scale": [1.0, 2.0]}, "Calibration.scale has 2 numbers: expected 1 for 4 labels"),
        ({"scale": [float("nan")]}, "expected a finite number"),
        ({"threshold": 1.5}, r"threshold = 1\.5: expected at least 0 and at most 1"),
        ({"method": "isotonic"}, "Choices: temperature, vector"),
        ({"labels": ["cat", "cat"]}, '"cat" more than once'),
        ({"temperature": 2.0}, "unknown key"),
    ],
)
def test_bad_files_are_said(
    model: DualEncoder, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    made = classifier(model)
    calibration = made.calibrate(*images_of(made)).calibration
    assert calibration is not None
    path = calibration.save(tmp_path / "calibration.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        Calibration.load(path)
    with pytest.raises(InputError, match="cannot read the calibration in"):
        Calibration.load(tmp_path / "nowhere.json")
    path.write_text(path.read_text()[:50])
    with pytest.raises(InputError, match="cannot read the calibration in"):
        Calibration.load(path)
