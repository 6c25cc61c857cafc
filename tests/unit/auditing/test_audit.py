"""The whole audit on small models: what it writes, what it says is missing, how it goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus.auditing.attacks.attackable import from_classifier, scores
from isthmus.auditing.bench import Bench, Settings
from isthmus.auditing.data import labelled_images
from isthmus.auditing.demo import demo_images
from isthmus.auditing.part import Kept, Measured, Part, measure, plain, run_all
from isthmus.auditing.report.page import REPORT
from isthmus.auditing.report.page import SECTIONS as SHOWN
from isthmus.auditing.run import SECTIONS, audit, subject_of
from isthmus.auditing.sections.target import target_of
from isthmus.auditing.subject import ClassifierSubject
from isthmus.errors import ConfigError, InputError
from isthmus.model.clip.checkpoint import load_clip

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 40), "blue": (30, 60, 200)}


@pytest.fixture(scope="module")
def encoder() -> im.DualEncoder:
    torch.manual_seed(0)
    return im.DualEncoder.join("tiny-vit", "tiny-text", width=8)


@pytest.fixture(scope="module")
def data() -> im.LabelledImages:
    """Plain colours, eight of each, half of them from an old camera."""
    images, names, cameras = [], [], []
    for label, colour in COLOURS.items():
        for number in range(8):
            shade = tuple(min(255, c + 5 * number) for c in colour)
            images.append(Image.new("RGB", (64, 64), shade))  # type: ignore[arg-type]
            names.append(label)
            cameras.append("old" if number % 2 else "new")
    return labelled_images(images, names, groups={"camera": cameras})


def bench_of(encoder: Any, data: im.LabelledImages, **settings: Any) -> Bench:
    return Bench(subject_of(encoder, data.labels, "one"), data, Settings(**settings))


# --- Parts ----------------------------------------------------------------------------------------


def test_what_is_missing_is_said_and_the_others_run(
    encoder: im.DualEncoder, data: im.LabelledImages
) -> None:
    def refuses(bench: Bench) -> Measured:
        raise InputError("no captions")

    parts = [
        Part("bias", "first", refuses),
        Part("bias", "second", lambda bench: Measured({"n": len(bench.images)})),
    ]
    done = [d for _, d in run_all(parts, bench_of(encoder, data), Kept(None, {}))]
    assert [(d.part, d.missing, dict(d.values)) for d in done] == [
        ("bias/first", "no captions", {}),
        ("bias/second", "", {"n": 24}),
    ]


def test_a_mistake_of_ours_is_no_missing_input(
    encoder: im.DualEncoder, data: im.LabelledImages
) -> None:
    def wrong(bench: Bench) -> Measured:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure(Part("bias", "wrong", wrong), bench_of(encoder, data))


def test_what_was_done_is_not_done_again(
    encoder: im.DualEncoder, data: im.LabelledImages, tmp_path: Path
) -> None:
    ran: list[str] = []

    def noted(name: str, fail: bool = False) -> Part:
        def run(bench: Bench) -> Measured:
            ran.append(name)
            if fail:
                raise KeyboardInterrupt
            return Measured({"name": name}, {"column": [name] * 24})

        return Part("bias", name, run)

    bench = bench_of(encoder, data)
    with pytest.raises(KeyboardInterrupt):
        list(run_all([noted("a"), noted("b", fail=True)], bench, Kept(tmp_path, {"seed": 0})))
    done = list(run_all([noted("a"), noted("b")], bench, Kept(tmp_path, {"seed": 0})))
    assert ran == ["a", "b", "b"]
    assert [d.values["name"] for _, d in done] == ["a", "b"]
    assert done[0][1].columns["column"] == ["a"] * 24


def test_what_was_missing_is_tried_again(
    encoder: im.DualEncoder, data: im.LabelledImages, tmp_path: Path
) -> None:
    given: list[int] = []

    def needs(bench: Bench) -> Measured:
        if not given:
            raise InputError("nothing given")
        return Measured({"given": given})

    part, bench = Part("bias", "needs", needs), bench_of(encoder, data)
    first = [d for _, d in run_all([part], bench, Kept(tmp_path, {}))]
    given.append(1)
    second = [d for _, d in run_all([part], bench, Kept(tmp_path, {}))]
    assert first[0].missing == "nothing given"
    assert (second[0].missing, second[0].values) == ("", {"given": [1]})


def test_another_audit_is_refused(tmp_path: Path) -> None:
    Kept(tmp_path, {"seed": 0, "quick": True})
    with pytest.raises(ConfigError, match="differs in seed"):
        Kept(tmp_path, {"seed": 1, "quick": True})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes"])
def test_json_has_no_word_for_it(value: object) -> None:
    with pytest.raises(ConfigError):
        plain({"a": [value]})


# --- The bench ------------------------------------------------------------------------------------


def test_some_images_are_spread_over_the_classes(
    encoder: im.DualEncoder, data: im.LabelledImages
) -> None:
    for seed in range(8):
        chosen = bench_of(encoder, data, seed=seed).some(7)
        counts = torch.bincount(torch.tensor(data.targets)[chosen], minlength=3)
        assert counts.sort().values.tolist() == [2, 2, 3]
        assert torch.equal(chosen, bench_of(encoder, data, seed=seed).some(7))


def test_as_many_images_are_attacked_however_few_are_right(
    encoder: im.DualEncoder, data: im.LabelledImages
) -> None:
    """What an attack can show depends on how many images are right."""
    bench = bench_of(encoder, data, quick=True)
    said = from_classifier(bench.subject.classifier)  # type: ignore[attr-defined]
    share = float(bench.right.float().mean())
    target = target_of(bench)
    assert target.n == round(5 / max(share, 0.25))
    right = scores(said, target.sample).argmax(-1) == target.sample_targets
    assert torch.equal(target.pixels, target.sample[right])
    assert target.accuracy(target.pixels) == target.clean == float(right.double().mean())
    assert [data.targets[i] for i in target.numbers] == target.targets.tolist()
    assert target_of(bench) is target
    assert target.attacked(eps=0.1) is target.attacked(eps=0.1)


def test_a_full_audit_measures_every_remedy(encoder: im.DualEncoder) -> None:
    images = demo_images()
    [part] = [p for p in SECTIONS["attacks"] if p.name == "remedies"]
    done = measure(part, bench_of(encoder, images))
    assert done.missing == ""
    assert [row["name"] for row in done.values["rows"]] == [
        "none",
        "noise and votes",
        "crops and votes",
    ]
    radii = list(done.values["certified"]["radii"].values())
    assert radii == sorted(radii, reverse=True)
    assert done.values["tuned_head"]["tuned_on"] == 30  # half of the images
    assert "of the other half" in dict(SHOWN["attacks"][2])["remedies"][1](done.values, str)


def test_where_nothing_is_right_nothing_can_be_broken(
    encoder: im.DualEncoder, data: im.LabelledImages
) -> None:
    bench = bench_of(encoder, data, quick=True)
    wrong = [(int(c) + 1) % 3 for c in bench.predicted]
    bench = bench_of(encoder, replace(data, targets=tuple(wrong)), quick=True)
    with pytest.raises(InputError, match="none of 20 images is right"):
        target_of(bench)


def test_the_demonstration_has_each_shape_in_each_colour() -> None:
    images = demo_images()
    pairs = list(zip(images.targets, images.groups["colour"], strict=True))
    assert {pairs.count(pair) for pair in pairs} == {5}
    assert len(set(pairs)) == 12
    assert demo_images().fingerprint() == images.fingerprint()
    assert demo_images(seed=1).fingerprint() != images.fingerprint()


# --- The whole ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(
    encoder: im.DualEncoder, data: im.LabelledImages, tmp_path_factory: pytest.TempPathFactory
) -> tuple[im.Audit, Path]:
    folder = tmp_path_factory.mktemp("audit")
    outside = [Image.new("RGB", (64, 64), (v, v, v)) for v in (0, 90, 180, 255)]
    found = audit(encoder, data, groups=["camera"], outside=outside, quick=True, out=folder)
    return found, folder


def test_every_part_ran_or_says_why(written: tuple[im.Audit, Path]) -> None:
    found, _ = written
    ran = {
        f"{section}/{part}"
        for section, parts in found.results["sections"].items()
        for part in parts
    }
    missing = set(found.results["missing"])
    assert ran | missing == {part.id for parts in SECTIONS.values() for part in parts}
    assert not ran & missing
    # too few images for these; captions and associations were not given
    assert missing <= {
        "bias/frequency",
        "bias/associations",
        "bias/textures",
        "bias/imbalance",
        "confidence/calibration",
        "confidence/label_sets",
        "confidence/saved",
    }


def test_every_part_has_its_place_on_the_page() -> None:
    for section, parts in SECTIONS.items():
        assert [part.name for part in parts] == list(SHOWN[section][2])


def test_what_is_written_is_what_is_returned(written: tuple[im.Audit, Path]) -> None:
    found, folder = written
    assert json.loads((folder / "results.json").read_text()) == found.results
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert rows == list(found.records)
    assert len(rows) == 24
    assert {row["group:camera"] for row in rows} == {"old", "new"}
    right = sum(row["right"] for row in rows) / 24
    assert right == pytest.approx(found.verdict["accuracy"])


def test_the_page_asks_nobody_for_anything(written: tuple[im.Audit, Path]) -> None:
    _, folder = written
    page = (folder / REPORT).read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page
    assert "viewport" in page
    assert "prefers-color-scheme: dark" in page
    for heading in ("Bias and imbalance", "Sensitivity to prompts", "Adversarial fragility"):
        assert heading in page


def test_the_deployed_classifier_is_what_is_audited(
    encoder: im.DualEncoder, data: im.LabelledImages, written: tuple[im.Audit, Path]
) -> None:
    classifier = im.ZeroShotClassifier(encoder, list(data.labels), "imagenet-7", cache=False)
    said = classifier.predict(list(data.files)).tolist()
    assert [row["predicted"] for row in written[0].records] == said


def test_a_killed_audit_goes_on(
    encoder: im.DualEncoder,
    data: im.LabelledImages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = audit(encoder, data, sections=["bias", "confidence"], quick=True)
    broken = [
        *SECTIONS["confidence"][:1],
        Part("confidence", "answering", lambda bench: (_ for _ in ()).throw(KeyboardInterrupt)),
    ]
    with monkeypatch.context() as patched:
        patched.setitem(SECTIONS, "confidence", tuple(broken))
        with pytest.raises(KeyboardInterrupt):
            audit(encoder, data, sections=["bias", "confidence"], quick=True, out=tmp_path)
    again = audit(encoder, data, sections=["bias", "confidence"], quick=True, out=tmp_path)
    assert again.results["sections"] == whole.results["sections"]
    assert again.records == whole.records


def test_a_language_model_and_a_classifier_side_by_side(
    encoder: im.DualEncoder, data: im.LabelledImages, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
    found = audit(
        model, data, against=encoder, sections=["bias", "prompts"], quick=True, out=tmp_path
    )
    other = audit(encoder, data, sections=["bias", "prompts"], quick=True)
    assert found.results["against"]["sections"]["bias"] == other.results["sections"]["bias"]
    assert found.results["sections"]["bias"]["classes"]["measures"]["n"] == 24
    assert "Side by side" in (tmp_path / REPORT).read_text()
    # what needs vectors says so
    assert "dual encoder" in found.results["missing"]["prompts/ensembles"]


def test_a_language_model_has_no_gradient_and_is_attacked_all_the_same(
    data: im.LabelledImages,
) -> None:
    torch.manual_seed(0)
    model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
    found = audit(model, data, sections=["attacks"], quick=True)
    assert found.results["sections"]["attacks"]["sizes"]["gradient"] is False
    assert "gives no gradient" in found.results["missing"]["attacks/smallest"]
    assert set(found.results["sections"]["attacks"]["written_words"]["rows"]) == {
        "clean",
        "word",
        "random",
    }


def test_a_calibration_that_it_writes_is_used(tmp_path: Path) -> None:
    data, encoder = demo_images(), im.load("tiny-clip")
    audit(encoder, data, sections=["confidence"], quick=True, out=tmp_path)
    file = tmp_path / "calibration.json"
    subject = subject_of(encoder, data.labels, None, calibration=im.Calibration.load(file))
    assert isinstance(subject, ClassifierSubject)
    plain_subject = subject_of(encoder, data.labels)
    logits = [s.logits(data.files[:4]) for s in (subject, plain_subject)]
    temperature = im.Calibration.load(file).temperature
    assert temperature is not None
    torch.testing.assert_close(logits[0] * temperature, logits[1], rtol=1e-4, atol=1e-4)


def test_a_model_that_looks_at_textures_is_found_out(encoder: im.DualEncoder) -> None:
    """A planted model answers with the texture for three images of four."""
    images = [Image.new("RGB", (32, 32), (v, v, v)) for v in range(9)]
    shapes = ["cat", "cat", "dog", "dog"] * 2 + ["cat"]
    worn = ["dog", "dog", "cat", "cat"] * 2 + ["fur"]
    data = labelled_images(images, shapes, groups={"texture": worn})
    said = ["dog", "cat", "cat", "cat"] * 2 + ["cat"]
    bench = bench_of(encoder, data, textures="texture")
    bench.logits = torch.nn.functional.one_hot(
        torch.tensor([data.labels.index(name) for name in said])
    ).float()
    [part] = [p for p in SECTIONS["bias"] if p.name == "textures"]
    done = measure(part, bench)
    assert done.values["left_out"] == 1  # "fur" is no label
    assert {k: done.values["found"][k] for k in ("n", "shape", "texture", "shape_share")} == {
        "n": 8,
        "shape": 2,
        "texture": 6,
        "shape_share": 0.25,
    }
    shown = dict(SHOWN["bias"][2])["textures"][1](done.values, str)
    assert "25.0% for the shape" in shown


def test_a_clip_of_open_clip_goes_the_same_way(data: im.LabelledImages, tmp_path: Path) -> None:
    """Every section of a CLIP of another library, and its logits are that library's own."""
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    theirs = open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    ).eval()
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    ours = load_clip(theirs, tokenizer=tokenizer)
    found = audit(ours, data, templates="one", groups=["camera"], quick=True, out=tmp_path)
    ran = {s: set(parts) for s, parts in found.results["sections"].items()}
    assert ran["attacks"] >= {"sizes", "checks", "smallest", "corruptions", "remedies"}
    assert ran["bias"] >= {"classes", "groups"}
    assert ran["prompts"] >= {"wordings"}
    assert found.results["sections"]["attacks"]["sizes"]["gradient"] is True

    transform = open_clip.image_transform(32, is_train=False)
    with torch.no_grad():
        images = theirs.encode_image(torch.stack([transform(i) for i in data.files]), True)
        texts = theirs.encode_text(tokenizer([f"a photo of a {n}." for n in data.labels]), True)
        probabilities = (theirs.logit_scale.exp() * images @ texts.T).softmax(dim=-1)
    for row, own in zip(found.records, probabilities, strict=True):
        assert row["predicted"] == data.labels[int(own.argmax())]
        assert row["probability"] == pytest.approx(float(own.max()), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"textures": "camrea"}, 'did you mean "camera"'),
        ({"sections": ["bais"]}, 'did you mean "bias"'),
        ({"data": ([Image.new("RGB", (8, 8))], ["cat"])}, "at least two"),
        ({"associations": "nothing.toml"}, "cannot read the associations"),
        ({"captions": "nothing.txt"}, "cannot read the captions"),
        ({"groups": ["camrea"]}, 'did you mean "camera"'),
    ],
)
def test_bad_input_is_said(
    encoder: im.DualEncoder, data: im.LabelledImages, options: dict[str, Any], told: str
) -> None:
    with pytest.raises((ConfigError, InputError), match=told):
        audit(encoder, **({"data": data, "quick": True} | options))


def test_words_are_written_on_small_images_too(encoder: im.DualEncoder) -> None:
    images = [Image.new("RGB", (20, 35), (40 * v, 0, 0)) for v in range(6)]
    data = labelled_images(images, ["explosion", "cat"] * 3)
    [part] = [p for p in SECTIONS["attacks"] if p.name == "written_words"]
    done = measure(part, bench_of(encoder, data, quick=True))
    assert done.missing == ""
    assert done.values["n"] == 6
