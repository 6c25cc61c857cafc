from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import isthmus as im
from isthmus.demonstrations.calibrate import contextual
from isthmus.errors import ConfigError
from isthmus.evaluation import runner
from isthmus.evaluation.answering import TRIGGER, Asker, Style
from isthmus.evaluation.arms import Arm
from isthmus.evaluation.records import Answered, Records, difference, read
from isthmus.evaluation.selection import Shots
from isthmus.evaluation.task import Item, Task
from isthmus.evaluation.tasks.episodes import fast_binding
from isthmus.evaluation.tasks.text import parity
from isthmus.generation.engine import Completion, Engine
from isthmus.prompts.prompt import Example, Prompt
from isthmus.reasoning.method import Reasoning


def untimed(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in asdict(r).items() if k != "seconds"} for r in read(path)]


class Written:
    """An engine that says what it is told to, and remembers what it was asked."""

    def __init__(self, engine: Engine, *texts: str) -> None:
        self.model = engine.model
        self.texts = list(texts)
        self.asked: list[str] = []

    def run(self, requests: Any) -> list[Completion]:
        self.asked += [r.prompt.text for r in requests]
        return [
            Completion(self.texts.pop(0), (1, 2), prompt_tokens=7, cached_tokens=3)
            for _ in requests
        ]


WORKED = [
    Item("a", Example((), "Is 2 odd?", "even", "2 is twice 1.")),
    Item("b", Example((), "Is 3 odd?", "odd")),
]


class Stop(Exception):
    pass


def test_an_interrupted_run_goes_on_where_it_was(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "CHUNK", 2)
    asked: list[str] = []
    whole = Asker.ask

    def ask(self: Asker, items: Any, shots: Any) -> Any:
        if len(asked) == 4:
            raise Stop
        asked.extend(f"{self.arm.id}/{i.id}" for i in items)
        return whole(self, items, shots)

    def run(out: Path) -> im.evaluation.results.Results:  # type: ignore[name-defined]
        return im.evaluate(engine, parity(n=5, support=4), shots=[0, 2], out=out)

    expected = run(tmp_path / "whole")
    monkeypatch.setattr(Asker, "ask", ask)
    with pytest.raises(Stop):
        run(tmp_path / "cut")
    with (tmp_path / "cut/records.jsonl").open("a") as file:
        file.write('{"arm": "parity, 2 sho')  # killed while writing
    monkeypatch.setattr(Asker, "ask", whole)
    counted: list[int] = []
    monkeypatch.setattr(
        Asker, "ask", lambda self, i, s: (counted.append(len(i)), whole(self, i, s))[1]
    )
    results = run(tmp_path / "cut")
    assert (len(asked), sum(counted)) == (4, 6)  # ten questions, none of them twice
    assert untimed(tmp_path / "cut/records.jsonl") == untimed(tmp_path / "whole/records.jsonl")
    assert [r.accuracy for r in results.rows] == [r.accuracy for r in expected.rows]
    counted.clear()
    run(tmp_path / "cut")
    assert counted == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shots": [0, 1]}, r"arms\[1\] = \"parity, 2 shots"),
        ({"samples": 3}, "samples = 1, this one has 3"),
        ({"norm": "token"}, 'norm = "sum"'),
        ({"tasks": parity(seed=1, n=3, support=4)}, "tasks.parity.contents"),
        ({"select": "fixed"}, 'select = "random"'),
    ],
)
def test_another_configuration_is_refused(
    engine: Engine, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    settings: dict[str, Any] = {"tasks": parity(n=3, support=4), "shots": [0, 2], "out": tmp_path}
    im.evaluate(engine, **settings)
    before = (tmp_path / "records.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=told):
        im.evaluate(engine, **{**settings, **change})
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_other_weights_are_another_evaluation(engine: Engine, tmp_path: Path) -> None:
    task = parity(n=2, support=2)
    im.evaluate(engine, task, shots=[0], out=tmp_path)
    torch.manual_seed(1)
    model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.CrossAttention(every=2))
    with pytest.raises(ConfigError, match="weights = "):
        im.evaluate(model, task, shots=[0], out=tmp_path)


def test_adapters_that_were_trained_are_another_evaluation(tmp_path: Path) -> None:
    fusion = im.Inline(adapter=im.Adapter(rank=2, start=1))
    model = im.compose("tiny-vit", "tiny-lm", im.Linear(), fusion)
    task = parity(n=2, support=2)
    im.evaluate(model, task, shots=[0], out=tmp_path)
    (adapter, *_) = (p for name, p in model.named_parameters() if "lora_B" in name)
    adapter.data[0, 0] += 1
    with pytest.raises(ConfigError, match="weights = "):
        im.evaluate(model, task, shots=[0], out=tmp_path)


def test_another_precision_is_another_evaluation(tmp_path: Path) -> None:
    model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
    task = parity(n=2, support=2)
    im.evaluate(model, task, shots=[0], out=tmp_path)
    with pytest.raises(ConfigError, match='dtype = "float32", this one has "bfloat16"'):
        im.evaluate(model.bfloat16(), task, shots=[0], out=tmp_path)


def test_a_damaged_record_is_named(engine: Engine, tmp_path: Path) -> None:
    task = parity(n=2, support=2)
    im.evaluate(engine, task, shots=[0], out=tmp_path)
    records = tmp_path / "records.jsonl"
    first, second = records.read_text().splitlines()
    records.write_text(f'{first}\n{{"no": 1}}\n{second}\n')
    with pytest.raises(ConfigError, match="line 2 is not a record"):
        im.evaluate(engine, task, shots=[0], out=tmp_path)


def test_records_of_nobody_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"no config\.json"):
        Records(tmp_path, {})


def test_the_first_difference_is_told() -> None:
    assert difference({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert difference({"a": {"b": 1}}, {"a": {}}) == ("a.b", 1, None)
    assert difference([1], [1, 2]) == ("", [1], [1, 2])


def test_closed_answers_are_scored_as_the_engine_scores_them(engine: Engine) -> None:
    task = fast_binding(n=4, shots=4)
    arm = Arm(task.name, 2)
    asker = Asker(engine, task, arm, Style(norm="byte"))
    items = list(task.items)
    shots = [list((i.shots or ())[:2]) for i in items]
    for item, own, record in zip(items, shots, asker.ask(items, shots), strict=True):
        prompt = asker.prompt(item, own)
        (alone,) = engine.score([prompt], [f" {o}" for o in item.choices])
        assert record.scores == pytest.approx(
            dict(zip(item.choices, alone.by("byte"), strict=True))
        )
        assert record.parsed == max(record.scores, key=lambda o: record.scores[o])
        assert record.right == float(record.parsed == item.example.answer)
        assert (record.prompt, record.expected) == (prompt.text, item.example.answer)
        assert len(record.images) == 3


def test_scores_are_calibrated_against_the_same_shots(engine: Engine) -> None:
    task = parity(n=5, support=4)
    items, arm = list(task.items), Arm("parity", 2)
    plain = Asker(engine, task, arm, Style())
    own = Shots(engine, task, arm, "random", "similar-last").of(items[0])
    shots = [own] * len(items)
    raw = [list(r.scores.values()) for r in plain.ask(items, shots)]
    free = []
    for text in ("N/A", "", "[MASK]"):
        gap = "QUESTION7MARK"
        prompt = plain.prompt(Item("", Example((), gap)), own)
        (score,) = engine.score(
            [
                Prompt.of(
                    [s._replace(text=s.text.replace(gap, text)) for s in prompt.spans],
                    prompt.images,
                )
            ],
            [" even", " odd"],
        )
        free.append(score.logprobs)
    asker = Asker(engine, task, arm, Style(calibrate="contextual"))
    got = [list(r.scores.values()) for r in asker.ask(items, shots)]
    np.testing.assert_allclose(got, contextual(raw, free), atol=1e-5)


def test_shots_that_questions_share_are_one_prefix(engine: Engine, grid: Task) -> None:
    for control in ("", "shuffled", "blank", "filler"):
        arm = Arm(grid.name, 3, "cot", seed=1, control=control)
        asker = Asker(engine, grid, arm, Style())
        shots = Shots(engine, grid, arm, "random", "similar-last")
        prompts = [asker.prompt(item, shots.of(item)) for item in grid.items]
        prefixes = {p.text[: p.shared] for p in prompts}
        assert len(prefixes) == 1
        assert prefixes.pop().count("<image>") == 3
        assert len({p.text for p in prompts}) > 1


def test_seeds_draw_other_shots_and_more_shots_keep_the_fewer(engine: Engine, grid: Task) -> None:
    def drawn(shots: int, seed: int, select: str = "random") -> list[str]:
        chosen = Shots(engine, grid, Arm(grid.name, shots, seed=seed), select, "similar-first")
        return [e.question for e in chosen.of(grid.items[0])]

    assert drawn(4, 0)[:2] == drawn(2, 0)
    assert drawn(4, 0) != drawn(4, 1)
    assert drawn(2, 0, "fixed") == [i.example.question for i in grid.support[:2]]


def test_samples_vote_and_silence_has_no_vote(engine: Engine) -> None:
    task = Task("t", "number", [Item("a", Example((), "?", "5"))])
    said: Any = Written(engine, "hm", "It is 4", "hm", "5!", "five: 5.0", "hm")
    (record,) = Asker(said, task, Arm("t", 0), Style(reasoning=Reasoning(samples=6))).ask(
        list(task.items), [()]
    )
    assert record.parsed in ("5", "5.0")
    assert (record.right, record.agreement) == (1.0, pytest.approx(2 / 3))
    assert (record.prompt_tokens, record.cached_tokens, record.new_tokens) == (7, 3, 12)
    silent: Any = Written(engine, "hm", "hm")
    (record,) = Asker(silent, task, Arm("t", 0), Style(reasoning=Reasoning(samples=2))).ask(
        list(task.items), [()]
    )
    assert (record.parsed, record.right, record.agreement) == (None, 0.0, None)


def test_zero_shot_chain_of_thought_asks_twice(engine: Engine) -> None:
    item = Item("a", Example((), "2 + 2?", "4"))
    task = Task("t", "number", [item], template="qa")
    said: Any = Written(engine, "Two, then 2 more: 5?", "4. And 5.")
    (record,) = Asker(said, task, Arm("t", 0, "zero-cot"), Style()).ask([item], [()])
    first = "Q: 2 + 2?\nA: Let's think step by step."
    second = f"{first} Two, then 2 more: 5? \nTherefore, the answer (arabic numerals) is"
    assert said.asked == [first, second]  # Kojima et al. 2022, section 3
    assert (record.parsed, record.right, record.rationale) == ("4", 1.0, "Two, then 2 more: 5?")
    assert (record.prompt, record.prompt_tokens, record.new_tokens) == (second, 14, 4)


def test_each_sampled_chain_is_asked_for_its_own_answer(engine: Engine) -> None:
    item = Item("a", Example((), "2 + 2?", "4"), choices=("3", "4"))
    task = Task("t", "choice", [item], template="qa")
    said: Any = Written(engine, "so B", "so A", "so B again", "B.", "A.", "(B)")
    asker = Asker(
        said, task, Arm("t", 0, "zero-cot"), Style(reasoning=Reasoning(samples=3, trigger=TRIGGER))
    )
    (record,) = asker.ask([item], [()])
    assert said.asked[:3] == [said.asked[0]] * 3
    assert said.asked[3:] == [
        f"{said.asked[0]} {chain} \nTherefore, among A through B, the answer is"
        for chain in ("so B", "so A", "so B again")
    ]
    assert (record.parsed, record.rationale, record.agreement) == ("B", "so B", 2 / 3)


def test_worked_answers_are_read_after_their_marker_and_others_at_the_beginning(
    engine: Engine,
) -> None:
    item = Item("a", Example((), "2 + 2?", "4", "2 and 2."))
    task = Task("t", "number", [item], template="qa")
    shots = [[Example((), "1 + 1?", "2", "1 and 1.")]]

    def parsed(text: str, way: str, control: str = "") -> str | None:
        said: Any = Written(engine, text)
        arm = Arm("t", 1, way, control=control)
        (record,) = Asker(said, task, arm, Style()).ask([item], shots)
        prompts.append(said.asked[0])
        return record.parsed

    prompts: list[str] = []
    assert parsed("2 and 2, so not 5. The answer is 4.", "cot") == "4"
    assert parsed("4. 2 and 2, that is 5.", "cot", "answer-first") == "4"
    assert parsed("4.", "cot", "filler") == "4"
    assert parsed("4", "none") == "4"
    worked, first, dots, direct = (p.removesuffix("Q: 2 + 2?\nA:") for p in prompts)
    assert worked == "Q: 1 + 1?\nA: 1 and 1. The answer is 2.\n\n"
    assert first == "Q: 1 + 1?\nA: 2. 1 and 1.\n\n"
    assert direct == "Q: 1 + 1?\nA: 2\n\n"
    assert dots == ("Q: 1 + 1?\nA: . . . . The answer is 2.\n\nQ: 2 + 2?\nA: . . . . The answer is")


def test_results_are_kept_as_json_table_and_page(
    engine: Engine, grid: Task, tmp_path: Path
) -> None:
    results = im.evaluate(
        engine,
        [grid, parity(n=4, support=4)],
        shots=[0, 2],
        reasoning=["none", "cot"],
        controls=["blank", "filler"],
        seeds=[0, 1],
        out=tmp_path,
    )
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["rows"] == json.loads(json.dumps(results.to_json()))["rows"]
    assert [r["id"] for r in kept["rows"] if r["arm"]["seed"] == 0][:6] == [
        "two-hop, 0 shots, none, seed 0",
        "two-hop, 0 shots, none, seed 0, blank",
        "two-hop, 2 shots, none, seed 0",
        "two-hop, 2 shots, none, seed 0, blank",
        "two-hop, 2 shots, cot, seed 0",
        "two-hop, 2 shots, cot, seed 0, blank",
    ]
    assert (tmp_path / "results.md").read_text() == results.markdown()
    assert len(read(tmp_path / "records.jsonl")) == sum(r.n for r in results.rows)
    assert all(r.n == (6 if r.arm.task == "two-hop" else 4) for r in results.rows)
    first = [r.compared is None for r in results.rows]
    assert first.count(True) == 2
    assert "two-hop, 2 arms: worked demonstrations need at least one shot" not in kept["left_out"]
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert "<script" not in page


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"reasoning": "cott"}, 'did you mean "cot"'),
        ({"controls": ["blanc"]}, 'did you mean "blank"'),
        ({"shots": [-1]}, "-1 shots"),
        ({"shots": [99]}, "nothing to run: parity, 99 shots"),
        ({"samples": 0}, "samples is 0"),
        ({"norm": "mean"}, "expected sum, token or byte"),
        ({"select": "rice"}, 'did you mean "rices"'),
        ({"order": "best"}, "unknown order"),
        ({"calibrate": "pmi"}, "unknown calibration"),
        ({"template": "qq"}, 'unknown template "qq"'),
        (
            {"tasks": replace(parity(n=2), support=WORKED), "shots": [2], "reasoning": "cot"},
            "1 demonstrations have a rationale; expected at least 2",
        ),
        ({"tasks": ["parity", "parity"]}, "two tasks have one name"),
    ],
)
def test_what_cannot_be_run_is_refused_before_a_model_is_loaded(
    settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        im.evaluate("no model", **{"tasks": "parity", **settings})


def test_a_record_is_what_was_written(tmp_path: Path) -> None:
    row = Answered("a", "1", "p", ("x.png",), "t", None, "e", 0.0, 1, 2, 3, 0.5, {"한글": -1.0})
    records = Records(tmp_path, {})
    records.add([row])
    records.close()
    assert read(tmp_path / "records.jsonl") == [row]
    again = Records(tmp_path, {})
    assert ("a", "1") in again
    again.close()
