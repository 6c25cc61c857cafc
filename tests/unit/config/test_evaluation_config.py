from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from isthmus.config.evaluation import (
    EvaluationConfig,
    options_of,
    read_suite,
    suite_from_mapping,
)
from isthmus.demonstrations.support import content_of
from isthmus.errors import ConfigError
from isthmus.evaluation.task import limited
from isthmus.evaluation.tasks import TASKS, task_named

RECIPE = Path(__file__).parents[3] / "recipes" / "tiny"
RUN = {"name": "a", "tasks": ["parity"]}


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({}, 'missing key "evaluation.run"'),
        ({"run": []}, r"no \[\[run\]\]"),
        ({"run": [{**RUN, "shotz": [1]}]}, 'did you mean "shots"'),
        ({"run": [{**RUN, "shots": [-1]}]}, r"shots\[0\] = -1: expected at least 0"),
        ({"run": [{**RUN, "tasks": []}]}, 'the run "a" has no tasks'),
        ({"run": [RUN, RUN]}, "each name once"),
        ({"run": [{**RUN, "name": "../a"}]}, "small letters, digits and hyphens"),
        (
            {"run": [RUN], "picture": [{"name": "p", "title": "", "kind": "shots", "runs": ["b"]}]},
            'the picture "p" shows the run "b"',
        ),
        (
            {"run": [RUN], "picture": [{"name": "p", "title": "", "kind": "ways", "runs": []}]},
            'the picture "p" has no runs',
        ),
        (
            {"run": [RUN], "picture": [{"name": "p", "title": "", "kind": "pie", "runs": ["a"]}]},
            'kind = "pie"',
        ),
    ],
)
def test_what_is_wrong_is_named(tables: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        suite_from_mapping(tables)


def test_a_file_is_read_and_what_it_sets_is_said(tmp_path: Path) -> None:
    file = tmp_path / "card.toml"
    file.write_text('[[run]]\nname = "a"\ntasks = ["parity"]\nshots = [0, 2]\nlimit = 9\n')
    (run,) = read_suite(file).run
    assert run == EvaluationConfig(name="a", tasks=("parity",), shots=(0, 2), limit=9)
    assert options_of(run) == {"tasks": ("parity",), "shots": (0, 2), "limit": 9}
    with pytest.raises(ConfigError, match="no configuration file"):
        read_suite(tmp_path / "other.toml")


def is_drawn(task: str) -> bool:
    """Whether a seed decides what is asked."""
    name, _, path = task.partition(":")
    return name in TASKS and (not path or TASKS[name].seeded)


def test_the_recipe_chooses_without_a_look_at_a_test() -> None:
    dev, card = (read_suite(RECIPE / f"{name}.toml") for name in ("dev", "card"))
    tasks = {task for run in dev.run for task in run.tasks}
    assert {t for t in tasks if "records/" in t} == {t for t in tasks if "records/dev-" in t}
    measured = {task for run in card.run for task in run.tasks}
    assert {t.replace("dev-", "test-") for t in tasks} <= measured
    assert not any("dev-" in task for task in measured)
    drawn = [run for run in dev.run if any(map(is_drawn, run.tasks))]
    assert {run.name for run in drawn} >= {"creatures", "drawings", "styles", "odd"}
    seeds = {run.task_seed for run in card.run}
    assert all(run.task_seed not in seeds for run in drawn)
    korean = [run.trigger for run in card.run if run.name.endswith("-ko")]
    assert korean == ["step-by-step-ko"]


def drawn_images(file: str) -> set[str]:
    """A hash of each image that is asked about in the generated tasks of a file of the recipe."""
    found = set()
    for run in read_suite(RECIPE / f"{file}.toml").run:
        for name in run.tasks:
            if name in TASKS:
                task = limited(task_named(name, seed=run.task_seed), run.limit)
                found |= {content_of(p) for item in task.items for p in item.example.images}
    return found


def test_no_generated_question_is_chosen_by_and_measured() -> None:
    chosen, measured = drawn_images("dev"), drawn_images("card")
    assert (len(chosen), len(measured)) == (50, 200)
    assert chosen.isdisjoint(measured)
