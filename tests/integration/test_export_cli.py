"""`isthmus export`: what it prints, and bad input as one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import isthmus as im
from isthmus.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as `isthmus train` leaves it, its tower in a folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    config = transformers.SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    transformers.SiglipVisionModel(config).save_pretrained(folder / "tower")
    size = {"height": 32, "width": 32}
    transformers.SiglipImageProcessor(size=size).save_pretrained(folder / "tower")
    vision = im.VisionConfig(name=f"hf:{folder / 'tower'}")
    return im.save(im.compose(vision, "tiny-lm", im.MLP(), device="cpu"), folder / "saved")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["isthmus", "export", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def test_it_says_what_was_written_and_checked(run: Any, model: Path, tmp_path: Path) -> None:
    code, out, _ = run(model, "--to", "transformers", "--out", tmp_path / "out")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith(f"written: {tmp_path / 'out'} (LlavaForConditionalGeneration, ")
    assert lines[1].startswith("checked: logits of three prompts differ by ")
    assert lines[2].startswith("note: the vision encoder's last layer is read")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_json(run: Any, model: Path, tmp_path: Path) -> None:
    code, out, _ = run(model, "--out", tmp_path / "out", "--json", "--dtype", "bfloat16")
    told = json.loads(out)
    assert code == 0
    assert told["folder"] == str(tmp_path / "out")
    assert told["difference"] <= 1e-4
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


def test_gguf(run: Any, model: Path, tmp_path: Path) -> None:
    code, out, _ = run(model, "--to", "gguf", "--dtype", "q8_0", "--out", tmp_path / "out")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith(f"written: {tmp_path / 'out'} (llama.cpp, ")
    assert lines[1].endswith(" at most, in weights rounded to q8_0")
    assert lines[2].startswith("note: llama.cpp fits a whole image into the square")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model-Q8_0.gguf", "mmproj-Q8_0.gguf", "README.md"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "--out", "NEW", "--to", "gguf", "--dtype", "bfloat16"], "unknown size of GGUF"),
        (["tiny", "--out", "NEW", "--to", "gguf"], '"tiny" cannot be exported: its fusion adds'),
        (["MODEL", "--out", "THERE"], "holds something already"),
        (["MODEL", "--out", "NEW", "--to", "transfomers"], 'did you mean "transformers"?'),
        (["nothing", "--out", "NEW"], 'no model "nothing"'),
        (["tiny", "--out", "NEW"], '"tiny" cannot be exported: its fusion adds adapters'),
        (["MODEL", "--out", "NEW", "--dtype", "int3"], "int3"),
        (["MODEL", "--out", "caf\udce9"], '--out "caf\\udce9" is not valid UTF-8'),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, run: Any, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("mine")
    places = {"MODEL": model, "THERE": tmp_path / "there", "NEW": tmp_path / "new"}
    code, out, err = run(*[places.get(a, a) for a in arguments])
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert message in err
    assert [p.name for p in tmp_path.rglob("*")] == ["there", "mine"]
