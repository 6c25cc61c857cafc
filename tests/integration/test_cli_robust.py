"""What other systems hand to a command line: bytes, encodings, broken files, ends in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus.cli import main, output

SRC = Path(im.__file__).parent.parent
COMMAND = [sys.executable, "-m", "isthmus.cli"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    made = im.compose("tiny-vit", "tiny-lm", im.Linear(), device="cpu")
    return im.save(made, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    made = im.DualEncoder.join("tiny-vit", "tiny-text", width=12)
    return im.save(made, tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image, what macOS leaves beside it, and one that is cut short."""
    inside = tmp_path / "images"
    inside.mkdir()
    Image.linear_gradient("L").convert("RGB").save(inside / "a.jpg")
    (inside / "._a.jpg").write_bytes(b"\0\5\26\7 no image")
    return inside


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    monkeypatch.setenv("ISTHMUS_HOME", str(tmp_path / "home"))

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["isthmus", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def shell(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs the command line as a shell does, with bytes as arguments where they are bytes."""
    given = [a if isinstance(a, bytes) else str(a) for a in arguments]
    return subprocess.run(
        [*COMMAND, *given],
        env={**os.environ, "PYTHONPATH": str(SRC), **environment},
        capture_output=True,
        check=False,
    )


# --- Text that is not valid UTF-8 -----------------------------------------------------------------


def test_a_question_in_another_encoding_is_one_line(model: Path, folder: Path) -> None:
    ended = shell("ask", folder / "a.jpg", b"caf\xe9?", "--model", model)
    assert (ended.returncode, ended.stdout) == (2, b"")
    told = ended.stderr.decode()
    assert told == (
        'error: the question "caf\\udce9?" is not valid UTF-8 at character 4: '
        "expected text in UTF-8\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("classify", "PICTURE", "--labels", "caf\udce9,cat"),
        ("search", "FOLDER", "caf\udce9"),
        ("rationales", "--data", "q.jsonl", "--out", "o.toml", "--trigger", "caf\udce9"),
        ("ask", "PICTURE", "What?", "--kind", "label", "--choices", "caf\udce9,cat"),
    ],
    ids=lambda a: a[0],
)
def test_its_siblings(run: Any, folder: Path, arguments: tuple[str, ...]) -> None:
    places = {"PICTURE": str(folder / "a.jpg"), "FOLDER": str(folder)}
    code, out, err = run(*(places.get(a, a) for a in arguments))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "not valid UTF-8" in err


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux alone")
def test_a_file_s_name_that_is_no_utf_8(run: Any, encoder: Path, folder: Path) -> None:
    name = os.fsencode(folder) + b"/caf\xe9.jpg"
    os.rename(os.fsencode(folder / "a.jpg"), name)
    told = ("--model", encoder, "--json")
    for arguments in (("classify", folder, "--labels", "cat,dog"), ("search", folder, "a cat")):
        code, out, _ = run(*arguments, *told)
        assert code == 0
        assert "\\udce9" in out
        assert os.fsencode(json.loads(out)["image"]) == name
        code, out, _ = run(*arguments, "--model", encoder)
        assert code == 0
        assert "caf\\udce9" in out.replace("\n", "")


# --- What stdout can say ------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_a_korean_question_whatever_stdout_can_say(
    model: Path, folder: Path, encoding: str
) -> None:
    arguments = ("ask", folder / "a.jpg", "무엇이 보이나요? \U0001f600é", "--model", model)
    ended = shell(*arguments, "--max-new-tokens", 2, "--json", PYTHONIOENCODING=encoding)
    assert ended.returncode == 0, ended.stderr
    assert "무엇이 보이나요? \U0001f600é" in json.loads(ended.stdout.decode(encoding))["prompt"]


def test_json_stays_json_in_any_encoding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    value = {"a": "é 한 \U0001f600 \udce9"}
    for encoding in ("ascii", "cp1252", "utf-8"):
        with (tmp_path / encoding).open("w", encoding=encoding, errors="backslashreplace") as file:
            monkeypatch.setattr("sys.stdout", file)
            output.print_json(value)
            monkeypatch.undo()
        assert json.loads((tmp_path / encoding).read_text(encoding=encoding)) == value


# --- One bad file -------------------------------------------------------------------------------


def test_classify_passes_over_what_macos_leaves(run: Any, encoder: Path, folder: Path) -> None:
    code, out, err = run("classify", folder, "--labels", "cat,dog", "--model", encoder, "--json")
    assert (code, err) == (0, "")
    assert [json.loads(line)["image"] for line in out.splitlines()] == [str(folder / "a.jpg")]


def test_one_bad_file_costs_no_other_result(run: Any, encoder: Path, folder: Path) -> None:
    (folder / "b.jpg").write_bytes((folder / "a.jpg").read_bytes()[:300])
    Image.new("RGB", (9, 9)).save(folder / "c.png")
    told = ("--labels", "cat,dog", "--model", encoder)
    code, out, err = run("classify", folder, folder / "nowhere.png", *told, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [Path(row["image"]).name for row in rows] == ["a.jpg", "b.jpg", "c.png", "nowhere.png"]
    assert [("error" in row, "label" in row) for row in rows] == [
        (False, True),
        (True, False),
        (False, True),
        (True, False),
    ]
    assert err.count("\n") == 2
    assert "b.jpg" in err
    assert "nowhere.png" in err
    code, out, err = run("classify", folder, *told, "--sheet", folder / "sheet.png")
    assert code == 1
    assert "a.jpg" in out.replace("\n", "")
    assert "b.jpg" not in out
    assert (folder / "sheet.png").is_file()
    code, out, err = run("classify", folder / "b.jpg", folder / "b.jpg", *told)
    assert (code, out, err.count("\n")) == (2, "", 2)


def test_results_do_not_depend_on_a_bad_neighbour(encoder: Path, folder: Path) -> None:
    images = [folder / "a.jpg", folder / "nowhere.png", Image.new("RGB", (9, 9))]
    found = list(im.classify_images(images, ["cat", "dog"], model=encoder, batch_size=2))
    made = im.ZeroShotClassifier(encoder, ["cat", "dog"])
    expected = made.top([images[0], images[2]], 5)
    assert [f.error != "" for f in found] == [False, True, False]
    for got, wanted in zip((found[0], found[2]), expected, strict=True):
        assert [name for name, _ in got.top] == [name for name, _ in wanted]
        assert [p for _, p in got.top] == pytest.approx([p for _, p in wanted], abs=1e-4)


def test_features_says_which_images_are_broken(run: Any, folder: Path) -> None:
    (folder / "b.jpg").write_bytes(b"no image")
    lines = [json.dumps({"image": n, "text": "a cat"}) for n in ("a.jpg", "b.jpg")]
    (folder / "data.jsonl").write_text("\n".join(lines))
    arguments = ("features", folder / "data.jsonl", "--vision", "tiny-vit", "--out", folder / "f")
    code, out, err = run(*arguments, "--json")
    assert code == 1
    assert json.loads(out)["computed"] == 1
    assert "b.jpg" in err


# --- Byte order marks ---------------------------------------------------------------------------


def test_a_byte_order_mark(run: Any, encoder: Path, folder: Path) -> None:
    (folder / "labels.txt").write_text("cat\ndog\n", encoding="utf-8-sig")
    (folder / "templates.txt").write_text("a photo of a {}.\n", encoding="utf-8-sig")
    told = ("--model", encoder, "--json", "--templates", folder / "templates.txt")
    code, out, _ = run("classify", folder / "a.jpg", "--labels-file", folder / "labels.txt", *told)
    assert code == 0
    assert {t["label"] for t in json.loads(out)["top"]} == {"cat", "dog"}
    config = '[vision]\nname = "tiny-vit"\n[language]\nname = "tiny-lm"\n'
    config += '[connector]\ntype = "linear"\n[[data]]\npath = "data.jsonl"\n'
    (folder / "data.jsonl").write_text('{"image": "a.jpg", "text": "a cat"}\n')
    (folder / "run.toml").write_text(config, encoding="utf-8-sig")
    code, _, err = run("train", folder / "run.toml", "--dry-run", "--json")
    assert (code, err) == (0, "")


# --- Devices ------------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_one_line(
    run: Any, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from isthmus import machine

    alone = replace(machine.probe(), devices=("cpu",))
    monkeypatch.setattr(machine, "probe", lambda: alone)
    for arguments in (
        ("ask", folder / "a.jpg", "What?", "--model", model),
        ("classify", folder / "a.jpg", "--labels", "cat"),
        ("search", folder, "a cat"),
        ("eval", model, "--tasks", "parity"),
        ("info", model),
        ("serve", model, "--port", 0),
        ("chat", model, "--terminal"),
        ("features", folder, "--vision", "tiny-vit", "--out", folder / "f"),
        ("rationales", "--data", folder, "--out", folder / "o.toml"),
    ):
        code, out, err = run(*arguments, "--device", "cuda")
        assert (code, out, err.count("\n")) == (2, "", 1), arguments
        assert "no cuda device on this machine: expected auto or cpu" in err
        assert 'did you mean "cuda"' in run(*arguments, "--device", "cuba")[2]


def test_info_says_what_the_machine_can_do(run: Any, model: Path) -> None:
    code, out, _ = run("info", model, "--json", "--device", "cpu")
    assert code == 0
    assert json.loads(out)["machine"]["devices"][-1] == "cpu"
    assert "auto: device" in run("info", model)[1]


# --- Ends in the middle -------------------------------------------------------------------------


def test_a_reader_that_leaves() -> None:
    with subprocess.Popen(
        [*COMMAND, "list"],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()  # long before anything is written
        assert process.stderr is not None
        told = process.stderr.read().decode()
    assert (process.returncode, told) == (1, "")


WAITING = """
import signal, sys, time
from isthmus.cli import app, main

@app.command()
def wait():
    try:
        print("ready", flush=True)
        time.sleep(600)
    finally:
        print("closed", flush=True)

# a background job of a shell begins with Ctrl-C ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["isthmus", "wait"]
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are not those of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_before_a_verb_has_handlers_of_its_own(number: signal.Signals, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (code, "closed\n", "stopped\n")
