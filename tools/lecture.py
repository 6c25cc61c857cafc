r"""Runs the pages of the lecture, and writes what came out into them.

    python tools/lecture.py docs/lecture/en/01-*.md          # fails where something else comes out
    python tools/lecture.py docs/lecture/en/01-*.md --write  # writes it down, in both languages
    python tools/lecture.py docs/lecture/en/01-*.md --sync   # no run: brings Korean up to date

A page is Markdown. These of its fences count, each at the beginning of a line:

- ```` ```console ````: commands, each a line `$ isthmus ...`; behind a `\` it goes on in the next.
- ```` ```python ````: a script.
- ```` ```output ````: what the fence before it printed to stdout. Begin with an empty one, and
  `--write` fills it. Where there is none, code is run and what it prints is not shown.

All run in order in one new folder that holds `examples/`, each as a process of its own on one
thread (`OMP_NUM_THREADS`). Code that is marked `try` (```` ```console try ````) is for the reader
and not run. Words of an output must be equal, and numbers within 0.001 of their size:
```` ```output tolerance=0.1 ```` says otherwise, and ```` ```output timing ```` takes any number.

**Named numbers.** A printed line `name = 0.62` (or `62.0%`, `+12.5`) names a number. It stands in
prose as `0.62<!-- name -->`, in both languages; `--write` and `--sync` bring it up to date.

**Figures** are files that code writes into `figures/`; `--write` copies them to
`docs/lecture/figures/`, and a page shows them by `![...](../figures/NAME.svg)`.

**Claims.** A line of the page, in its own language, is a row of the lecture's first page:

    <!-- claim: Examples alone define a task. | {right_8} with eight, {right_0} with none -->

Text in braces is a named number. The site makes the table and the navigation from all pages there
are (`tools/site_hooks.py`). Only English pages are run. A Korean page has the same file name, the
same fences and the same named numbers, which `tests/integration/test_lecture.py` says.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LECTURE = ROOT / "docs" / "lecture"
MOST_BYTES = 60_000
"""Of a figure."""
MOST_SECONDS = 1500
"""Of a command, before it is stopped."""
TOLERANCE = 1e-3
FENCE = re.compile(
    r"^```(console|python|output)\b *([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?%?"
VALUE = re.compile(rf"^([a-z][a-z0-9_]*) = ({NUMBER})$", re.MULTILINE)
NAMED = re.compile(rf"({NUMBER})<!-- ([a-z][a-z0-9_]*) -->")
CLAIM = re.compile(r"^<!-- claim: (.+?) \| (.+?) -->$", re.MULTILINE)
FIGURE = re.compile(r"\]\(\.\./figures/([^)\s]+)\)")
MARK = "<!-- made: lecture -->"
"""What `table` takes the place of in the first page of each language."""
HEADS = {
    "en": ("page", "the lecture says", "measured here"),
    "ko": ("페이지", "강의의 주장", "여기서 잰 값"),
}


class PageError(Exception):
    """A page cannot be run, or is not what it should be."""


@dataclass(frozen=True)
class Fence:
    """A fence that counts.

    Attributes:
        kind: "console", "python" or "output".
        options: What follows the kind.
        body: Its lines.
        line: Where it begins in the page.
    """

    kind: str
    options: str
    body: str
    line: int


@dataclass(frozen=True)
class Step:
    """A fence that is run, and the output that the page shows for it.

    Attributes:
        code: The fence.
        output: The fence behind it; None where what it prints is not shown.
    """

    code: Fence
    output: Fence | None


def fences(text: str) -> list[Fence]:
    r"""All fences that count, in order.

    Example:
        >>> [(f.kind, f.options, f.body) for f in fences("```output timing\n```\n")]
        [('output', 'timing', '')]
    """
    return [
        Fence(m[1], m[2].strip(), m[3], text.count("\n", 0, m.start()) + 1)
        for m in FENCE.finditer(text)
    ]


def steps(text: str) -> list[Step]:
    """What is run, with what it should print.

    Raises:
        PageError: If an output stands behind no code.
    """
    found: list[Step] = []
    before: Fence | None = None
    for fence in fences(text):
        if fence.kind != "output":
            if fence.options != "try":
                found.append(Step(fence, None))
        elif before is None or before.kind == "output" or before.options == "try":
            raise PageError(f"line {fence.line}: an output with no code that is run before it")
        else:
            found[-1] = Step(found[-1].code, fence)
        before = fence
    return found


def values(text: str) -> dict[str, str]:
    r"""The named numbers that a page's outputs print.

    Example:
        >>> values("```output\nright = 62.5%\n```\n")
        {'right': '62.5%'}
    """
    printed = [VALUE.findall(f.body) for f in fences(text) if f.kind == "output"]
    return {name: value for found in printed for name, value in found}


def pages(language: str, folder: Path = LECTURE) -> list[Path]:
    """The pages of a language, in order."""
    return sorted((folder / language).glob("[0-9][0-9]-*.md"))


def title(page: Path) -> str:
    """The first heading of a page."""
    return re.findall(r"^# (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)[0]


def table(language: str, folder: Path = LECTURE) -> str:
    """The lecture, claim by claim, as a table in Markdown. Figures are the pages' own.

    Args:
        language: "en" or "ko".
        folder: Where the languages' folders are.
    """
    lines = [f"| {' | '.join(HEADS[language])} |", "|---|---|---|"]
    for page in pages(language, folder):
        text, link = page.read_text(encoding="utf-8"), f"[{title(page)}]({page.name})"
        known = values(text)
        for claim, measured in CLAIM.findall(text) or [("", "")]:
            figures = measured
            for name, value in known.items():
                figures = figures.replace(f"{{{name}}}", f"**{value}**")
            lines.append(f"| {link} | {claim} | {figures} |")
            link = ""
    return "\n".join(lines)


def shown(text: str) -> str:
    """A page as the site shows it: fences have their language alone, and numbers no names."""
    text = re.sub(r"^```(console|python)\b[^\n]*$", r"```\1", text, flags=re.MULTILINE)
    text = re.sub(r"^```output\b[^\n]*$", "```text", text, flags=re.MULTILINE)
    return NAMED.sub(r"\1", CLAIM.sub("", text))


def problems(page: Path) -> list[str]:
    """What is wrong with an English page and its Korean one, told without a run."""
    english, other = page.read_text(encoding="utf-8"), page.parent.parent / "ko" / page.name
    if not other.exists():
        return [f"there is no {other}"]
    korean, known = other.read_text(encoding="utf-8"), values(english)
    found = []
    if [(f.kind, f.options, f.body) for f in fences(english)] != [
        (f.kind, f.options, f.body) for f in fences(korean)
    ]:
        found.append("code or outputs differ between the languages (--sync makes them equal)")
    names = {name for _, name in NAMED.findall(english)}
    if names != (theirs := {name for _, name in NAMED.findall(korean)}):
        found.append(f"numbers named in one language alone: {sorted(names ^ theirs)}")
    for text in (english, korean):
        for number, name in NAMED.findall(text):
            if known.get(name) != number:
                found.append(f"{number}<!-- {name} -->, but {known.get(name)} was printed")
        claims = CLAIM.findall(text)
        if not claims:
            found.append("a language has no line <!-- claim: ... | ... -->")
        braces = [name for _, told in claims for name in re.findall(r"\{(\w+)\}", told)]
        found += [f"the claim's {{{name}}} was not printed" for name in braces if name not in known]
        for name in FIGURE.findall(text):
            path = page.parent.parent / "figures" / name
            if not path.exists() or path.stat().st_size > MOST_BYTES:
                found.append(f"figures/{name} is missing, or larger than {MOST_BYTES} bytes")
    if set(FIGURE.findall(english)) != set(FIGURE.findall(korean)):
        found.append("figures differ between the languages")
    return found


def difference(expected: str, got: str, options: str = "") -> str:
    """Where a printed text is another than expected; empty where it is not.

    Args:
        expected: What the page shows.
        got: What was printed.
        options: Of the output's fence: "timing" or "tolerance=0.1".

    Example:
        >>> difference("62.5% of 40", "62.51% of 40")
        ''
        >>> difference("62.5% of 40", "65.0% of 40")
        "'62.5% of 40' was '65.0% of 40'"
    """
    setting = re.search(r"tolerance=([\d.]+)", options)
    tolerance = float(setting[1]) if setting else TOLERANCE
    before, after = expected.rstrip().splitlines(), got.rstrip().splitlines()
    for old, new in zip(before, after, strict=False):
        words = [re.sub(rf"\s*{NUMBER}\s*", " # ", t).rstrip() for t in (old, new)]
        found = [re.findall(NUMBER, t) for t in (old, new)]
        numbers = [[float(n.strip("%").replace(",", "")) for n in own] for own in found]
        close = "timing" in options.split() or all(
            abs(a - b) <= tolerance * max(abs(a), abs(b)) + 1e-9
            for a, b in zip(*numbers, strict=False)
        )
        if words[0] != words[1] or not close:
            return f"{old!r} was {new!r}"
    if len(before) != len(after):
        return f"{len(before)} lines were {len(after)}: {(before + after)[-1]!r}"
    return ""


def run(page: Path, folder: Path) -> list[str]:
    """Runs a page in a folder; returns what each step printed to stdout.

    Raises:
        PageError: If a command fails or takes too long; the message has its stderr.
    """
    text = page.read_text(encoding="utf-8")
    shutil.copytree(ROOT / "examples", folder / "examples")
    (folder / "figures").mkdir()
    for name in ("torch", "transformers", "isthmus.cli"):  # once, and not in each process
        __import__(name)
    printed = []
    for number, step in enumerate(steps(text)):
        begun = _cpu_seconds()
        told = [_run_one(step.code, part, folder, number) for part in _parts(step.code)]
        printed.append("".join(told))
        where = f"{page.name}:{step.code.line}"
        print(f"{where}: {_cpu_seconds() - begun:.1f} s of CPU", file=sys.stderr, flush=True)
    return printed


def _cpu_seconds() -> float:
    import resource  # not on Windows, where the site can be built

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _parts(fence: Fence) -> list[str]:
    """The commands of a console, or the one script.

    Raises:
        PageError: If a line of a console is no command of this package.
    """
    if fence.kind == "python":
        return [fence.body]
    lines = fence.body.replace("\\\n", " ").strip().splitlines()
    for line in lines:
        if not line.startswith("$ isthmus "):
            raise PageError(f'line {fence.line}: {line!r}: expected "$ isthmus ..."')
    return [line.removeprefix("$ isthmus ") for line in lines]


def _run_one(fence: Fence, part: str, folder: Path, number: int) -> str:
    """Runs a command or a script as a process; returns its stdout."""
    with tempfile.TemporaryDirectory() as aside:
        out, err, script = (Path(aside) / name for name in ("out", "err", f"block_{number}.py"))
        script.write_text(part, encoding="utf-8")
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        process = context.Process(target=_child, args=(fence.kind, part, script, folder, out, err))
        process.start()
        process.join(MOST_SECONDS)
        if process.is_alive():
            process.kill()
            raise PageError(f"line {fence.line}: stopped after {MOST_SECONDS} s")
        if process.exitcode:
            told = err.read_text(encoding="utf-8").strip()
            raise PageError(f"line {fence.line}: exit code {process.exitcode}\n{told}")
        return out.read_text(encoding="utf-8")


def _child(kind: str, part: str, script: Path, folder: Path, out: Path, err: Path) -> None:
    """In a process of its own: the working folder, the streams, then the code."""
    os.chdir(folder)
    for number, path in ((1, out), (2, err)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, number)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")
    sys.path.insert(0, str(folder))
    if kind == "python":
        sys.argv = [str(script)]
        runpy.run_path(str(script), run_name="__main__")
        return
    from isthmus.cli import main

    sys.argv = ["isthmus", *shlex.split(part)]
    main()


def filled(text: str, printed: Sequence[str]) -> str:
    """A page with what its steps printed."""
    told = iter([new for step, new in zip(steps(text), printed, strict=True) if step.output])
    return FENCE.sub(
        lambda m: (
            f"{f'```output {m[2]}'.rstrip()}\n{next(told).rstrip()}\n```"
            if m[1] == "output"
            else m[0]
        ),
        text,
    )


def numbered(text: str, known: dict[str, str]) -> str:
    """A page with its named numbers up to date."""
    return NAMED.sub(lambda m: f"{known.get(m[2], m[1])}<!-- {m[2]} -->", text)


def synced(page: Path) -> None:
    """Gives the Korean page the fences and the named numbers of the English one.

    Raises:
        PageError: If they have other numbers of fences.
    """
    english, other = page.read_text(encoding="utf-8"), page.parent.parent / "ko" / page.name
    known = values(english)
    page.write_text(numbered(english, known), encoding="utf-8")
    if not other.exists():
        return
    korean, ours = other.read_text(encoding="utf-8"), FENCE.finditer(english)
    if len(fences(korean)) != len(fences(english)):
        raise PageError(
            f"{len(fences(korean))} fences in {other}, {len(fences(english))} in {page}"
        )
    other.write_text(numbered(FENCE.sub(lambda _: next(ours)[0], korean), known), encoding="utf-8")


def check(page: Path, *, write: bool = False) -> list[str]:
    """Runs a page and says what came out otherwise, or writes it into the page.

    Raises:
        PageError: If it cannot be run.
    """
    text, found = page.read_text(encoding="utf-8"), []
    with tempfile.TemporaryDirectory() as name:
        printed, made = run(page, Path(name)), sorted((Path(name) / "figures").iterdir())
        kept = page.parent.parent / "figures"
        if write:
            kept.mkdir(exist_ok=True)
            for figure in made:
                shutil.copy(figure, kept)
            page.write_text(filled(text, printed), encoding="utf-8")
            synced(page)
        missing = set(FIGURE.findall(text)) - {figure.name for figure in made}
        found += [f"no fence writes figures/{figure}" for figure in sorted(missing)]
        for figure in made if not write else ():
            if figure.suffix == ".svg" and (kept / figure.name).exists():
                shown, drawn = (
                    _words(f.read_text(encoding="utf-8")) for f in (kept / figure.name, figure)
                )
                if shown != drawn:
                    found.append(f"figures/{figure.name}: '{shown}' was '{drawn}'")
    for step, got in zip(steps(text), printed, strict=True):
        if step.output is not None and not write:
            changed = difference(step.output.body, got, step.output.options)
            found += [f"line {step.output.line}: {changed}"] if changed else []
    return found + problems(page)


def _words(figure: str) -> str:
    """The words of an SVG: its numbers, and how many an axis has, are those of the machine."""
    texts = re.findall(r">([^<>]+)</text", figure)
    return " ".join(
        re.sub(r"[\d.,%]+", "", text).strip() for text in texts if re.search(r"[^\W\d]", text)
    )


def main() -> int:
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser(description="Run pages of the lecture.")
    parser.add_argument("pages", nargs="+", type=Path, help="English pages")
    parser.add_argument("--write", action="store_true", help="write what came out into the pages")
    parser.add_argument("--sync", action="store_true", help="run nothing; bring Korean up to date")
    given = parser.parse_args()
    failed = False
    for page in (path.resolve() for path in given.pages):
        try:
            if given.sync:
                synced(page)
            found = problems(page) if given.sync else check(page, write=given.write)
        except PageError as error:
            found = [str(error)]
        for told in found:
            print(f"{page.name}: {told}")
        failed = failed or bool(found)
    return int(failed)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "NO_COLOR": "1"}
    os.environ |= {"COLUMNS": "100", "TERM": "dumb"}
    sys.exit(main())
