"""Training on episodes: broken images, what is asked for people to read, what is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus.config.model import EpisodeConfig
from isthmus.data.episodes import Episodes
from isthmus.data.records import Record
from isthmus.data.samples import tokenize
from isthmus.errors import ConfigError
from isthmus.media.file_ref import FileRef
from isthmus.training import evaluate
from isthmus.training.feed import DataSet, Feed, TrainingItem
from isthmus.training.loader import MediaLoader
from isthmus.training.plan import plan
from isthmus.training.processes import Processes
from isthmus.training.vlm import filled_caches

CONFIG = im.TrainConfig(steps=2, batch_size=2, warmup=0, workers=2)
BROKEN = "dog-2.png"


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    made = []
    for name in ("cat", "dog", "fox"):
        for i in range(4):
            path = tmp_path / f"{name}-{i}.png"
            pixels = np.random.default_rng(len(made)).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
            made.append(Record.of(path, "", name))
    return made


@pytest.fixture(scope="module")
def model() -> im.VisionLanguageModel:
    torch.manual_seed(0)
    return im.compose("tiny-vit", "tiny-lm", im.Pool(tokens=4)).eval()


def names_of(record: Record) -> list[str]:
    return [m.path.name for m in record.images if isinstance(m, FileRef)]


@pytest.mark.parametrize("cached", [True, False])
def test_a_broken_image_costs_no_episode(
    model: im.VisionLanguageModel,
    records: list[Record],
    tmp_path: Path,
    cached: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / BROKEN).write_bytes(b"nothing")
    data = [DataSet(Episodes(records, EpisodeConfig(ways=(2, 3), shots=(1, 2))), name="animals")]
    caches = {}
    if cached:
        caches = filled_caches(model, data, CONFIG, Processes(model.device), tmp_path / "f", True)
    feed = Feed(model, data, CONFIG, MediaLoader(model, caches))
    with caplog.at_level(logging.WARNING):
        items: list[TrainingItem] = [i for step in feed.steps(0, 30) for i in step]
    assert [i.why_not for i in items] == [""] * 60
    assert sum("dog-0.png" in names_of(i.record) for i in items) > 10
    assert not any(BROKEN in names_of(i.record) for i in items)
    for item in items:
        assert len(item.attachments) == len(item.record.images) == len(item.sample.layouts)
        assert item.sample == tokenize(model, item.record, max_length=CONFIG.max_length)
    assert caplog.text.count("left out of all episodes") == caplog.text.count(BROKEN) == 1
    # what is shown instead depends on what is broken, and not on when that was found out
    told = Episodes(records, EpisodeConfig(ways=(2, 3), shots=(1, 2)))
    told.leave_out(records[6].images[0])
    assert [i.record for i in items] == [told[i.draw.index] for i in items]


def test_people_read_the_answer_to_what_an_episode_asks_last(
    model: im.VisionLanguageModel, records: list[Record], tmp_path: Path
) -> None:
    episodes = Episodes(records, EpisodeConfig(ways=(2, 2), shots=(2, 2)), seed=1)
    data = [DataSet(episodes, name="animals"), DataSet(records, questions=("What?",))]
    found = evaluate.answers(model, data, CONFIG, MediaLoader(model), tmp_path)
    turns = episodes[0].turns
    assert found[0]["expected"] == turns[-1].answer
    shown = [f"{t.question} {t.answer}." for t in turns[:-1]]
    assert found[0]["question"] == " ".join([*shown, turns[-1].question])
    assert len(found[0]["images"]) == len(turns) == 5
    assert (found[1]["question"], found[1]["expected"]) == ("What?", "cat")


@pytest.mark.parametrize(
    ("fusion", "refused"),
    [
        (im.CrossAttention(every=2), True),
        (im.CrossAttention(every=2, sees="previous"), False),
        (im.CrossAttention(every=2, inline=True), False),
        (im.Inline(), False),
    ],
)
def test_the_odd_one_is_not_asked_of_who_sees_the_last_alone(
    records: list[Record], fusion: object, refused: bool
) -> None:
    data = [DataSet(Episodes(records, EpisodeConfig(odd=0.5)), name="animals")]
    model = im.compose("tiny-vit", "tiny-lm", im.Pool(tokens=4), fusion)
    if not refused:
        assert plan(model, data, CONFIG).steps == 2
        return
    with pytest.raises(ConfigError, match=r'data\.episodes\.odd = 0\.5 .* fusion\.sees = "last"'):
        plan(model, data, CONFIG)
