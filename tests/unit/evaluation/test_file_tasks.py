from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from isthmus.errors import ConfigError
from isthmus.evaluation.task import Generated, Item, Task, limited
from isthmus.evaluation.tasks import TASKS, task_named
from isthmus.evaluation.tasks.questions import questions
from isthmus.prompts.prompt import Example, with_choices


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows))
    return path


def image(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)
    return path


def test_an_exam_with_choices(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    file = jsonl(
        tmp_path / "exam.jsonl",
        {"question": "Which?", "answer": "blue", "choices": ["red", "blue"], "image": "a.png"},
        "",
        {"id": "last", "question": "And?", "answer": "c", "choices": [1, 2, 4], "rationale": "So."},
        {"question": "First?", "answer": "A", "choices": ["A", "B"], "split": "support"},
    )
    task = task_named(str(file))
    assert (task.name, task.kind, task.metric, task.chance) == (
        "exam",
        "choice",
        "accuracy",
        (1 / 2 + 1 / 3) / 2,
    )
    first, last = task.items
    assert (first.id, first.example.answer, first.example.images) == (
        "1",
        "B",
        (tmp_path / "a.png",),
    )
    assert (last.id, last.example.answer, last.choices, last.example.rationale) == (
        "last",
        "C",
        ("1", "2", "4"),
        "So.",
    )
    assert [i.id for i in task.support] == ["4"]


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        (["4", "-1.5", "1,000"], "number"),
        (["yes", "No"], "yes_no"),
        (["4", "four"], "text"),
        (["nan"], "text"),
    ],
)
def test_the_kind_is_read_off_the_answers(tmp_path: Path, answers: list[str], kind: str) -> None:
    file = jsonl(tmp_path / "q.jsonl", *({"question": "?", "answer": a} for a in answers))
    assert questions(file).kind == kind


def test_answers_of_several_people(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "q.jsonl", {"question": "?", "answers": ["cat", "dog", "dog"]})
    task = questions(file)
    assert (task.metric, task.items[0].example.answer) == ("vqa", "dog")
    assert task.items[0].accepted == ("cat", "dog", "dog")


Q = {"question": "?", "answer": "x"}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([Q, "{"], "line 2 is no JSON"),
        ([Q, "[1]"], "line 2 is not an object"),
        ([Q, {"question": "?"}], 'line 2 has no "answer"'),
        ([{"answer": "x"}], 'line 1 has no "question"'),
        ([Q, {**Q, "quesion": 1}], 'unknown field "quesion": did you mean "question"'),
        ([{**Q, "choices": "ab"}], 'line 1: "choices" is'),
        ([{**Q, "choices": ["y", "z"]}], "none of the choices \\(y, z\\)"),
        ([{**Q, "choices": ["x", "x"]}], "several of the choices"),
        ([{**Q, "image": "gone.png"}], "line 1: no image at .*gone.png"),
        ([{**Q, "images": 3}], "the images are 3"),
        ([{**Q, "split": "tset"}], 'did you mean "test"'),
        ([{**Q, "question": "a <image> b"}], "<image> is placed by the template"),
        ([{**Q, "id": "a"}, {**Q, "id": "a"}], 'the id "a" is used twice'),
        ([{**Q, "id": "a"}, {**Q, "id": "a", "split": "support"}], "is a test item and in the"),
        ([{**Q, "choices": ["x", "y"]}, {**Q, "id": "odd"}], 'none, such as "odd"'),
        ([{**Q, "split": "support"}], 'no questions with "split": "test"'),
        ([{**Q, "choices": [str(i) for i in range(27)]}], "27 choices"),
        ([{**Q, "answer": ["x"]}], "expected a text"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, rows: list[Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        questions(jsonl(tmp_path / "q.jsonl", *rows))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read questions from .*no.jsonl: No such file"):
        questions(tmp_path / "no.jsonl")
    (tmp_path / "bad.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        questions(tmp_path / "bad.jsonl")


def test_gsm8k_leaves_out_the_calculator(tmp_path: Path) -> None:
    row = {
        "question": "How much?",
        "answer": "She has 2+3=<<2+3=5>>5 eggs\nSold for $<<5*400=2000>>2,000.\n#### 2,000",
    }
    jsonl(tmp_path / "gsm8k_test.jsonl", row)
    jsonl(tmp_path / "gsm8k_train.jsonl", row, row)
    task = task_named(f"gsm8k:{tmp_path}")
    example = task.items[0].example
    assert example.rationale == "She has 2+3=5 eggs. Sold for $2,000."
    assert example.answer == "2000"
    assert [i.id for i in task.support] == ["gsm8k_train-0", "gsm8k_train-1"]
    task.check()
    with pytest.raises(ConfigError, match="line 1 is not GSM8K's"):
        task_named(f"gsm8k:{jsonl(tmp_path / 'other.jsonl', Q)}")


def test_svamp_sets_every_tenth_aside(tmp_path: Path) -> None:
    rows = [
        {
            "ID": f"chal-{i}",
            "Body": "Dan had $ 3 left ",
            "Question": "How much?",
            "Equation": f"( {i + 1}.0 + 2.5 )",
            "Answer": i + 3.5,
            "Type": "Addition",
        }
        for i in range(20)
    ]
    (tmp_path / "s.json").write_text(json.dumps(rows))
    task = task_named(f"svamp:{tmp_path / 's.json'}")
    assert [i.id for i in task.support] == ["chal-0", "chal-10"]
    assert len(task.items) == 18
    shot = task.support[1].example
    assert (shot.question, shot.answer, shot.rationale) == (
        "Dan had $ 3 left. How much?",
        "13.5",
        "11 + 2.5 = 13.5.",
    )
    task.check()


def test_easy_vqa_from_its_package(tmp_path: Path) -> None:
    for split, rows in {
        "train": [["what color is it?", "red", 0], ["is it red?", "yes", 0]],
        "test": [["what shape is it?", "circle", 3]],
    }.items():
        image(tmp_path / f"easy_vqa/data/{split}/images/0.png")
        (tmp_path / f"easy_vqa/data/{split}/questions.json").write_text(json.dumps(rows))
    task = task_named(f"easy-vqa:{tmp_path}")
    item = task.items[0]
    assert item.example.images == (tmp_path / "easy_vqa/data/test/images/3.png",)
    assert (item.example.question, item.choices) == ("What shape is it?", ("circle", "red", "yes"))
    assert [s.example.answer for s in task.support] == ["red", "yes"]
    with pytest.raises(ConfigError, match="No such file"):
        task_named(f"easy-vqa:{tmp_path / 'easy_vqa'}/nothing")


@pytest.mark.parametrize("split", [True, False])
def test_a_folder_for_each_class(tmp_path: Path, split: bool) -> None:
    for name in ("red_apple", "pear", ".hidden"):
        for i in range(5):
            folder = Path("train" if i > 2 else "test") if split else Path()
            image(tmp_path / folder / name / f"{i}.png")
    task = task_named(f"classes:{tmp_path}")
    assert [i.example.answer for i in task.items] == ["pear"] * 3 + ["red apple"] * 3
    assert [Path(str(i.example.images[0])).name for i in task.support] == ["3.png", "4.png"] * 2
    assert task.items[0].choices == ("pear", "red apple")
    assert task.chance == 0.5
    task.check()


def test_one_class_is_no_task(tmp_path: Path) -> None:
    image(tmp_path / "only" / "a.png")
    with pytest.raises(ConfigError, match="has 1 classes"):
        task_named(f"classes:{tmp_path}")


def test_names_and_texts_of_images(tmp_path: Path) -> None:
    rows = []
    for i in range(20):
        image(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "name": f"cup {i}", "names": [f"cup {i}", "mug"]})
    file = jsonl(tmp_path / "names.jsonl", *rows)
    task = task_named(f"naming:{file}")
    task.check()
    assert [i.id for i in task.support] == ["0", "10"]
    assert (task.items[0].answers, task.items[0].example.images) == (
        ("cup 1", "mug"),
        (tmp_path / "1.png",),
    )
    read = task_named(f"ocr:{file}")
    assert (read.metric, read.items[0].example.question) == (
        "characters",
        "What does the text say?",
    )


@pytest.mark.parametrize("kind", ["naming", "ocr"])
def test_records_that_say_their_split_keep_it(tmp_path: Path, kind: str) -> None:
    splits = [None, "train", "test", "support", "val"] * 4

    def file(name: str, told: list[str | None]) -> Path:
        rows = []
        for i, split in enumerate(told):
            image(tmp_path / f"{i}.png")
            row = {"image": f"{i}.png", "name": f"cup {i}"}
            rows.append(row if split is None else {**row, "split": split})
        return jsonl(tmp_path / name, *rows)

    task = task_named(f"{kind}:{file('mixed.jsonl', splits)}")
    assert [int(i.id) % 5 for i in task.items] == [0, 2, 4] * 4
    assert [int(i.id) % 5 for i in task.support] == [1, 3] * 4
    whole = task_named(f"{kind}:{file('whole.jsonl', ['test'] * 20)}")
    assert [i.id for i in whole.items] == [str(i) for i in range(20)]
    assert len(whole.support) == 0
    with pytest.raises(ConfigError, match='line 2: "split" is \'tset\': did you mean "test"'):
        task_named(f"{kind}:{file('odd.jsonl', ['test', 'tset'])}")
    with pytest.raises(ConfigError, match='no images with "split": "test"'):
        task_named(f"{kind}:{file('shown.jsonl', ['support'] * 3)}")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("countin", 'did you mean "counting"'),
        ("gsm8k", "expected gsm8k:PATH"),
        ("counting:x", "takes no path"),
        ("no.jsonl", "cannot read questions"),
    ],
)
def test_unknown_tasks_are_told(spec: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        task_named(spec)


def test_every_task_says_what_it_is() -> None:
    assert all(known.about for known in TASKS.values())


def test_a_limit_is_spread_over_the_whole() -> None:
    items = [Item(str(i), Example((), "?", "x")) for i in range(10)]
    task = Task("t", "text", items)
    assert [i.id for i in limited(task, 4).items] == ["0", "2", "5", "7"]
    assert limited(task, None) is task
    with pytest.raises(ConfigError, match="at least 1"):
        limited(task, 0)


def test_generated_items_are_made_once_while_they_are_kept() -> None:
    made: list[int] = []

    def make(i: int) -> Item:
        made.append(i)
        return Item(str(i), Example((), "?", "x"))

    items = Generated(300, make)
    assert (items[-1].id, items[299].id, len(items)) == ("299", "299", 300)
    assert made == [299]
    with pytest.raises(IndexError):
        _ = items[300]


def test_choices_are_put_as_published() -> None:  # Kojima et al. 2022, appendix A.2
    assert with_choices("Which?", ["a", "b"]) == "Which? Answer Choices: (A) a (B) b"
