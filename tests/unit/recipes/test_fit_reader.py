"""The training of the reader: targets, windows, what tells text, and how it is measured."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import functional as F

ROW = {"answer": "aB1", "boxes": [[10, 100, 30, 140], [30, 90, 70, 141], [200, 95, 256, 139]]}


@pytest.fixture
def fit_reader(recipe_path: Path) -> ModuleType:
    import fit_reader

    return fit_reader


def words(fit_reader: ModuleType, count: int = 8) -> Any:
    """Words whose letters are bright in a channel of their own."""
    maps = torch.zeros(count, 2, 33, 33, dtype=torch.half)
    rows = []
    for i in range(count):
        top, which = 3 * i + 2, i % 2
        maps[i, which, top : top + 4, 10:14] = 4.0
        box = [10 * 8, top * 8, 14 * 8, top * 8 + 32]
        rows.append({"answer": "Aa"[which], "boxes": [box]})
    return fit_reader.Pictures(maps, rows)


def test_letters_stand_in_the_columns_of_their_middles(fit_reader: ModuleType) -> None:
    found = fit_reader.in_columns(ROW, 33)
    assert {int(i): int(found[i]) for i in found.nonzero()} == {2: 37, 6: 12, 28: 2}
    # 20, 50 and 228 of 260 pixels; digits are numbers 1 to 10, capitals 11 to 36


def test_windows_hold_the_whole_word_and_differ(fit_reader: ModuleType) -> None:
    pictures = words(fit_reader)
    torch.manual_seed(0)
    starts = set()
    for _ in range(20):
        shown = fit_reader.window(pictures, list(range(8)))
        assert shown.shape == (8, 2, fit_reader.ROWS, 33)
        for i in range(8):
            assert float(shown[i, i % 2].sum()) == 4.0 * 16
        starts.add(int(shown[3, 1].sum(dim=-1).nonzero()[0]))
    assert len(starts) > 5


def test_the_loss_is_that_of_both_orders(fit_reader: ModuleType) -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 63)
    likely = logits[0].log_softmax(dim=-1).exp()
    # one letter in three columns: everywhere, or in one run of any length beside nothing
    runs = ["a..", ".a.", "..a", "aa.", ".aa", "aaa"]
    total = sum(
        likely[0, 37 if r[0] == "a" else 0]
        * likely[1, 37 if r[1] == "a" else 0]
        * likely[2, 37 if r[2] == "a" else 0]
        for r in runs
    )
    columns = torch.tensor([[0, 37, 0]])
    order, boxes = fit_reader.loss_of(logits, [torch.tensor([37])], columns, 2.0)
    assert float(order) == pytest.approx(-float(torch.as_tensor(total).log()), rel=1e-4)
    each = -likely[[0, 1, 2], [0, 37, 0]].log()
    expected = 2.0 * (0.3 * each[0] + each[1] + 0.3 * each[2]) / 1.6
    assert float(boxes) == pytest.approx(float(expected), rel=1e-4)


def test_what_is_read_is_counted_by_word_and_by_letter(fit_reader: ModuleType) -> None:
    numbers = torch.tensor([[37, 0, 12], [37, 38, 0]])  # "aB" and "ab"

    class Said(torch.nn.Module):
        def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return 30.0 * F.one_hot(numbers, 63), torch.tensor([2.0, -2.0])

    rows = [{"answer": "aB"}, {"answer": "aBcd"}]
    told = fit_reader.measure(Said(), fit_reader.Pictures(torch.zeros(2, 1), rows))
    assert told == {
        "text seen": 0.5,
        "exact": 0.5,
        "errors": 3 / 6,
        "exact without case": 0.5,
        "errors without case": 2 / 6,
    }


def test_a_reader_learns_and_the_seed_decides_all(
    fit_reader: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_reader, "WIDTH", 8)
    monkeypatch.setattr(fit_reader, "BATCH", 4)
    monkeypatch.setattr(fit_reader, "LR", 2e-2)
    pictures = words(fit_reader)
    reader, again = (fit_reader.train(pictures, 40, seed=3) for _ in range(2))
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in reader.state_dict().items())
    assert fit_reader.measure(reader, pictures)["exact"] == 1.0
    blank = torch.randn(20, 2, 33, 33, generator=torch.Generator().manual_seed(0)) * 0.1
    fit_reader.tell_text(reader, pictures.maps, blank)
    assert fit_reader.measure(reader, pictures)["text seen"] == 1.0
    assert float(reader.text(fit_reader.highest(reader, blank)).detach().max()) < 0
