"""easy-VQA's questions as the shipped model is trained on them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def questions(recipe_path: Path) -> ModuleType:
    import questions

    return questions


def test_three_questions_about_one_image_make_a_conversation(
    questions: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [[f"is it {i}?", f"answer {i}", "a.png"] for i in range(20)]
    rows[3:3] = [["what is it?", "circle", "b.png"], ["is it teal?", "yes", "b.png"]]
    monkeypatch.setattr(questions, "_easy_vqa", lambda root, split: rows)
    made = list(questions.easy_vqa_conversations(Path()))
    talks = [[turn["value"] for turn in record["conversations"]] for record in made]
    assert [record["image"] for record in made] == ["a.png"] * 7 + ["b.png"]
    assert [len(talk) // 2 for talk in talks] == [3] * 6 + [2, 2]
    speakers = {turn["from"] for record in made for turn in record["conversations"][::2]}
    assert speakers == {"human"}
    pairs = [pair for talk in talks for pair in zip(talk[::2], talk[1::2], strict=True)]
    assert Counter(pairs) == Counter((q[0].upper() + q[1:], a) for q, a, _ in rows)
    assert pairs[:20] != [(f"Is it {i}?", f"answer {i}") for i in range(20)]  # mixed
    assert made == list(questions.easy_vqa_conversations(Path()))
