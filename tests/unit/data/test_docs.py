"""The examples of docs/data.md, run as they stand."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
from PIL import Image

from isthmus.data.check import check_data

PAGE = Path(__file__).parents[3] / "docs" / "data.md"
FILE = re.compile(r"^`([\w./]+)`:\n\n```\w+\n(.*?)```", re.MULTILINE | re.DOTALL)


def test_the_page_on_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = PAGE.read_text(encoding="utf-8")
    for place in ("", "photos/red_fox/", "captioned/"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        for name in ("dog", "cat")[: 1 if place else 2]:
            Image.new("RGB", (300, 240), "red").save(tmp_path / f"{place}{name}.jpg")
    files = dict(FILE.findall(page))
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTestParser().get_doctest(page, {}, "data.md", str(PAGE), 0)
    assert len(test.examples) >= 10
    runner = doctest.DocTestRunner()
    told: list[str] = []
    runner.run(test, out=told.append)
    assert not runner.summarize(verbose=False).failed, "".join(told)
    for name in (*(n for n in files if "/" not in n), "photos", "captioned", "000.tar"):
        report = check_data(name)
        assert report.exit_code == 0, (name, report.verdict)
