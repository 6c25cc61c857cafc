"""The habits of the project: workflow, issue forms, version, links of what is read first."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import isthmus

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
LINKING = ["README.md", "README.ko.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]


def read_yaml(path: Path) -> Any:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_workflow_runs_the_check_on_every_supported_python() -> None:
    job = read_yaml(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["check"]
    prefix = "Programming Language :: Python :: 3."
    supported = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if c.startswith(prefix)]
    assert job["strategy"]["matrix"]["python"] == supported
    assert PROJECT["requires-python"] == f">={supported[0]}"
    assert job["strategy"]["matrix"]["include"] == [
        {"python": supported[0], "transformers": "oldest"}
    ]
    assert ".ci/run" in [step.get("run") for step in job["steps"]]


def test_the_oldest_transformers_is_read_off_the_project() -> None:
    """The workflow's `sed`, in Python."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.findall(r'^ *"transformers>=([0-9.]*)".*', text, re.MULTILINE)
    assert [f"transformers>={version}" for version in found] == [
        d for d in PROJECT["dependencies"] if d.startswith("transformers")
    ]


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.stem)
def test_every_issue_form_asks_for_the_doctor(path: Path) -> None:
    form = read_yaml(path)
    assert form["name"]
    assert form["description"]
    fields = {field["id"]: field for field in form["body"] if "id" in field}
    assert "isthmus doctor" in fields["doctor"]["attributes"]["label"]
    assert fields["doctor"].get("validations", {}).get("required", False) == (path.stem == "bug")


def test_there_are_three_forms() -> None:
    assert [path.stem for path in FORMS] == ["bug", "feature", "question"]


def test_one_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    (cited,) = re.findall(r"^version: (.*)$", citation, re.MULTILINE)
    assert PROJECT["version"] == isthmus.__version__ == cited


@pytest.mark.parametrize("name", LINKING)
def test_links_of_the_repository_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.findall(r"\]\((?!https?:|#)([^)#\s]+)|(?:src|href)=\"(?!https?:)([^\"#]+)", text)
    missing = [a or b for a, b in found if not (ROOT / (a or b)).exists()]
    assert missing == []


def test_every_extra_has_a_reason() -> None:
    """A row of the table in docs/decisions.md for each package of an extra and each dependency."""
    decisions = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    table = decisions.partition("## Dependencies")[2].partition("\n## ")[0]
    needed = {*PROJECT["dependencies"]}
    needed.update(PROJECT["optional-dependencies"]["docs"])
    for requirement in needed:
        package = re.split(r"[\[><=]", requirement)[0]
        assert re.search(rf"^\|[^|]*\b{re.escape(package)}\b", table, re.MULTILINE), package
