from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus.data.mixture import SampleRef
from isthmus.data.records import Record
from isthmus.data.samples import Sample
from isthmus.training.feed import DataSet, TrainingItem, parts
from isthmus.training.loop import train
from isthmus.training.step import LossScale
from isthmus.training.vlm import token_weights


def item(number: int, data: int = 0) -> TrainingItem:
    return TrainingItem(SampleRef(number, data, 0, 0), Record(text="x"), Sample([1], [False]))


def test_drawn_together_a_token_counts_for_its_share_of_the_step() -> None:
    data = [DataSet([]), DataSet([], loss_weight=0.2)]
    assert token_weights([30, 10], data, im.TrainConfig()) == [1 / 40, 0.2 / 40]


def test_accumulated_each_data_set_is_averaged_by_itself() -> None:
    """Flamingo's sum over data sets of lambda times the mean loss."""
    data = [DataSet([], loss_weight=w) for w in (1.0, 0.2, 0.03)]
    config = im.TrainConfig(mixture="accumulate")
    assert token_weights([50, 10, 0], data, config) == [1 / 50, 0.2 / 10, 0.03]


def test_parts_of_a_step() -> None:
    items = [item(i, data) for i, data in enumerate((0, 0, 0, 1, 1))]
    numbers = [[i.draw.number for i in p] for p in parts(items, 2)]
    assert numbers == [[0, 1], [2, 3], [4]]
    by_data = [[i.draw.number for i in p] for p in parts(items, 2, by_data=True)]
    assert by_data == [[0, 1], [2], [3, 4]]
    assert parts(items, None) == [items]


def test_the_loss_scale_halves_on_overflow_and_grows_with_patience() -> None:
    scale = LossScale(1024.0, patience=3)
    scale.update(finite=False)
    assert scale.value == 512.0
    for _ in range(3):
        scale.update(finite=True)
    assert scale.value == 1024.0
    scale.update(finite=True)
    scale.update(finite=False)
    assert (scale.value, scale.good_steps) == (512.0, 0)
    floor = LossScale(1.0)
    floor.update(finite=False)
    assert floor.value == 1.0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_and_keeps_what_is_trained_in_fp32(
    tmp_path: Path, precision: str
) -> None:
    records = []
    for i, name in enumerate(("red", "green", "blue", "white")):
        Image.effect_noise((32, 32), 40 + 40 * i).convert("RGB").save(tmp_path / f"{name}.png")
        records.append(Record.of(tmp_path / f"{name}.png", "What?", name))
    torch.manual_seed(0)
    model = im.compose("tiny-vit", "tiny-lm", im.MLP(), im.CrossAttention(every=2, gate=0.5))
    losses: list[float] = []
    config = im.TrainConfig(
        steps=60, batch_size=4, warmup=5, lr=1e-2, precision=precision, save_every=1000
    )
    out = tmp_path / "run"
    train(model, records, config, out, quiet=True, on_step=lambda _, loss: losses.append(loss))
    assert losses[-1] < 0.5 < losses[0]
    assert {p.dtype for p in model.trained_parameters().values()} == {torch.float32}
    half = torch.bfloat16 if precision == "bf16" else torch.float16
    assert model.language.input_embedding.weight.dtype == half


def test_parts_by_length_have_little_padding_and_the_same_samples() -> None:
    """Stable within a data set, so that a run that resumes makes the same parts."""
    lengths = (5, 1, 4, 1, 3)
    items = [
        TrainingItem(
            SampleRef(i, i // 3, 0, 0),
            Record(text="x"),
            Sample([1] * n, [False] + [True] * (n - 1)),
        )
        for i, n in enumerate(lengths)
    ]

    def numbers(**how: bool) -> list[list[int]]:
        return [[i.draw.number for i in p] for p in parts(items, 2, **how)]

    assert numbers(by_length=True) == [[1, 3], [4, 2], [0]]
    assert numbers(by_length=True, by_data=True) == [[1, 2], [0], [3, 4]]
    whole = parts(items, 5, by_length=True)
    assert [i.draw.number for i in whole[0]] == [0, 1, 2, 3, 4], "one part stays in its order"
