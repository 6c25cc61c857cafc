from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus.data.records import Record
from isthmus.errors import CheckpointError, ConfigError, TrainingError, TrainingStopped
from isthmus.media.file_ref import FileRef
from isthmus.training import state as state_module
from isthmus.training.feed import DataSet, split
from isthmus.training.loop import train
from isthmus.training.plan import plan
from isthmus.training.precision import DTYPES, best_precision
from isthmus.training.run import default_run
from isthmus.training.state import checkpoints

NAMES = ["red", "green", "blue", "white", "black", "gray", "pink", "teal"]


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    made = []
    for i, name in enumerate(NAMES):
        path = tmp_path / f"{name}.png"
        Image.effect_noise((32, 32), 40 + 20 * i).convert("RGB").rotate(i * 45).save(path)
        made.append(Record.of(path, "What is it?", name))
    return made


def compose(connector: object = None, fusion: object = None) -> im.VisionLanguageModel:
    torch.manual_seed(0)
    return im.compose("tiny-vit", "tiny-lm", connector or im.MLP(), fusion or im.Inline())


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [(e["step"], e["loss"]) for e in map(json.loads, lines) if "loss" in e]


CONFIG = im.TrainConfig(steps=6, batch_size=4, warmup=2, save_every=2, log_every=1, lr=1e-3)


class Killed(Exception):
    pass


@pytest.mark.parametrize("fusion", [im.Inline(), im.CrossAttention(every=2, gate=0.5)])
def test_a_killed_run_goes_on_loss_for_loss(
    records: list[Record], tmp_path: Path, fusion: object
) -> None:
    data = [DataSet(records)]
    whole = train(compose(fusion=fusion), data, CONFIG, tmp_path / "whole", quiet=True)

    def kill(step: int, loss: float) -> None:
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        train(compose(fusion=fusion), data, CONFIG, tmp_path / "cut", quiet=True, on_step=kill)
    resumed = train(compose(fusion=fusion), data, CONFIG, tmp_path / "cut", quiet=True)
    cut = losses(tmp_path / "cut")
    assert dict(cut) == dict(losses(tmp_path / "whole"))
    steps = [s for s, _ in cut]
    assert (steps.count(4), steps.count(5)) == (1, 2)  # it went on after 4, the last saved
    for name, parameter in whole.trained_parameters().items():
        assert torch.equal(parameter, resumed.trained_parameters()[name]), name


def test_the_seed_decides(records: list[Record], tmp_path: Path) -> None:
    data = [DataSet(records)]
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = im.TrainConfig(**{**vars(CONFIG), "seed": seed})
        train(compose(), data, config, tmp_path / name, quiet=True)
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")


def test_a_run_does_not_go_on_with_other_data_or_another_frozen_strip(
    records: list[Record], tmp_path: Path
) -> None:
    def run(data: list[Record], seed: int = 0, steps: int = 2) -> None:
        torch.manual_seed(seed)
        model = im.compose("tiny-vit", "tiny-lm", im.MLP(), im.CrossAttention(every=2, heads=2))
        config = replace(CONFIG, steps=steps, freeze=("connector.",))
        train(model, data, config, tmp_path / "run", quiet=True)

    run(records)
    with pytest.raises(TrainingError, match=r"differs in: number of records\."):
        run(records[:-1], steps=4)
    with pytest.raises(TrainingError, match=r"differs in: frozen tensors of the strip\."):
        run(records, seed=1, steps=4)
    run(records, steps=4)
    assert [step for step, _ in losses(tmp_path / "run")][-1] == 4


def test_eight_images_are_learned_by_heart(records: list[Record], tmp_path: Path) -> None:
    config = im.TrainConfig(steps=120, batch_size=8, warmup=5, lr=1e-2, log_every=1)
    model = compose(im.MLP(), im.CrossAttention(every=2, heads=2, gate=0.5))
    train(model, [DataSet(records)], config, tmp_path / "run", quiet=True)
    assert sum(loss for _, loss in losses(tmp_path / "run")[-10:]) / 10 < 0.05


def test_an_infinite_loss_stops_and_keeps_the_last_state(
    records: list[Record], tmp_path: Path
) -> None:
    model = compose()

    def poison(step: int, loss: float) -> None:
        if step == 3:
            with torch.no_grad():
                next(model.connector.parameters()).fill_(float("nan"))

    with pytest.raises(TrainingError, match=r"step 4 is nan.*\.png"):
        train(model, [DataSet(records)], CONFIG, tmp_path / "run", quiet=True, on_step=poison)
    kept = im.load(tmp_path / "run")
    assert all(p.isfinite().all() for p in kept.trained_parameters().values())


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, -0.5), (1.0, float("nan"))])
def test_shares_that_are_none_are_refused(
    records: list[Record], tmp_path: Path, weights: tuple[float, float]
) -> None:
    data = [DataSet(records, w) for w in weights]
    with pytest.raises(ConfigError, match=r"data\.weight"):
        train(compose(), data, CONFIG, tmp_path / "run", quiet=True)


# --- A step is the same sum, whatever it is split into ------------------------------------------

MIXED = {
    "parts": {"micro_batch_size": 3},
    "packed": {"pack": 96},
    "packed in parts": {"pack": 96, "micro_batch_size": 2},
}


def documents(records: list[Record]) -> list[Record]:
    """Images in documents, chats and text without any image."""
    first, second, third = (r.images[0] for r in records[:3])
    return [
        *records[:3],
        Record(text="a <image>b <image>cd", images_in_text=(first, second)),
        Record(text="no image here"),
        Record((im.Example((second, third), "Two?", "yes"), im.Example((), "Sure?", "no"))),
        Record.of(None, "1 + 1?", "2"),
    ]


def steps_of(
    data: list[DataSet], folder: Path, fusion: object = None, **changes: object
) -> list[float]:
    fusion = fusion or im.CrossAttention(every=2, heads=2, gate=0.5)
    fixed = {"batch_size": 8, "steps": 3, "precision": "fp32"}  # losses are compared closely
    config = im.TrainConfig(**{**vars(CONFIG), **fixed, **changes})
    found: list[float] = []
    model = compose(im.Pool(tokens=4), fusion)
    train(model, data, config, folder, quiet=True, on_step=lambda _, loss: found.append(loss))
    return found


@pytest.mark.parametrize("fusion", [im.Inline(), im.CrossAttention(every=2, heads=2, gate=0.5)])
@pytest.mark.parametrize("way", MIXED)
def test_parts_and_packing_change_no_loss(
    records: list[Record], tmp_path: Path, fusion: object, way: str
) -> None:
    data = [DataSet(documents(records))]
    whole = steps_of(data, tmp_path / "whole", fusion)
    assert steps_of(data, tmp_path / "split", fusion, **MIXED[way]) == pytest.approx(
        whole, abs=1e-4
    )


def test_without_a_cache_the_losses_are_those_with_one(
    records: list[Record], tmp_path: Path
) -> None:
    data = [DataSet(documents(records))]
    cached = steps_of(data, tmp_path / "cached")
    assert (tmp_path / "cached" / "features").is_dir()
    bare = steps_of(data, tmp_path / "bare", feature_cache=False)
    assert not (tmp_path / "bare" / "features").exists()
    assert bare == pytest.approx(cached, abs=2e-3)  # cached features are rounded to half precision


def test_augmentation_goes_around_the_cache(records: list[Record], tmp_path: Path) -> None:
    data = [DataSet(records)]
    plain = steps_of(data, tmp_path / "plain", feature_cache=False)
    crops = steps_of(data, tmp_path / "crops", augment=True)
    again = steps_of(data, tmp_path / "again", augment=True)
    assert crops == again != plain
    assert not any(f.stat().st_size for f in (tmp_path / "crops" / "features").glob("*.f16"))


def test_loss_weights_and_accumulation(records: list[Record], tmp_path: Path) -> None:
    """Accumulated, the loss is the weighted sum of each data set's own mean."""
    sets = [DataSet(records[:4], name="a"), DataSet(records[4:], loss_weight=0.2, name="b")]
    config = {"steps": 1, "batch_size": 4, "mixture": "accumulate"}
    (both,) = steps_of(sets, tmp_path / "both", **config)
    entry = json.loads((tmp_path / "both" / "log.jsonl").read_text().splitlines()[0])
    assert set(entry["losses"]) == {"a", "b"}
    assert both == pytest.approx(entry["losses"]["a"] + 0.2 * entry["losses"]["b"], abs=1e-4)


# --- What goes wrong ----------------------------------------------------------------------------


def test_a_broken_image_is_skipped_and_named(records: list[Record], tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(b"no image")
    steps_of([DataSet(records)], tmp_path / "run", broken_share=0.5)
    entries = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    broken = [b for e in entries for b in e.get("broken", [])]
    assert {Path(b["image"]).name for b in broken} == {"red.png"}
    assert len(broken) == 3  # once in each step of eight


def test_too_many_broken_images_end_the_run(records: list[Record], tmp_path: Path) -> None:
    for record in records[:4]:
        image = record.images[0]
        assert isinstance(image, FileRef)
        image.path.unlink()
    with pytest.raises(TrainingError, match=r"4 of 8 samples cannot be used.*(red|green)\.png"):
        steps_of([DataSet(records)], tmp_path / "run", broken_share=0.3)


def test_a_full_disk_leaves_the_last_checkpoint(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    write = state_module.save_file

    def full(tensors: object, path: Path, metadata: object = None) -> None:
        if len(checkpoints(folder)) == 1:
            raise OSError(28, "No space left on device")
        write(tensors, path, metadata)  # type: ignore[arg-type]

    monkeypatch.setattr(state_module, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        train(compose(), [DataSet(records)], CONFIG, folder, quiet=True)
    assert [p.name for p in checkpoints(folder)] == ["step-000002"]
    assert not list(folder.glob(".*"))
    monkeypatch.undo()
    train(compose(), [DataSet(records)], CONFIG, folder, quiet=True)
    train(compose(), [DataSet(records)], CONFIG, tmp_path / "whole", quiet=True)
    assert dict(losses(folder)) == dict(losses(tmp_path / "whole"))


def test_sigterm_saves_and_says_so(records: list[Record], tmp_path: Path) -> None:
    def ask(step: int, loss: float) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingStopped, match="after step 4 of 6"):
        train(compose(), [DataSet(records)], CONFIG, tmp_path / "cut", quiet=True, on_step=ask)
    assert signal.getsignal(signal.SIGTERM) is before
    train(compose(), [DataSet(records)], CONFIG, tmp_path / "cut", quiet=True)
    train(compose(), [DataSet(records)], CONFIG, tmp_path / "whole", quiet=True)
    assert dict(losses(tmp_path / "cut")) == dict(losses(tmp_path / "whole"))


def test_training_in_a_thread_leaves_signals_alone(records: list[Record], tmp_path: Path) -> None:
    args = (compose(), [DataSet(records)], CONFIG, tmp_path / "run")
    thread = threading.Thread(target=train, args=args, kwargs={"quiet": True})
    thread.start()
    thread.join()
    assert len(losses(tmp_path / "run")) == 6


# --- Mode, randomness, precision ------------------------------------------------------------------


class Dropping(torch.nn.Module):
    """A connector of a user's own, with dropout."""

    num_tokens, width = 16, 64

    def __init__(self) -> None:
        super().__init__()
        self.map = torch.nn.Linear(32, 64)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.map(torch.nn.functional.dropout(features, 0.5, self.training))
        return found


def dropping() -> im.VisionLanguageModel:
    torch.manual_seed(0)
    return im.compose("tiny-vit", "tiny-lm", Dropping())


def test_a_run_with_dropout_resumes_loss_for_loss(records: list[Record], tmp_path: Path) -> None:
    data = [DataSet(records)]
    train(dropping(), data, CONFIG, tmp_path / "whole", quiet=True)

    def kill(step: int, loss: float) -> None:
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        train(dropping(), data, CONFIG, tmp_path / "cut", quiet=True, on_step=kill)
    torch.manual_seed(1)
    train(dropping(), data, CONFIG, tmp_path / "cut", quiet=True)
    assert dict(losses(tmp_path / "cut")) == dict(losses(tmp_path / "whole"))


def test_training_switches_the_mode_and_switches_it_back(
    records: list[Record], tmp_path: Path
) -> None:
    model, modes = compose(), []
    model.eval()

    def look(step: int, loss: float) -> None:
        modes.append(model.training)
        if step == 4:
            raise Killed

    held = [DataSet(records[:2], name="aside")]
    config = im.TrainConfig(**{**vars(CONFIG), "evaluate_every": 2})
    with pytest.raises(Killed):
        train(model, records, config, tmp_path / "run", evaluation=held, quiet=True, on_step=look)
    assert modes == [True] * 4
    assert not model.training
    train(model, records, CONFIG, tmp_path / "again", quiet=True)
    assert not any(module.training for module in model.modules())


def test_the_machine_decides_the_precision_and_the_run_says_which(
    records: list[Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert im.TrainConfig().precision == default_run(tmp_path, 8).train.precision == "auto"
    best, why = best_precision(torch.device("cpu"))
    model = compose()
    train(model, records, CONFIG, tmp_path / "run")
    said = capsys.readouterr().err
    assert said.startswith(f"training in {best} ({why}) on the CPU with ")
    saved = json.loads((tmp_path / "run" / "isthmus.json").read_text())
    assert saved["train"]["precision"] == best
    assert model.language.input_embedding.weight.dtype == DTYPES[best]
    chosen = im.TrainConfig(**{**vars(CONFIG), "precision": "bf16"})
    train(compose(), records, chosen, tmp_path / "half")
    assert "in bf16 (train.precision" in capsys.readouterr().err


def test_what_would_be_ignored_is_refused(records: list[Record], tmp_path: Path) -> None:
    out = tmp_path / "run"
    views = im.TrainConfig(contrastive=im.ContrastiveConfig(views=2))
    with pytest.raises(ConfigError, match=r"\[train.contrastive\] is for a dual encoder"):
        train(compose(), records, views, out, quiet=True)
    with pytest.raises(ConfigError, match="got PairSet as a data set: expected DataSet"):
        train(compose(), [im.PairSet(records)], CONFIG, out, quiet=True)
    assert not out.exists()


# --- What stays and what is kept aside ------------------------------------------------------------


def test_only_the_newest_checkpoints_stay_and_the_best(
    records: list[Record], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    config = im.TrainConfig(**{**vars(CONFIG), "steps": 9, "evaluate_every": 3, "lr": 1e-2})
    held = [DataSet(records[:3], name="aside")]
    train(compose(), [DataSet(records[3:])], config, folder, evaluation=held, quiet=True)
    assert [p.name for p in checkpoints(folder)] == ["step-000008", "step-000009"]
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found = {e["step"]: e["held_out_loss"] for e in entries if "evaluation" in e}
    assert sorted(found) == [3, 6, 9]
    best = im.load(folder / "best")
    newest = im.load(folder)
    same = all(
        torch.equal(a, b)
        for a, b in zip(best.state_dict().values(), newest.state_dict().values(), strict=True)
    )
    assert same == (min(found, key=lambda s: found[s]) == 9)
    answered = [a for e in entries for a in e.get("answers", [])]
    assert {a["expected"] for a in answered} <= {"red", "green", "blue"}
    assert all((folder / p).is_file() for a in answered for p in a["images"])


def test_a_split_shares_no_image(records: list[Record]) -> None:
    twice = [*records, *(Record.of(r.images[0], "Again?", r.answer) for r in records)]
    training, aside = split(DataSet(twice), 0.4, seed=0)
    shown = [{str(r.images[0]) for r in d.records} for d in (training, aside)]
    assert not shown[0] & shown[1]
    assert len(training.records) + len(aside.records) == len(twice)
    assert 0 < len(aside.records) < len(twice)
    everything = split(DataSet(twice), 1.0, seed=0)
    assert [len(d.records) for d in everything] == [0, len(twice)]


def test_a_second_stage_starts_from_the_first(records: list[Record], tmp_path: Path) -> None:
    first = train(compose(), [DataSet(records)], CONFIG, tmp_path / "first", quiet=True)
    config = im.LanguageConfig(name="tiny-lm", lora_rank=2)
    torch.manual_seed(1)
    second = im.compose("tiny-vit", config, im.MLP(), im.Inline())
    from isthmus.model.checkpoint import load_strip

    load_strip(second, tmp_path / "first", partly=True)
    for name, parameter in first.trained_parameters().items():
        assert torch.equal(second.trained_parameters()[name], parameter)
    train(second, [DataSet(records)], CONFIG, tmp_path / "second", quiet=True)
    again = im.load(tmp_path / "second")
    for name, parameter in second.trained_parameters().items():
        assert torch.equal(again.trained_parameters()[name], parameter)


# --- The plan -------------------------------------------------------------------------------------


def test_a_plan_tells_how_often_rare_data_is_gone_through(records: list[Record]) -> None:
    """Of a step of two, whose draws alone would tell 0, 50 or 100 times."""
    data = [DataSet(records, 9.0, name="common"), DataSet(records, 1.0, name="rare")]
    told = plan(compose(), data, im.TrainConfig(steps=400, batch_size=2, workers=0)).epochs
    assert told["common"] + told["rare"] == pytest.approx(400 * 2 / len(records))
    assert told["rare"] == pytest.approx(10, abs=4)  # 80 draws of eight; 9 to 1 of the others
