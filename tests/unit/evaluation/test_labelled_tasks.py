"""Episodes of one's own labelled images: what is asked was never shown."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from isthmus.config.model import EpisodeConfig
from isthmus.data.episodes import Episodes
from isthmus.data.made_up import TESTED
from isthmus.data.sources import read_data
from isthmus.errors import ConfigError
from isthmus.evaluation.task import Item
from isthmus.evaluation.tasks import task_named
from isthmus.evaluation.tasks.labelled import binding, odd_one_out


def folder(path: Path, **classes: int) -> Path:
    """A folder of so many images of each class."""
    for name, count in classes.items():
        (path / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (4, 4), (i, len(name), 0)).save(path / name / f"{i}.png")
    return path


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    return folder(tmp_path / "animals", cat=7, dog=8, emu=9, fox=7, gnu=2)


def classes_of(item: Item) -> list[str]:
    """The class of each demonstration's image, and of the question's."""
    shown = [*(item.shots or ()), item.example]
    return [Path(str(e.images[0])).parent.name for e in shown]


def test_a_name_is_of_one_class_in_an_episode_and_no_image_comes_twice(animals: Path) -> None:
    task = task_named(f"binding-2:{animals}")
    assert (task.name, task.chance, task.most_shots, len(task.items)) == (
        "binding-2-animals",
        0.5,
        12,
        500,
    )
    asked = Counter[str]()
    for item in task.items[:60]:
        examples = [*(item.shots or ()), item.example]
        images = [str(e.images[0]) for e in examples]
        assert len(set(images)) == 13
        named = {(c, e.answer) for c, e in zip(classes_of(item), examples, strict=True)}
        assert len(named) == len({c for c, _ in named}) == 2
        assert tuple(sorted(str(name) for _, name in named)) == item.choices
        assert item.class_name == classes_of(item)[-1]
        assert set(item.choices) <= set(TESTED)
        for start in range(0, 12, 2):  # each round shows each name once
            assert {e.answer for e in examples[start : start + 2]} == set(item.choices)
        asked[str(item.example.answer) == item.choices[0]] += 1
    assert min(asked.values()) > 15
    assert len({str(i.example.answer) for i in task.items[:60]}) > 8
    assert "gnu" not in {c for i in task.items[:60] for c in classes_of(i)}  # too few images


def test_the_same_seed_makes_the_same_episodes(animals: Path) -> None:
    one, same, other = (binding(animals, seed=s) for s in (0, 0, 1))
    assert one.items[5] == same.items[5]
    assert one.items[5] != other.items[5]


def test_most_classes_decide_how_many_images_are_few(tmp_path: Path) -> None:
    task = binding(folder(tmp_path / "a", cat=3, dog=3, emu=30, fox=1))
    assert task.most_shots == 4
    assert {c for i in task.items[:40] for c in classes_of(i)} == {"cat", "dog", "emu"}
    task = binding(folder(tmp_path / "b", cat=50, dog=60))
    assert task.most_shots == 40


def test_too_few_classes_say_what_is_there(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", cat=3, dog=1)
    with pytest.raises(ConfigError, match="1 classes of 2 images or more: expected at least 2"):
        binding(root)
    with pytest.raises(ConfigError, match="ways is 17: expected 2 to 16"):
        binding(root, ways=17)


def test_records_are_found_below_a_root(animals: Path, tmp_path: Path) -> None:
    rows = [{"image": f"animals/{c}/{i}.png", "name": c} for c in ("cat", "dog") for i in range(4)]
    (tmp_path / "records").mkdir()
    file = tmp_path / "records" / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = task_named("binding-2:records/own.jsonl", root=tmp_path)
    assert (task.name, task.most_shots) == ("binding-2-own", 6)
    assert Path(str(task.items[0].example.images[0])).is_file()
    spec = "records/exam.jsonl"
    (tmp_path / spec).write_text(json.dumps({"question": "2 + 2?", "answer": "4"}) + "\n")
    assert task_named(spec, root=tmp_path).name == "exam"


def test_the_odd_one_is_where_the_answer_says(animals: Path) -> None:
    task = task_named(f"odd:{animals}")
    assert (task.chance, task.most_shots) == (0.25, 4)
    places = Counter[str]()
    for item in task.items[:80]:
        rows = [item.example, *(item.shots or ())]
        for row in rows:
            own = [Path(str(p)).parent.name for p in row.images]
            place = item.choices.index(str(row.answer))
            assert len(own) == 4
            assert own.count(own[place]) == 1
            assert len({c for i, c in enumerate(own) if i != place}) == 1
            assert len(set(row.images)) == 4
        asked, *shown = ({Path(str(p)).parent.name for p in row.images} for row in rows)
        assert all(asked.isdisjoint(own) for own in shown)
        places[str(item.example.answer)] += 1
    assert set(places) == set(task.items[0].choices)


def test_three_classes_leave_none_for_demonstrations(tmp_path: Path) -> None:
    assert odd_one_out(folder(tmp_path, cat=3, dog=3, emu=3)).most_shots == 0


def test_what_is_asked_is_what_episodes_train(animals: Path) -> None:
    records = read_data(animals)
    named = Episodes(records, EpisodeConfig(odd=0.0))[0].turns[0]
    odd = Episodes(records, EpisodeConfig(odd=1.0))[0].turns[0]
    assert binding(animals).items[0].example.question == named.question
    item = odd_one_out(animals).items[0]
    assert item.example.question == odd.question
    assert odd.answer in ("first", "second", "third", "fourth", "fifth")
    assert item.choices == ("first", "second", "third", "fourth")


def drawings(root: Path, styles: dict[str, list[str]]) -> Path:
    """Records of a drawing of each thing in each of its styles."""
    rows = []
    for number, (name, own) in enumerate(styles.items()):
        for style, shade in zip(own, range(len(own)), strict=True):
            (root / style).mkdir(exist_ok=True, parents=True)
            Image.new("RGB", (4, 4), (number, shade, 0)).save(root / style / f"{name}.png")
            rows.append({"image": f"{style}/{name}.png", "name": name, "source": style})
    (root / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root / "own.jsonl"


STYLES = ["flat", "outline", "shaded"]


def test_no_example_is_in_the_style_that_is_asked_about(tmp_path: Path) -> None:
    file = drawings(tmp_path, dict.fromkeys(["cat", "dog", "emu", "fox", "gnu"], STYLES))
    for ways in (2, 5):
        task = task_named(f"styles-{ways}:{file}")
        assert (task.name, task.most_shots) == (f"styles-{ways}-own", 2 * ways)
        seen = Counter[tuple[bool, str]]()
        for item in task.items[:90]:
            *shown, asked = classes_of(item)  # the folder is the style
            assert asked not in shown
            right = [e.answer == item.example.answer for e in item.shots or ()]
            seen.update(zip(right, shown, strict=True))
            assert len({str(e.images[0]) for e in item.shots or ()}) == 2 * ways
        told = {style: (seen[True, style], seen[False, style]) for style in STYLES}
        for right_name, wrong in told.values():  # styles tell right names from wrong ones nowhere
            assert right_name * (ways - 1) == wrong > 0
    plain = binding(file)
    assert any(asked in shown for *shown, asked in map(classes_of, plain.items[:30]))


def test_styles_need_a_source_in_each_row_and_two_of_a_class(tmp_path: Path) -> None:
    one = drawings(tmp_path / "a", {"cat": ["flat"], "dog": ["flat"], "emu": ["flat"]})
    rows = [json.loads(line) for line in one.read_text().splitlines()]
    for row in rows:
        (one.parent / f"{row['name']}.png").write_bytes((one.parent / row["image"]).read_bytes())
    rows += [{**row, "image": f"{row['name']}.png"} for row in rows]
    one.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match="fewer than 2 classes with images of two sources"):
        task_named(f"styles-2:{one}")
    one.write_text("".join(json.dumps({**row, "source": ""}) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=r'line 1 has no "source"'):
        task_named(f"styles-2:{one}")


def test_another_seed_makes_other_episodes(animals: Path) -> None:
    for name in ("binding-2", "odd"):
        one, other = (task_named(f"{name}:{animals}", seed=seed) for seed in (0, 1))
        assert [i.example for i in one.items[:9]] != [i.example for i in other.items[:9]]
