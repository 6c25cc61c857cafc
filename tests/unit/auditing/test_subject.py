"""A classifier as a subject: what is deployed, in other words, each image encoded once."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from isthmus.auditing.language_subject import LanguageSubject
from isthmus.auditing.measures.outside import mcm
from isthmus.auditing.subject import ClassifierSubject, Subject
from isthmus.classification.zero_shot import ZeroShotClassifier
from isthmus.errors import ConfigError, ImageError, InputError
from isthmus.model.clip.dual_encoder import DualEncoder

LABELS = ["cat", "great white shark", "ice cream", "truck"]
Photos = list[Image.Image]


def built(loss: Any = "softmax") -> DualEncoder:
    torch.manual_seed(3)
    made = DualEncoder.join("tiny-vit", "tiny-text", width=12, loss=loss)
    for parameter in made.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return built()


def classifier(model: Any, **options: Any) -> ZeroShotClassifier:
    told = {"labels": LABELS, "templates": "imagenet-7", "cache": False, **options}
    return ZeroShotClassifier(model, **told)


def subject(model: Any, **options: Any) -> ClassifierSubject:
    return ClassifierSubject(classifier(model, **options), "it")


def labelled(n: int = 60) -> tuple[torch.Tensor, list[str]]:
    """Features that anything can be fitted on, and labels that are mostly right."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(n, 12, generator=generator)
    return features, [LABELS[i % 4] for i in range(n)]


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_logits_are_the_classifiers(loss: str, photos: Photos) -> None:
    made = classifier(built(loss))
    found = ClassifierSubject(made, "it")
    logits = found.logits(photos)
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(logits, made.decision_function(photos), rtol=1e-5, atol=1e-5)
    assert logits.std(dim=0).min() > 1e-3  # images count
    features = found.features(photos)
    torch.testing.assert_close(features, made.transform(photos), rtol=0, atol=1e-6)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(6))
    cosine = features @ made.weights_.T
    assert found.similarity_scale is not None
    expected = cosine.double().softmax(dim=1).amax(dim=1)
    torch.testing.assert_close(mcm(logits, found.similarity_scale), expected, rtol=0, atol=1e-5)


def test_what_is_deployed_is_what_is_audited(model: DualEncoder, photos: Photos) -> None:
    features, labels = labelled()
    made = classifier(model).fit(features, labels, "ncm").calibrate(features, labels)
    found = ClassifierSubject(made, "it")
    np.testing.assert_allclose(found.logits(photos), made.decision_function(photos), rtol=1e-4)
    plain = classifier(model).decision_function(photos)
    assert np.abs(found.logits(photos).numpy() - plain).max() > 0.1
    assert found.similarity_scale is None


def test_calibrated_zero_shot_logits_are_still_similarities(
    model: DualEncoder, photos: Photos
) -> None:
    zero_shot = classifier(model)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 12, generator=generator)
    features = zero_shot.weights_.repeat(50, 1) + noise
    calibrated = zero_shot.calibrate(features, LABELS * 50)
    found = ClassifierSubject(calibrated, "it")
    cosine = found.features(photos) @ zero_shot.weights_.T
    torch.testing.assert_close(found.logits(photos), found.similarity_scale * cosine)
    vector = ClassifierSubject(
        zero_shot.calibrate(features, LABELS * 50, method="vector", precision=0.3), "it"
    )
    assert vector.similarity_scale is None
    assert vector.predict_none == vector.classifier.calibration.threshold  # type: ignore[union-attr]
    assert subject(model, threshold=0.4).predict_none == 0.4
    assert subject(model, threshold=0.4, multi_label=True).predict_none is None
    assert subject(model).predict_none is None


def test_all_kinds_of_images_are_the_same_image(
    model: DualEncoder, photos: Photos, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    photos[0].save(path)
    kinds = [photos[0], path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())]
    found = subject(model)
    rows = found.logits(kinds)  # type: ignore[arg-type]
    torch.testing.assert_close(rows, rows[:1].expand(5, -1), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.logits(kinds), rows)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="no file at"):
        found.logits([tmp_path / "none.png"])
    with pytest.raises(InputError, match="got one image: expected a list"):
        found.logits(str(path))
    with pytest.raises(InputError, match="got no images"):
        found.logits([])


def test_an_image_is_encoded_once(model: DualEncoder, photos: Photos, tmp_path: Path) -> None:
    found = subject(model)
    path = tmp_path / "a.png"
    photos[0].save(path)
    found.logits([path, path, *photos[1:3]])
    other = found.with_prompts(templates=["a drawing of a {}."])
    first = other.logits([photos[1].copy(), path])
    other.features([path])
    assert found._features.computed == 3
    photos[4].save(path)  # another image under the same name
    assert float((other.logits([path]) - first[1]).abs().max()) > 1e-3
    assert found._features.computed == 4
    torch.testing.assert_close(other.logits([path]), other.logits([photos[4]]))


@torch.no_grad()
def test_with_prompts_class_k_stays_class_k(model: DualEncoder, photos: Photos) -> None:
    found: Subject = subject(model)
    words = ["kitten", "shark", "gelato", "lorry"]
    renamed = found.with_prompts(labels=words)
    assert renamed.labels == tuple(words)
    expected = classifier(model, labels=words).decision_function(photos)
    np.testing.assert_allclose(renamed.logits(photos), expected, rtol=1e-4, atol=1e-4)
    # One class alone in other words: all others keep their logits
    one = found.with_prompts(labels=[LABELS[0], "shark", *LABELS[2:]]).logits(photos)
    torch.testing.assert_close(one[:, [0, 2, 3]], found.logits(photos)[:, [0, 2, 3]])
    assert float((one[:, 1] - found.logits(photos)[:, 1]).abs().max()) > 1e-3
    # Distractors stand behind them
    more = found.with_prompts(labels=[*LABELS, "house", "tree"])
    assert more.chance == 1 / 6
    torch.testing.assert_close(more.logits(photos)[:, :4], found.logits(photos))
    worded = found.with_prompts(templates=["a drawing of a {}."])
    assert worded.templates == ("a drawing of a {}.",)
    assert worded.labels == tuple(LABELS)
    assert float((worded.logits(photos) - found.logits(photos)).abs().max()) > 1e-3
    assert (found.labels, len(found.templates), found.chance) == (tuple(LABELS), 7, 0.25)
    with pytest.raises(InputError, match="got 3 labels in place of 4"):
        found.with_prompts(labels=words[:3])
    with pytest.raises(InputError, match="more than once"):
        found.with_prompts(labels=["cat"] * 4)


def test_a_calibration_goes_with_its_wording(model: DualEncoder, photos: Photos) -> None:
    features, labels = labelled()
    made = classifier(model).fit(features, labels, "tip-adapter").calibrate(features, labels)
    found = ClassifierSubject(made, "it")
    same = found.with_prompts(labels=LABELS, templates=list(found.templates))
    torch.testing.assert_close(same.logits(photos), found.logits(photos))
    assert same.classifier.calibration is made.calibration
    other = found.with_prompts(templates=["{}"])
    assert other.classifier.calibration is None
    expected = classifier(model, templates=["{}"]).fit(features, labels, "tip-adapter")
    np.testing.assert_allclose(other.logits(photos), expected.decision_function(photos), rtol=1e-4)
    more = found.with_prompts(labels=[*LABELS, "tree"]).logits(photos)
    uncalibrated = classifier(model).fit(features, labels, "tip-adapter")
    np.testing.assert_allclose(more[:, :4], uncalibrated.decision_function(photos), rtol=1e-4)


@pytest.mark.parametrize("method", ["ncm", "linear", "coop"])
def test_a_head_without_prompts_refuses_others(model: DualEncoder, method: str) -> None:
    features, labels = labelled()
    options = {"epochs": 1} if method == "coop" else {}
    made = classifier(model).fit(features, labels, method, **options)  # type: ignore[arg-type]
    found = ClassifierSubject(made, "it")
    assert found.with_prompts(labels=LABELS) is found
    with pytest.raises(ConfigError, match="does not depend on prompts"):
        found.with_prompts(templates=["a drawing of a {}."])
    with pytest.raises(ConfigError, match="does not depend on prompts"):
        found.with_prompts(labels=["kitten", *LABELS[1:]])


def test_descriptions_go_with_their_labels(model: DualEncoder, photos: Photos) -> None:
    told = {label: [f"{label}, which is nice."] for label in LABELS}
    found = subject(model, templates=told)
    assert found.templates == ()
    with pytest.raises(ConfigError, match="pass templates as well"):
        found.with_prompts(labels=["kitten", *LABELS[1:]])
    worded = found.with_prompts(templates="one")
    expected = classifier(model, templates="one").decision_function(photos)
    np.testing.assert_allclose(worded.logits(photos), expected, rtol=1e-4, atol=1e-4)


def test_the_identity_tells_what_decides(model: DualEncoder) -> None:
    features, labels = labelled()
    plain = subject(model)
    told = plain.identity()
    assert told == subject(model).identity()
    assert all(isinstance(value, str) and len(value) < 100 for value in told.values())

    def changed(other: ClassifierSubject) -> set[str]:
        found = other.identity()
        return {key for key in told if told[key] != found[key]}

    assert changed(plain.with_prompts(labels=["kitten", *LABELS[1:]])) == {"labels"}
    assert changed(plain.with_prompts(templates=["{}"])) == {"templates"}
    fitted = classifier(model).fit(features, labels, "ncm")
    assert changed(ClassifierSubject(fitted, "it")) == {"head"}
    calibrated = fitted.calibrate(features, labels)
    assert changed(ClassifierSubject(calibrated, "it")) == {"head", "calibration"}
    assert changed(subject(model, threshold=0.5)) == {"threshold"}
    assert "weights" in changed(subject(built("sigmoid")))


def test_both_kinds_are_subjects() -> None:
    members = [name for name in vars(Subject) if name[0] != "_"]
    for kind in (ClassifierSubject, LanguageSubject):
        fields = {*vars(kind), *kind.__dataclass_fields__}
        assert not {name for name in members if name not in fields}
