"""Contrastive training: exact to resume, the same from kept vectors, and it learns."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from isthmus.classification.zero_shot import ZeroShotClassifier
from isthmus.config.clip import ContrastiveConfig
from isthmus.config.model import TrainConfig
from isthmus.data.records import Record
from isthmus.errors import ConfigError, PromptError, TrainingError, TrainingStopped
from isthmus.model.clip.checkpoint import load_clip
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.clip.joined import HeadConfig
from isthmus.training.feed import DataSet
from isthmus.training.locked import view_of
from isthmus.training.loop import train
from isthmus.training.optim import contrastive_optimizer
from isthmus.training.pairs import PairFeed, PairSet, same_things

NAMES = ["red", "green", "blue", "white", "black", "gray", "pink", "teal"]
CONFIG = TrainConfig(
    steps=6,
    batch_size=4,
    warmup=2,
    save_every=2,
    log_every=1,
    lr=1e-3,
    final_lr=0.0,
    precision="fp32",
)


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    made = []
    for i, name in enumerate(NAMES):
        noise = np.random.default_rng(i).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        path = tmp_path / f"{name}.png"
        Image.fromarray(noise).resize((48, 40), Image.Resampling.NEAREST).save(path)
        made.append(Record.of(path, "", name, names=(name, f"dark {name}")))
    return made


def join(**options: Any) -> DualEncoder:
    torch.manual_seed(0)
    heads = {"image_head": HeadConfig(hidden=32), "text_head": HeadConfig(), "width": 16}
    return DualEncoder.join("tiny-vit", "tiny-text", **{**heads, **options})


OWN = {f.name for f in fields(ContrastiveConfig)}


def change(config: TrainConfig, **changes: Any) -> TrainConfig:
    """A configuration with some fields changed, those of its contrastive table among them."""
    own = {k: v for k, v in changes.items() if k in OWN}
    rest = {k: v for k, v in changes.items() if k not in OWN}
    return replace(config, contrastive=replace(config.contrastive, **own), **rest)


def logged(folder: Path, key: str = "loss") -> list[tuple[int, Any]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [(e["step"], e[key]) for e in map(json.loads, lines) if key in e]


def state(model: DualEncoder) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def run(model: DualEncoder, data: Any, config: TrainConfig, out: Path, **how: Any) -> Any:
    return train(model, data, config, out, quiet=True, **how)


# --- Exactness ----------------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize("end_to_end", [False, True])
def test_a_killed_run_goes_on_loss_for_loss(
    records: list[Record], tmp_path: Path, end_to_end: bool
) -> None:
    """With everything that is drawn: images' views, names, templates, dropout."""
    options: dict[str, Any] = {"image_head": HeadConfig(hidden=32, dropout=0.3)}
    config = change(CONFIG, views=3, evaluate_every=3)
    if end_to_end:
        options |= {"lock_image": False, "lock_text": False, "loss": "sigmoid"}
        config = change(config, chunk=3, views=0, lr_encoder=1e-3)
    data = [PairSet(records, "imagenet-7")]
    whole = run(join(**options), data, config, tmp_path / "whole", evaluation=data)

    def kill(step: int, loss: float) -> None:
        if step == 5:
            raise Killed

    out = tmp_path / "cut"
    with pytest.raises(Killed):
        run(join(**options), data, config, out, evaluation=data, on_step=kill)
    resumed = run(join(**options), data, config, out, evaluation=data)
    cut = logged(out)
    assert dict(cut) == dict(logged(tmp_path / "whole"))
    steps = [s for s, _ in cut]
    assert (steps.count(4), steps.count(5)) == (1, 2)  # it went on after 4, the last saved
    for name, tensor in state(whole).items():
        assert torch.equal(tensor, state(resumed)[name]), name


def test_asked_to_stop_it_saves_first(records: list[Record], tmp_path: Path) -> None:
    def ask(step: int, loss: float) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    config = change(CONFIG, save_every=100)
    with pytest.raises(TrainingStopped, match="stopped after step 3 of 6"):
        run(join(), records, config, tmp_path / "cut", on_step=ask)
    resumed = run(join(), records, config, tmp_path / "cut")
    whole = run(join(), records, config, tmp_path / "whole")
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
    assert resumed.fingerprint() == whole.fingerprint()


@pytest.mark.parametrize("options", [{}, {"lock_text": False}, {"loss": "sigmoid"}])
def test_kept_vectors_change_nothing(
    records: list[Record], tmp_path: Path, options: dict[str, Any]
) -> None:
    """Images and texts through their encoders at every step, or once before the first."""
    config = change(CONFIG, views=3, precision="fp32")
    data = [PairSet(records, "imagenet-7")]
    models = []
    for kept in (True, False):
        out = tmp_path / str(kept)
        models.append(run(join(**options), data, change(config, feature_cache=kept), out))
        assert (out / "features").exists() == kept
    assert logged(tmp_path / "True") == [
        (s, pytest.approx(v, abs=2e-6)) for s, v in logged(tmp_path / "False")
    ]
    for name, tensor in state(models[0]).items():
        torch.testing.assert_close(tensor, state(models[1])[name], rtol=0, atol=1e-5)


def test_chunks_change_nothing(records: list[Record], tmp_path: Path) -> None:
    models = []
    for chunk in (None, 3):
        config = change(CONFIG, batch_size=8, chunk=chunk, lr_encoder=1e-3)
        model = join(lock_image=False, lock_text=False)
        models.append(run(model, records, config, tmp_path / str(chunk)))
    losses = dict(logged(tmp_path / "None"))
    for step, loss in logged(tmp_path / "3"):
        assert loss == pytest.approx(losses[step], abs=1e-5)
    for name, tensor in state(models[0]).items():
        torch.testing.assert_close(tensor, state(models[1])[name], rtol=0, atol=2e-5)


def test_half_precision_is_near(records: list[Record], tmp_path: Path) -> None:
    """Activations are rounded, and nothing else: parameters and their updates stay fp32."""
    for precision in ("fp32", "bf16", "fp16"):
        for chunk in (None, 3):
            config = change(CONFIG, batch_size=8, chunk=chunk, precision=precision, steps=3)
            model = join(lock_image=False, lock_text=False)
            model = run(model, records, config, tmp_path / f"{precision} {chunk}")
            assert {p.dtype for p in model.parameters()} == {torch.float32}
    for chunk in (None, 3):
        exact = dict(logged(tmp_path / f"fp32 {chunk}"))
        for precision in ("bf16", "fp16"):
            rounded = dict(logged(tmp_path / f"{precision} {chunk}"))
            assert rounded != exact
            # In fp16 the first steps find the loss scale and change nothing
            steps = exact if precision == "bf16" else (1,)
            for step in steps:
                assert rounded[step] == pytest.approx(exact[step], rel=0.05)


def test_locked_towers_stay_as_they_are(records: list[Record], tmp_path: Path) -> None:
    for locked in (True, False):
        model = join(lock_image=locked)
        before = state(model)
        config = change(CONFIG, lr_encoder=1e-3)
        after = state(run(model, records, config, tmp_path / str(locked)))
        moved = {n for n, tensor in after.items() if not torch.equal(tensor, before[n])}
        assert any(n.startswith("image.encoder.") for n in moved) != locked
        assert not any(n.startswith("text.encoder.") for n in moved)
        assert {"image.head.linear.weight", "text.head.linear.weight", "logit_scale"} <= moved


def test_the_saved_model_is_the_trained_one(records: list[Record], tmp_path: Path) -> None:
    """In the run's folder, its checkpoint and, where it was best, in `best`."""
    model = join(lock_text=False)
    config = change(CONFIG, evaluate_every=6)
    run(model, records, config, tmp_path / "run", evaluation=[PairSet(records)])
    texts = ["red", "a dark green"]
    for folder in ("run", "run/step-000006", "run/best"):
        loaded = load_clip(tmp_path / folder)
        assert loaded.fingerprint() == model.fingerprint()
        assert torch.equal(loaded.logit_scale, model.logit_scale)
        assert torch.equal(loaded.encode_texts(texts), model.encode_texts(texts))


# --- Learning -----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_eight_images_are_learned_by_heart(
    records: list[Record], tmp_path: Path, loss: str
) -> None:
    """Known value: each image finds its name, by evaluation and by the classifier alike."""
    config = change(CONFIG, steps=150, batch_size=8, lr=1e-2, evaluate_every=75, save_every=150)
    data = [PairSet(records, "one")]
    model = run(join(loss=loss), data, config, tmp_path / "run", evaluation=data)
    losses = [v for _, v in logged(tmp_path / "run")]
    assert losses[-1] < 0.1 * losses[0]
    assert logged(tmp_path / "run", "evaluation")[-1] == (150, {"pairs": 1.0})
    classifier = ZeroShotClassifier(model, NAMES, "one", cache=False)
    images = [r.images[0].path for r in records]  # type: ignore[union-attr]
    assert list(classifier.predict(images)) == NAMES


def test_evaluation_is_the_classifiers_score(records: list[Record], tmp_path: Path) -> None:
    aside = [replace(r, turns=records[i // 2].turns) for i, r in enumerate(records)]
    data = [PairSet(aside, "imagenet-7", name="aside")]
    config = change(CONFIG, evaluate_every=6, lr=1e-2)
    model = run(join(), records, config, tmp_path / "run", evaluation=data)
    ((_, found),) = logged(tmp_path / "run", "evaluation")
    classifier = ZeroShotClassifier(model, NAMES, "imagenet-7", cache=False)
    images = [r.images[0].path for r in aside]  # type: ignore[union-attr]
    assert found == {"aside": classifier.score(images, [r.names[0] for r in aside])}
    assert 0 < found["aside"] < 1


def test_vectors_in_place_of_images(tmp_path: Path) -> None:
    """A class's weights in the encoder's own head are an image of it that needs no pixels."""
    model = join()
    vectors = torch.eye(model.image.head.linear.in_features)[:8]  # type: ignore[union-attr]
    named = [Record.of(None, "", name) for name in NAMES]
    data = [PairSet(named, vectors=vectors)]
    config = change(CONFIG, steps=60, batch_size=8, lr=1e-2)
    run(model, data, config, tmp_path / "run", evaluation=data)
    with torch.no_grad():
        image = torch.nn.functional.normalize(model.image.head(vectors), dim=-1)  # type: ignore[operator]
        assert (image @ model.encode_texts(NAMES).T).argmax(1).tolist() == list(range(8))


def test_the_temperature_is_bounded(records: list[Record], tmp_path: Path) -> None:
    for bounds in ((20.0, 30.0), (1.0, 10.0)):
        config = change(CONFIG, steps=2, least_scale=bounds[0], most_scale=bounds[1])
        model = run(join(), records, config, tmp_path / str(bounds))
        nearest = min(max(1 / 0.07, bounds[0]), bounds[1])
        assert float(model.logit_scale.detach().exp()) == pytest.approx(nearest, rel=1e-2)


def test_same_names_are_no_negatives(records: list[Record], tmp_path: Path) -> None:
    """Two records of one name, in every batch: left out, the loss of a pair alone is 0."""
    twins = [replace(r, names=("it",)) for r in records[:2]]
    for same_name, expected in (("neither", 0.0), ("negative", 0.6931), ("positive", 0.6931)):
        config = change(CONFIG, steps=1, batch_size=2, same_name=same_name, lr=1e-9)
        model = join()
        with torch.no_grad():
            model.logit_scale.fill_(0.0)
            model.image.head.linear.weight.zero_()  # type: ignore[union-attr]
        run(model, twins, config, tmp_path / same_name)
        assert logged(tmp_path / same_name)[0][1] == pytest.approx(expected, abs=1e-3)


def test_linked_names_are_one_thing() -> None:
    # 5 drew its other name 6, which is the first of another; 7 stands alone
    assert same_things([(5, 6), (6, 6), (7, 7), (5, 5)]) == [6, 6, 7, 6]
    assert same_things([(5, 5), (6, 6), (7, 7)]) == [5, 6, 7]


def test_rates_and_weight_decay() -> None:
    model = join(lock_image=False, loss="sigmoid")
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    config = change(CONFIG, lr=1e-3, lr_encoder=1e-5, weight_decay=0.3)
    groups = contrastive_optimizer(model, parameters, config).param_groups
    told = {id(p): (g["peak"], g["weight_decay"]) for g in groups for p in g["params"]}
    found = {name: told[id(p)] for name, p in parameters.items()}
    assert found["logit_scale"] == found["logit_bias"] == (1e-3, 0.0)
    assert found["text.head.linear.weight"] == (1e-3, 0.3)
    assert found["text.head.linear.bias"] == (1e-3, 0.0)
    encoder = {n: told for n, told in found.items() if n.startswith("image.encoder.")}
    assert {(rate, decay > 0) for rate, decay in encoder.values()} == {(1e-5, False), (1e-5, True)}
    for name, (_, decay) in encoder.items():
        tokens = name.endswith(("pos_embed", "cls_token"))
        assert (decay == 0.0) == (parameters[name].ndim < 2 or tokens), name
    assert not any(name.startswith("text.encoder.") for name in found)


# --- What is drawn ------------------------------------------------------------------------------


def feed(data: list[PairSet], **options: Any) -> PairFeed:
    config = change(CONFIG, workers=0, **options)
    return PairFeed(data, config, lambda p: torch.zeros(3, 2, 2))


def test_everything_is_drawn_evenly(records: list[Record]) -> None:
    """Images of a record, names, templates and views, in shares that are known."""
    several = replace(
        records[0],
        turns=(replace(records[0].turns[0], images=records[0].images + records[1].images),),
    )
    made = feed([PairSet([several], ["a {}", "the {}", "{}"])], batch_size=6000, views=2)
    drawn = list(made.drawn(0))
    texts = {(p.name, p.text) for p in drawn}
    assert len(texts) == 2 * 3
    for key, ways in (("image", 2), ("view", 2), ("name", 2), ("text", 6)):
        values = [getattr(p, key) for p in drawn]
        for value in set(values):
            assert abs(values.count(value) / 6000 - 1 / ways) < 0.03, key
        assert len(set(values)) == ways
    assert [p.text for p in made.drawn(1)] != [p.text for p in drawn]
    assert [p.text for p in made.drawn(0)] == [p.text for p in drawn]


def test_views_are_of_each_image_its_own() -> None:
    """Another image, view or seed is another crop; the same three are the same."""
    image, seen = Image.new("RGB", (4, 4)), []

    def augment(shown: Image.Image, generator: np.random.Generator) -> Image.Image:
        seen.append(generator.random())
        return shown

    keys = "0" * 32, "1" * 32
    told = [(view, key, seed) for view in (1, 2) for key in keys for seed in (0, 1)]
    for view, key, seed in told * 2:
        view_of(image, view, key, augment, seed)
    assert seen[:8] == seen[8:]
    assert len(set(seen)) == 8
    assert view_of(image, 0, keys[0], augment, 0) is image
    assert len(seen) == 16


def test_evaluation_is_on_images_as_they_are(records: list[Record], tmp_path: Path) -> None:
    """A new view is made for each pair of the training, and none for the evaluations."""
    made = []

    def augment(shown: Image.Image, generator: np.random.Generator) -> Image.Image:
        made.append(generator.random())
        return shown

    config = change(CONFIG, views=0, evaluate_every=3)
    run(join(), records, config, tmp_path, evaluation=[PairSet(records)], augment=augment)
    assert len(set(made)) == len(made) == CONFIG.steps * CONFIG.batch_size


def test_data_sets_have_their_shares(records: list[Record]) -> None:
    made = feed([PairSet(records, weight=3.0), PairSet(records[:2])], batch_size=400)
    drawn = [p.data for p in made.drawn(0)]
    assert abs(drawn.count(0) - 300) <= 2


def test_processes_share_a_step(records: list[Record]) -> None:
    config = change(CONFIG, batch_size=5, workers=0)
    whole = list(feed([PairSet(records)], batch_size=5).drawn(2))
    own = [
        list(PairFeed([PairSet(records)], config, torch.zeros, rank=r, processes=2).drawn(2))
        for r in (0, 1)
    ]
    assert [whole[0::2], whole[1::2]] == own
    assert [len(s) for s in own] == [3, 2]


# --- Bad input ----------------------------------------------------------------------------------


def test_broken_images_are_named(records: list[Record], tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    data = [*records, Record.of(bad, "", "bad")]
    for kept in (True, False):
        config = change(CONFIG, batch_size=9, feature_cache=kept, broken_share=0.5)
        out = tmp_path / str(kept)
        run(join(), data, config, out)
        ((name, why),) = {tuple(b[0].values()) for _, b in logged(out, "broken")}
        assert name == str(bad)
        assert "bad.png" in why
        strict = change(config, broken_share=0.01)
        with pytest.raises(TrainingError, match=r"cannot be used.*bad\.png"):
            run(join(), data, strict, tmp_path / f"strict {kept}")
    with pytest.raises(TrainingError, match=r"no pair of step 1 can be used: .*bad\.png"):
        run(join(), data[-1:], CONFIG, tmp_path / "all")


def test_an_infinite_loss_stops_and_keeps_the_last_state(
    records: list[Record], tmp_path: Path
) -> None:
    model = join()

    def poison(step: int, loss: float) -> None:
        if step == 3:
            with torch.no_grad():
                model.logit_scale.fill_(float("nan"))

    with pytest.raises(TrainingError, match=r"the loss of step 4 is nan.*\.png"):
        run(model, records, CONFIG, tmp_path / "run", on_step=poison)
    assert load_clip(tmp_path / "run").logit_scale.isfinite()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, r"steps = 0: expected at least 1"),
        ({"chunk": 0}, r"chunk = 0"),
        ({"views": -1}, r"views = -1"),
        ({"least_scale": 200.0}, r"train\.contrastive\.least_scale is 200\.0"),
    ],
)
def test_bad_numbers_are_named(
    records: list[Record], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(join(), records, change(CONFIG, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bad_data_is_named(records: list[Record], tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match="no data set"):
        run(join(), [], CONFIG, out)
    with pytest.raises(ConfigError, match="nothing to train on in pairs"):
        run(join(), [PairSet([])], CONFIG, out)
    with pytest.raises(ConfigError, match=r"data\.weight is \[0\.0\]"):
        run(join(), [PairSet(records, weight=0.0)], CONFIG, out)
    with pytest.raises(PromptError, match=r"has no \{\}"):
        run(join(), [PairSet(records, ["a photo"])], CONFIG, out)
    with pytest.raises(PromptError, match="the text encoder reads at most"):
        run(join(), [PairSet(records, ["word " * 500 + "{}"])], CONFIG, out)
    with pytest.raises(ConfigError, match=r"vectors of pairs are \(8, 3\): expected \(8, 32\)"):
        run(join(), [PairSet(records, vectors=torch.zeros(8, 3))], CONFIG, out)
    data = [PairSet(records, vectors=torch.zeros(8, 32))]
    with pytest.raises(ConfigError, match="pairs has vectors for images: expected a locked"):
        run(join(lock_image=False), data, CONFIG, out)
    nothing = join().requires_grad_(False)
    with pytest.raises(TrainingError, match="nothing to train"):
        run(nothing, records, CONFIG, out)


@pytest.mark.parametrize("changes", [{"pack": 64}, {"sharding": "fsdp"}, {"init": "tiny"}])
def test_what_would_be_ignored_is_refused(
    records: list[Record], tmp_path: Path, changes: dict[str, Any]
) -> None:
    (key,) = changes
    with pytest.raises(ConfigError, match=rf"train\.{key} is for a vision-language model"):
        run(join(), records, change(CONFIG, **changes), tmp_path / "run")
    with pytest.raises(ConfigError, match="got DataSet as a data set: expected PairSet"):
        run(join(), [DataSet(records)], CONFIG, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_parameters_named_in_freeze_stay(records: list[Record], tmp_path: Path) -> None:
    model = join()
    before = state(model)
    after = state(run(model, records, replace(CONFIG, freeze=("text.",)), tmp_path / "run"))
    moved = {n for n, tensor in after.items() if not torch.equal(tensor, before[n])}
    assert moved
    assert not any(n.startswith("text.") for n in moved)


def test_the_run_has_its_report(records: list[Record], tmp_path: Path) -> None:
    data = [PairSet(records, name="held")]
    run(join(), records, change(CONFIG, evaluate_every=3), tmp_path / "run", evaluation=data)
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "tiny-vit + tiny-text" in text
    assert "held, held out" in text


def test_another_configuration_does_not_go_on(records: list[Record], tmp_path: Path) -> None:
    run(join(), records, change(CONFIG, steps=2), tmp_path / "run")
    with pytest.raises(TrainingError, match=r"differs in: batch_size, model"):
        run(join(width=8), records, change(CONFIG, batch_size=2), tmp_path / "run")
    run(join(), records, change(CONFIG, steps=3, chunk=2), tmp_path / "run")
    assert [s for s, _ in logged(tmp_path / "run")] == [1, 2, 3]


def test_a_freeze_that_names_nothing_is_refused(records: list[Record], tmp_path: Path) -> None:
    config = replace(CONFIG, freeze=("text.", "txet."))
    with pytest.raises(ConfigError, match=r"no parameter begins with 'txet\.'"):
        run(join(), records, config, tmp_path / "run")
