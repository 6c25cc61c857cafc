from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from isthmus.auditing.measures.classes import balanced_interval, class_measures, pixel_baseline
from isthmus.errors import InputError
from isthmus.evaluation.metrics import wilson

LABELS = ["cat", "dog", "cow", "emu", "fox"]
# cat: 2 of 3, dog: 2 of 4, cow: 1 of 2, emu: 1 of 1, fox: none
TARGETS = [0, 0, 0, 1, 1, 1, 1, 2, 2, 3]
PREDICTED = [0, 0, 1, 1, 1, 2, 2, 2, 1, 3]


def test_every_number_of_a_table_by_hand() -> None:
    found = class_measures(TARGETS, PREDICTED, LABELS)
    assert [c.recall for c in found.classes] == [2 / 3, 1 / 2, 1 / 2, 1.0, None]
    assert [c.precision for c in found.classes] == [1.0, 2 / 4, 1 / 3, 1.0, None]
    assert [c.n for c in found.classes] == [3, 4, 2, 1, 0]
    assert found.classes[1].interval == wilson(2, 4)
    assert found.classes[4].interval is None
    assert (found.accuracy, found.accuracy_interval) == (0.6, wilson(6, 10))
    assert found.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2 + 1 / 2 + 1) / 4)
    # dog and cow are equally bad; dog's recall is the surer
    assert (found.worst, found.worst_recall, found.bottom_decile) == ("dog", 0.5, 0.5)
    assert found.true_shares == {"cat": 0.3, "dog": 0.4, "cow": 0.2, "emu": 0.1, "fox": 0.0}
    assert found.predicted_shares == {"cat": 0.2, "dog": 0.4, "cow": 0.3, "emu": 0.1, "fox": 0.0}
    assert found.total_variation == pytest.approx(0.1)
    assert (found.few, found.without) == (("emu",), ("fox",))
    assert "fox" not in found.note
    assert "1 of 5 labels have no image" in found.note
    assert (found.chance, found.majority, found.majority_accuracy) == (0.2, "dog", 0.4)
    told = [(c.true, c.predicted, c.count, c.share, c.images) for c in found.confusions]
    assert told == [
        ("dog", "cow", 2, 0.5, (5, 6)),
        ("cat", "dog", 1, 1 / 3, (2,)),
        ("cow", "dog", 1, 0.5, (8,)),
    ]
    json.dumps(asdict(found), allow_nan=False)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_the_measures_are_scikit_learns(data: st.DataObject) -> None:
    classes = data.draw(st.integers(2, 6))
    numbers = st.lists(st.integers(0, classes - 1), min_size=30, max_size=30)
    truth, said = data.draw(numbers), data.draw(numbers)
    found = class_measures(torch.tensor(truth), np.array(said), [str(c) for c in range(classes)])
    options = {"labels": range(classes), "average": None, "zero_division": 0}
    recalls = reference.recall_score(truth, said, **options)
    precisions = reference.precision_score(truth, said, **options)
    assert [c.recall or 0 for c in found.classes] == pytest.approx(recalls.tolist())
    assert [c.precision or 0 for c in found.classes] == pytest.approx(precisions.tolist())
    present = np.unique(truth)
    assert found.balanced_accuracy == pytest.approx(recalls[present].mean())
    assert found.worst_recall == pytest.approx(recalls[present].min())
    assert sum(c.count for c in found.confusions) <= sum(np.not_equal(truth, said))


def test_the_bottom_decile_is_the_mean_of_the_worst_tenth() -> None:
    # 25 classes of 25 images; class c has c right: the two worst tenths are 0 and 1 of 25
    truth = np.repeat(np.arange(25), 25)
    said = np.where(np.tile(np.arange(25), 25) < truth, truth, (truth + 1) % 25)
    found = class_measures(truth, said, [str(c) for c in range(25)], confusions=3, shown=2)
    assert found.bottom_decile == pytest.approx((0 / 25 + 1 / 25) / 2)
    assert [(c.true, c.count) for c in found.confusions] == [("0", 25), ("1", 24), ("2", 23)]
    assert found.confusions[0].images == (0, 1)


def test_the_interval_is_that_of_resampled_images() -> None:
    rng = np.random.default_rng(1)
    sizes, rates = np.array([20, 40, 80]), np.array([0.3, 0.6, 0.9])
    right = np.rint(sizes * rates).astype(np.int64)
    low, high = balanced_interval(right, sizes, draws=20_000)
    images = [np.arange(n) < r for n, r in zip(sizes, right, strict=True)]
    means = [np.mean([rng.choice(own, len(own)).mean() for own in images]) for _ in range(4000)]
    assert (low, high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))), abs=0.008)
    # and of the variance of a mean of independent shares
    sd = np.sqrt((rates * (1 - rates) / sizes).sum()) / 3
    assert high - low == pytest.approx(2 * 1.96 * sd, rel=0.03)
    assert balanced_interval(right, sizes, seed=3) == balanced_interval(right, sizes, seed=3)
    empty = balanced_interval(np.append(right, 0), np.append(sizes, 0), draws=20_000)
    assert empty == (low, high)


def test_pixels_tell_colours_and_no_more() -> None:
    noise = torch.Generator().manual_seed(0)
    targets = torch.arange(3).repeat(40)
    colours = torch.eye(3)[targets][:, :, None, None].expand(-1, -1, 24, 40)
    images = (colours + torch.randn(120, 3, 24, 40, generator=noise)).clamp(0, 1)
    train, test = images[:60], images[60:]
    found = pixel_baseline(train, targets[:60], test)
    assert (found == targets[60:].numpy()).all()
    # An area's mean is seen, not one pixel of it: the first of each is of another class's colour
    big = colours[60:, :, :1, :1].repeat(1, 1, 64, 64)
    big[:, :, ::4, ::4] = big.roll(1, dims=1)[:, :, ::4, ::4]
    assert (pixel_baseline(train, targets[:60], big) == targets[60:].numpy()).all()
    # Colours that do not go with the classes are of no use
    shuffled = targets[torch.randperm(120, generator=noise)]
    useless = pixel_baseline(train, shuffled[:60], test)
    assert np.mean(useless == shuffled[60:].numpy()) < 0.55


def test_whole_number_pixels_of_other_sizes_will_do() -> None:
    dark = np.zeros((4, 3, 20, 30), dtype=np.uint8)
    train = np.concatenate([dark, dark + 200])
    test = np.full((2, 3, 50, 9), 190, dtype=np.uint8)
    assert pixel_baseline(train, [7] * 4 + [9] * 4, test).tolist() == [9, 9]


def test_what_cannot_be_measured_is_said() -> None:
    with pytest.raises(InputError, match=r"shape \(0,\)"):
        class_measures([], [], ["cat"])
    with pytest.raises(InputError, match="holds 0 to 2: expected numbers from 0 to 1"):
        class_measures([0, 1], [0, 2], ["cat", "dog"])
    with pytest.raises(InputError, match="2 targets and 3 predictions"):
        class_measures([0, 1], [0, 1, 1], ["cat", "dog"])
    with pytest.raises(InputError, match="float64: expected whole"):
        class_measures(np.array([0.0]), [0], ["cat"])
    with pytest.raises(InputError, match="no class has an image"):
        balanced_interval(np.zeros(2, dtype=np.int64), np.zeros(2, dtype=np.int64))
    images = torch.zeros(2, 3, 8, 8)
    with pytest.raises(InputError, match="2 training images and 3 targets"):
        pixel_baseline(images, [0, 1, 1], images)
    with pytest.raises(InputError, match="of one class"):
        pixel_baseline(images, [1, 1], images)
    with pytest.raises(InputError, match="different channels"):
        pixel_baseline(images, [0, 1], images[:, :1])
    with pytest.raises(InputError, match="expected \\(n, channels, height, width\\)"):
        pixel_baseline(images[0], [0, 1], images)
