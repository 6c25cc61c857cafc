"""docs/faq.md: the messages that it quotes are those that are printed."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from isthmus import cli
from isthmus.errors import MissingExtraError

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```console\n(.*?)^```$", PAGE, re.M | re.S)
EXAMPLES = [
    e for block in BLOCKS for e in re.findall(r"^\$ isthmus (.*)\n(error: .*)$", block, re.M)
]
MODEL = '[vision]\nname = "tiny-vit"\n[language]\nname = "tiny-lm"\n[connector]\n'


QUOTED = re.findall(r"^`(.* .*)`\n:   ", PAGE, re.M)
"""Messages that no command brings about everywhere; `...` and numbers stand for values."""
EXTRA = str(MissingExtraError("an open_clip vision encoder", "clip"))
SOURCES = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "src").rglob("*.py"))
PLAIN = re.sub(
    r"\{[^{}]*\}", "\N{HORIZONTAL ELLIPSIS}", re.sub(r'["\']\s*\n\s*f?["\']', "", SOURCES)
)


@pytest.mark.parametrize("message", [m for m in QUOTED if m != EXTRA])
def test_quoted_messages_are_in_the_sources(message: str) -> None:
    """Piece by piece, between what stands for values."""
    pieces = [p.strip() for p in re.split(r"\.\.\.|\b\d+\b|\bvision\b|[:;\"]", message)]
    system = {"OSError", "No space left on device"}  # the system's own words
    long = [p for p in pieces if len(p.split()) > 1 and p not in system]
    assert long
    assert [p for p in long if p not in PLAIN] == []


def test_the_page_has_examples() -> None:
    assert EXTRA in QUOTED
    assert len(EXAMPLES) >= 8
    assert sum(block.count("$ ") for block in BLOCKS) == len(EXAMPLES)


@pytest.mark.parametrize(("command", "message"), EXAMPLES, ids=[c for c, _ in EXAMPLES])
def test_the_messages_are_real(
    command: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(ROOT / "examples" / "coffee.jpg", tmp_path)
    (tmp_path / "notes.jpg").write_text("no image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "resampel.toml").write_text(f'{MODEL}type = "resampel"\n')
    (tmp_path / "latent.toml").write_text(f'{MODEL}type = "resampler"\nlatent = 64\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["isthmus", *shlex.split(command)])
    assert cli._run() == 2
    assert capsys.readouterr().err.strip().splitlines()[-1] == message
