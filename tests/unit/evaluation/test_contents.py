"""What a task shows is what its records belong to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from isthmus.errors import ImageError
from isthmus.evaluation.contents import described
from isthmus.evaluation.task import Item, Task
from isthmus.prompts.prompt import Example

SHOT = Example((), "Three?", "3", "Two and one.")
ITEM = Item("1", Example((), "Four?", "4", "Two and two."), shots=(SHOT,), group="sums")
TASK = Task("t", "number", [ITEM], [Item("2", Example((), "Five?", "5", "Four and one."))])


def own(item: Item = ITEM, **changes: Any) -> Task:
    """The task with a changed item."""
    return replace(TASK, items=[replace(item, **changes)])


@pytest.mark.parametrize(
    "other",
    [
        own(example=replace(ITEM.example, rationale="One and three.")),
        own(group="products"),
        own(shots=(replace(SHOT, question="How many?"),)),
        own(shots=(replace(SHOT, answer="4"),)),
        own(shots=(replace(SHOT, rationale=None),)),
        own(shots=(SHOT, SHOT)),
        replace(TASK, support=[Item("2", Example((), "Five?", "5", "Three and two."))]),
        replace(TASK, instruction="Add."),
        replace(TASK, max_new_tokens=3),
        replace(TASK, items=[*TASK.support], support=[*TASK.items]),
    ],
)
def test_whatever_is_shown_tells_tasks_apart(other: Task) -> None:
    assert described(other)["contents"] != described(TASK)["contents"]
    assert described(TASK) == described(own())


def red(shade: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (shade, 0, 0))


def test_images_are_told_apart_by_their_contents(tmp_path: Path) -> None:
    file = tmp_path / "a.png"

    def asked(image: Any, shown: Any) -> str:
        shots = (replace(SHOT, images=(shown,)),)
        task = own(example=replace(ITEM.example, images=(image,)), shots=shots)
        return str(described(task)["contents"])

    red(1).save(file)
    one = file.read_bytes()
    first = asked(file, red(1))
    assert asked(str(file), red(1)) == asked(one, red(1)) == first
    assert asked(file, red(2)) != first  # a drawn one
    assert asked(red(2), file) != asked(red(1), file)
    red(2).save(file)  # of the same size and name
    assert asked(file, red(1)) != first
    assert asked(one, red(1)) != asked(file.read_bytes(), red(1))
    file.unlink()
    with pytest.raises(ImageError, match="cannot read"):
        asked(file, red(1))


@pytest.mark.parametrize("drawn", [True, False])
def test_every_episode_is_looked_at(tmp_path: Path, drawn: bool) -> None:
    files = [tmp_path / f"{i}.png" for i in range(40)]
    for i, file in enumerate(files):
        red(i).save(file)

    def found() -> dict[str, Any]:
        shown = [red(0), *map(Image.open, files[1:])] if drawn else files
        items = [Item(str(i), Example(p, "?", "a"), shots=()) for i, p in enumerate(shown)]
        return described(Task("t", "text", items, episodic=True))

    before = found()
    red(200).save(files[-1])
    assert found()["contents"] != before["contents"]


def test_how_many_different_images_are_asked_about() -> None:
    shots = (replace(SHOT, images=(red(9),)),)
    items = [
        Item(str(i), Example((red(i % 3), red(i % 3 + 1)), "?", "1"), shots=shots) for i in range(6)
    ]
    told = described(Task("t", "number", items, [Item("s", Example(red(7), "?", "1"))]))
    assert (told["n"], told["images"], told["different_images"]) == (6, 12, 4)
    assert told["different_classes"] == 0
    named = [replace(item, class_name="cat" if item.id < "4" else "dog") for item in items]
    assert described(Task("t", "number", named))["different_classes"] == 2
