from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus.data.features import FeatureCache
from isthmus.data.records import Record
from isthmus.errors import ConfigError, PictureError, TrainingError
from isthmus.training.loop import LOG, DataSet, draw, train
from isthmus.training.objectives import concept_bottleneck, language_batch

NAMES = ["red", "green", "blue", "white", "black", "gray", "pink", "teal"]


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    made = []
    for i, name in enumerate(NAMES):
        path = tmp_path / f"{name}.png"
        Image.effect_noise((32, 32), 40 + 20 * i).convert("RGB").rotate(i * 45).save(path)
        made.append(Record(path, "What is it?", name, (name,)))
    return made


def compose(connector: object = None, fusion: object = None) -> im.VisionLanguageModel:
    torch.manual_seed(0)
    return im.compose("tiny-vit", "tiny-lm", connector or im.MLP(), fusion or im.Inline())


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / LOG).read_text().splitlines()
    return [(e["step"], e["loss"]) for e in map(json.loads, lines)]


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
    assert [s for s, _ in cut].count(5) == 1  # it went on after step 4, the last that was saved
    for name, parameter in whole.trained_parameters().items():
        assert torch.equal(parameter, resumed.trained_parameters()[name]), name


def test_the_seed_decides(records: list[Record], tmp_path: Path) -> None:
    data = [DataSet(records)]
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = im.TrainConfig(**{**vars(CONFIG), "seed": seed})
        train(compose(), data, config, tmp_path / name, quiet=True)
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")


def test_eight_pictures_are_learned_by_heart(records: list[Record], tmp_path: Path) -> None:
    config = im.TrainConfig(steps=120, batch_size=8, warmup=5, lr=1e-2, log_every=1)
    model = compose(im.MLP(), im.CrossAttention(every=2, heads=2, gate=0.5))
    train(model, [DataSet(records)], config, tmp_path / "run", quiet=True)
    assert sum(loss for _, loss in losses(tmp_path / "run")[-10:]) / 10 < 0.05


def test_concepts_are_learned_without_the_language_model(
    records: list[Record], tmp_path: Path
) -> None:
    model = compose(im.ConceptBottleneck(concepts=9, length=4, free=1, heads=1))
    config = im.TrainConfig(objective="concepts", steps=80, batch_size=8, warmup=5, lr=1e-2)
    train(model, [DataSet(records)], config, tmp_path / "run", quiet=True)
    connector = concept_bottleneck(model)
    cache = FeatureCache(tmp_path / "run" / "features", model.vision)
    best = connector.logits(cache.get([r.picture for r in records])).argmax(dim=-1)
    spelled = [model.special_tokens.decode(connector.names[i]) for i in best]
    assert spelled == [f" {n}..."[:4] for n in NAMES]
    assert (connector.names[8] == -1).all()


def test_an_infinite_loss_stops_and_keeps_the_last_state(
    records: list[Record], tmp_path: Path
) -> None:
    model = compose()

    def poison(step: int, loss: float) -> None:
        if step == 3:
            with torch.no_grad():
                next(model.connector.parameters()).fill_(float("nan"))

    with pytest.raises(TrainingError, match=r"step 3 is nan.*\.png"):
        train(model, [DataSet(records)], CONFIG, tmp_path / "run", quiet=True, on_step=poison)
    kept = im.load(tmp_path / "run")
    assert all(p.isfinite().all() for p in kept.trained_parameters().values())


def test_shares_of_the_draws(records: list[Record]) -> None:
    data = [DataSet(records[:4], 3.0), DataSet(records[4:], 1.0)]
    drawn = Counter(r.answer for s in range(400) for r in draw(data, 10, 0, s))
    share = sum(drawn[n] for n in NAMES[:4]) / 4000
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / 4000) ** 0.5
    assert [draw(data, 5, 7, 3)] == [draw(data, 5, 7, 3)]
    assert draw(data, 5, 7, 3) != draw(data, 5, 8, 3)


def test_labels_stand_on_the_answer_and_its_end_alone(records: list[Record]) -> None:
    model = compose()
    features = torch.zeros(2, 16, 32)
    pair = [records[0], Record(records[1].picture, "Q?", "a longer answer")]
    batch = language_batch(model, pair, features)
    assert batch.labels is not None
    for row, record in zip(batch.labels, pair, strict=True):
        kept = row[row != -100]
        assert int(kept[-1]) == model.special_tokens.end_id
        assert model.special_tokens.decode(kept) == f" {record.answer}"


def test_the_cache_holds_the_encoders_features(records: list[Record], tmp_path: Path) -> None:
    model = compose()
    paths = [r.picture for r in records]
    cache = FeatureCache(tmp_path / "cache", model.vision)
    assert cache.fill(paths, quiet=True) == len(paths)
    pixels = torch.stack([model.vision.preprocess(im.open_picture(p)) for p in paths])
    torch.testing.assert_close(cache.get(paths), model.vision(pixels).half().float())
    again = FeatureCache(tmp_path / "cache", model.vision)
    assert again.fill(paths, quiet=True) == 0
    assert torch.equal(again.get(paths), cache.get(paths))


def test_a_cache_cut_short_fills_what_is_missing(records: list[Record], tmp_path: Path) -> None:
    model = compose()
    paths = [r.picture for r in records]
    cache = FeatureCache(tmp_path / "cache", model.vision)
    cache.fill(paths, quiet=True)
    whole = cache.get(paths)
    with cache.path.open("r+b") as file:  # killed in the middle of the third row
        file.truncate(16 * 32 * 2 * 2 + 100)
    again = FeatureCache(tmp_path / "cache", model.vision)
    assert again.fill(paths, quiet=True) == len(paths) - 2
    assert torch.equal(again.get(paths), whole)


@pytest.mark.parametrize("lines", [8, 3.5])
def test_an_index_that_does_not_match_its_rows_is_cut_too(
    records: list[Record], tmp_path: Path, lines: float
) -> None:
    model = compose()
    paths = [r.picture for r in records]
    cache = FeatureCache(tmp_path / "cache", model.vision)
    cache.fill(paths, quiet=True)
    whole = cache.get(paths)
    with cache.path.open("r+b") as file:
        file.truncate(16 * 32 * 2 * (3 if lines < 8 else 2))
    with cache.index.open("r+b") as file:
        file.truncate(int(33 * lines))
    FeatureCache(tmp_path / "cache", model.vision).fill(paths[::-1], quiet=True)
    again = FeatureCache(tmp_path / "cache", model.vision)
    assert again.fill(paths, quiet=True) == 0
    assert torch.equal(again.get(paths), whole)


@pytest.mark.parametrize("key", ["steps", "batch_size", "log_every", "save_every"])
def test_counts_below_one_are_refused(records: list[Record], tmp_path: Path, key: str) -> None:
    config = im.TrainConfig(**{**vars(CONFIG), key: 0})
    with pytest.raises(ConfigError, match=rf"train\.{key} is 0: expected at least 1"):
        train(compose(), [DataSet(records)], config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, -0.5), (1.0, float("nan"))])
def test_shares_that_are_none_are_refused(
    records: list[Record], tmp_path: Path, weights: tuple[float, float]
) -> None:
    data = [DataSet(records, w) for w in weights]
    with pytest.raises(ConfigError, match=r"data\.weight"):
        train(compose(), data, CONFIG, tmp_path / "run", quiet=True)


def test_a_picture_that_is_not_there(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, compose().vision)
    with pytest.raises(PictureError, match="cannot read"):
        cache.fill([tmp_path / "none.png"], quiet=True)
