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
from isthmus.errors import ConfigError

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


def test_the_recipe_chooses_without_a_look_at_a_test() -> None:
    dev, card = (read_suite(RECIPE / f"{name}.toml") for name in ("dev", "card"))
    tasks = {task for run in dev.run for task in run.tasks}
    assert {t for t in tasks if "records/" in t} == {t for t in tasks if "records/dev-" in t}
    measured = {task for run in card.run for task in run.tasks}
    assert {t.replace("dev-", "test-") for t in tasks} <= measured
    assert not any("dev-" in task for task in measured)
    korean = [run.trigger for run in card.run if run.name.endswith("-ko")]
    assert korean == ["step-by-step-ko"]
