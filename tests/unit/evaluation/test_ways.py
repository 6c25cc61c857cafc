"""Every way to reach an answer, in an evaluation: what is asked, kept and found again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import isthmus as im
from isthmus.demonstrations.example_file import read_examples
from isthmus.evaluation.runner import evaluate
from isthmus.generation.engine import Completion, Engine
from isthmus.generation.requests import GenerationRequest


class Says(Engine):
    """An engine whose model reasons in one sentence and always finds the same answer."""

    def __init__(self, answer: str) -> None:
        torch.manual_seed(0)  # the same weights, or an evaluation would not go on
        super().__init__(im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline()))
        self.answer = answer
        self.asked: list[str] = []

    def run(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        self.asked += [r.prompt.text for r in requests]
        results = []
        for prompt in (r.prompt for r in requests):
            text = f"That makes {self.answer}. The answer is {self.answer}."
            if prompt.text.endswith("step by step.") and "The answer is" not in prompt.text:
                text = f"That makes {self.answer}."
            if prompt.text.endswith(" is"):
                text = f"{self.answer}."
            results.append(Completion(text, (1,) * 4, prompt_tokens=20, cached_tokens=5))
        return results


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The records of an evaluation."""
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_auto_cot_writes_its_demonstrations_once(tmp_path: Path) -> None:
    engine = Says("3")
    options: dict[str, Any] = {
        "shots": [2],
        "reasoning": "auto-cot",
        "template": "qa",
        "limit": 4,
        "out": tmp_path,
    }
    results = evaluate(engine, "arithmetic", **options)
    assert [row.n for row in results.rows] == [4]
    (path,) = tmp_path.glob("auto-cot-*.toml")
    shots = read_examples(path)
    assert [s.rationale for s in shots] == ["Let's think step by step. That makes 3."] * 2
    first = engine.asked[-1]
    # as published: worked demonstrations with the trigger, and the query's answer begins with it
    for shot in shots:
        assert f"Q: {shot.question}\nA: {shot.rationale} The answer is 3.\n\n" in first
    assert first.endswith("A: Let's think step by step.")
    assert all(r["parsed"] == "3" for r in rows_of(tmp_path)[-4:])
    assert all(r["rationale"].endswith("That makes 3.") for r in rows_of(tmp_path)[-4:])
    again = Says("5")
    evaluate(again, "arithmetic", **options)
    assert again.asked == []  # all is there


def test_an_arm_whose_chains_do_not_hold_up_is_left_out(tmp_path: Path) -> None:
    engine = Says("no idea")
    results = evaluate(
        engine, "arithmetic", shots=[0, 2], reasoning=["none", "auto-cot"], limit=4, out=tmp_path
    )
    assert [row.arm.reasoning for row in results.rows] == ["none", "none"]
    assert "held up" in results.left_out["arithmetic, 2 shots, auto-cot, seed 0"]


def test_least_to_most_and_zero_shot_steps(tmp_path: Path) -> None:
    engine = Says("3")
    results = evaluate(
        engine,
        "arithmetic",
        shots=[0],
        reasoning=["zero-cot", "least-to-most"],
        limit=3,
        samples=3,
        out=tmp_path,
    )
    assert [row.arm.reasoning for row in results.rows] == ["zero-cot", "least-to-most"]
    records = rows_of(tmp_path)
    assert all(r["agreement"] == 1.0 for r in records)
    assert all(r["prompt"].endswith("numerals) is") for r in records)
    # one prompt and three chains' second prompts; tokens of all of them are counted
    assert records[0]["prompt_tokens"] == 4 * 20


def test_a_choice_named_by_its_text_after_steps_is_its_letter(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "choices": ["red", "blue"], "answer": "B"} for n in range(2)]
    support = [
        {"question": "3?", "choices": ["red", "blue"], "answer": "A", "split": "support"},
        {"question": "4?", "choices": ["a", "b", "blue"], "answer": "A", "split": "support"},
    ]
    path = tmp_path / "exam.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [*rows, *support]))
    engine = Says("blue")
    results = evaluate(
        engine, str(path), shots=[0, 2], reasoning=["zero-cot", "auto-cot"], out=tmp_path / "out"
    )
    assert [row.accuracy for row in results.rows] == [1.0, 1.0]
    assert [row.unparsed for row in results.rows] == [0.0, 0.0]
    # each question is asked among its own choices
    assert any("among A through C" in p and "4?" in p for p in engine.asked)
    (written,) = (tmp_path / "out").glob("auto-cot-*.toml")
    assert {s.answer for s in read_examples(written)} == {"B", "C"}


def test_steps_and_their_filler_conclude_in_the_triggers_language(tmp_path: Path) -> None:
    engine = Says("3")
    options: dict[str, Any] = {"shots": [1], "reasoning": "cot", "limit": 1, "out": tmp_path}
    evaluate(engine, "arithmetic", trigger="step-by-step-ko", controls=["filler"], **options)
    steps, filler = (row["prompt"] for row in rows_of(tmp_path))
    assert "정답은 " in steps
    assert "정답은 " in filler
    assert filler.endswith(". 정답은")
    assert "The answer is" not in steps + filler
