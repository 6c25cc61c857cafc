"""The lecture: each page prints what it says, and its languages say the same of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import isthmus

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import lecture  # noqa: E402

PAGES = lecture.pages("en")
NAMES = [page.stem for page in PAGES]
PAGE = """# 1. A page

<!-- claim: It counts. | {right} of 4 -->

Right are 3<!-- right -->.

```python
print("right = 3")
```

```output
right = 3
```
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A page in two languages."""
    for language in ("en", "ko"):
        (tmp_path / language).mkdir()
        (tmp_path / language / "01-page.md").write_text(PAGE, encoding="utf-8")
    return tmp_path / "en" / "01-page.md"


def run(*pages: Path, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Runs the tool on pages, with the package that is tested."""
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "lecture.py"), *map(str, pages), *options],
        env={**os.environ, "PYTHONPATH": str(Path(isthmus.__file__).parents[1])}
        | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)  # less than a minute of one core, which may be shared
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_a_page_prints_what_it_says(page: Path) -> None:
    told = run(page)
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_both_languages_have_the_same_code_outputs_and_numbers(page: Path) -> None:
    assert lecture.problems(page) == []


def test_no_korean_page_stands_alone() -> None:
    assert [page.name for page in lecture.pages("ko")] == [page.name for page in PAGES]


@pytest.mark.parametrize("language", list(lecture.HEADS))
def test_the_first_page_has_each_page_with_its_claims(language: str) -> None:
    table = lecture.table(language)
    index = (lecture.LECTURE / language / "index.md").read_text(encoding="utf-8")
    assert index.count(lecture.MARK) == 1
    for page in lecture.pages(language):
        assert f"]({page.name})" in table
    assert not [line for line in table.splitlines() if "{" in line]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("3<!-- right -->", "4<!-- right -->", "was printed"),
        ("3<!-- right -->", "3", "one language alone"),
        ("```output\nright = 3", "```output\nright = 4", "code or outputs differ"),
        ('print("right = 3")', 'print("right =", 3)', "code or outputs differ"),
        ("<!-- claim: It counts. | {right} of 4 -->", "", "no line"),
        ("{right} of 4", "{wrong} of 4", "was not printed"),
        ("Right are", "![A plot](../figures/missing.svg) Right are", "missing"),
    ],
)
def test_a_difference_between_languages_is_told(page: Path, old: str, new: str, told: str) -> None:
    assert lecture.problems(page) == []
    korean = page.parent.parent / "ko" / page.name
    korean.write_text(PAGE.replace(old, new), encoding="utf-8")
    assert any(told in problem for problem in lecture.problems(page))


def test_a_wrong_output_fails_and_write_mends_it(page: Path) -> None:
    changed = PAGE.replace("```output\nright = 3", "```output\nright = 4")
    page.write_text(changed, encoding="utf-8")
    told = run(page)
    assert told.returncode == 1
    assert "'right = 4' was 'right = 3'" in told.stdout
    assert run(page, options=("--write",)).returncode == 0
    assert page.read_text(encoding="utf-8") == PAGE


def test_write_brings_numbers_figures_and_korean_up_to_date(page: Path) -> None:
    drawn = 'open("figures/a.svg", "w").write("<svg><text>a</text></svg>")\n'
    text = PAGE.replace('print("right = 3")', drawn + 'print("right = 2")')
    page.write_text(text + "\n![A](../figures/a.svg)\n", encoding="utf-8")
    korean = page.parent.parent / "ko" / page.name
    korean.write_text(PAGE.replace("Right are", "![A](../figures/a.svg)"), encoding="utf-8")
    assert run(page, options=("--write",)).returncode == 0
    assert (page.parent.parent / "figures" / "a.svg").exists()
    assert "a.svg) 2<!-- right -->." in korean.read_text(encoding="utf-8")
    assert run(page).returncode == 0
    (page.parent.parent / "figures" / "a.svg").write_text("<svg><text>b</text></svg>")
    assert "figures/a.svg: 'b' was 'a'" in run(page).stdout


def test_a_command_that_fails_says_why(page: Path) -> None:
    code = "```console\n$ isthmus ask nothing.jpg What?\n```\n\n```console try\n$ isthmus x\n```\n"
    page.write_text(f"{code}\n{PAGE}", encoding="utf-8")
    told = run(page)
    assert told.returncode == 1
    assert "exit code 2" in told.stdout
    assert "nothing.jpg" in told.stdout


@pytest.mark.parametrize(
    ("expected", "got", "options", "same"),
    [
        ("62.5% of 40", "62.51% of 40", "", True),
        ("62.5% of 40", "65.0% of 40", "", False),
        ("62.5% of 40", "65.0% of 40", "tolerance=0.1", True),
        ("62.5% of 40", "65.0% of 40 more", "tolerance=0.1", False),
        ("12.1 s", "99 s", "timing", True),
        ("12.1 s", "99 ms", "timing", False),
        ("a = 1\nb = 2", "a = 1", "timing", False),
        ("1 2", "1 2 3", "timing", False),
    ],
)
def test_words_are_equal_and_numbers_near(
    expected: str, got: str, options: str, same: bool
) -> None:
    assert (lecture.difference(expected, got, options) == "") is same


def test_a_site_s_page_has_neither_names_nor_options() -> None:
    shown = lecture.shown(PAGE.replace("```output", "```output tolerance=0.1"))
    assert "Right are 3." in shown
    assert "```text\nright = 3" in shown
    assert "<!--" not in shown
