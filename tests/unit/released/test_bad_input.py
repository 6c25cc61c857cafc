"""What is no model, or is damaged, is one line at the command line, whatever its family."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

import isthmus as im
from isthmus.cli import main
from isthmus.config.registry import RELEASED
from isthmus.errors import IsthmusError
from isthmus.model.backbones import tiny_qwen_vl as qwen_vl
from isthmus.model.backbones import tiny_tiles as tiles
from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_model, tiny_text_model
from isthmus.model.backbones.tiny_blip2 import write_tiny_blip2
from isthmus.model.backbones.tiny_gemma import write_tiny_gemma3, write_tiny_paligemma
from isthmus.model.backbones.tiny_janus import write_tiny_janus
from isthmus.model.backbones.tiny_llava import write_tiny_llava
from isthmus.model.backbones.tiny_nanovlm import write_tiny_nanovlm
from isthmus.model.backbones.tiny_qwen_vl import write_tiny_qwen_vl
from isthmus.model.backbones.tiny_tiles import write_tiny_tiles
from isthmus.model.backbones.tiny_whole import write_tiny_whole

QUESTION = "What is it?"
FAMILIES: dict[str, Callable[[Path], object]] = {
    "llava": write_tiny_llava,
    "gemma3": write_tiny_gemma3,
    "paligemma": write_tiny_paligemma,
    "blip-2": write_tiny_blip2,
    "janus": write_tiny_janus,
    **{family: partial(write_tiny_qwen_vl, family=family) for family in qwen_vl.FAMILIES},
    **{family: partial(write_tiny_tiles, family=family) for family in tiles.FAMILIES},
}
"""What writes a tiny repository, for each family that is taken apart."""
OWN_FORMS: dict[str, Callable[[Path], object]] = {"nanovlm": write_tiny_nanovlm}
"""Of families whose repositories are in a form that Transformers does not know."""
WRITERS = FAMILIES | {
    "in whole": write_tiny_whole,
    "in whole, apart": lambda folder: write_tiny_whole(folder, "florence2"),
}


def test_every_family_is_tried() -> None:
    assert set(RELEASED.names()) == {*FAMILIES, *OWN_FORMS}, (
        "a new family needs a tiny repository here"
    )


@pytest.fixture(scope="module", params=list(WRITERS))
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    WRITERS[request.param](folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.linear_gradient("L").convert("RGB").save(path)
    return path


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], image: Path
) -> Callable[[object], str]:
    """The one line in which the command line refuses a model; in Python it is our error."""

    def call(model: object) -> str:
        with pytest.raises(IsthmusError) as raised:
            im.load(model)
        capfd.readouterr()  # what libraries said before
        line = ""
        for arguments in (("ask", image, QUESTION, "--model", model), ("info", model)):
            monkeypatch.setattr("sys.argv", ["isthmus", *map(str, arguments)])
            with pytest.raises(SystemExit) as ended:
                main()
            out, err = capfd.readouterr()
            assert ended.value.code == 2
            assert out == ""
            found = [each for each in err.splitlines() if each.startswith("error: ")]
            assert len(found) == 1
            assert "Traceback" not in err
            [line] = found
        assert len(line) < 700
        assert " ".join(str(raised.value).split())[:40] in line
        return line

    return call


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class Code:
    """Runs when it is unpickled."""

    ran: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.ran,)


def code_beside_tensors(folder: Path) -> None:
    state = dict(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    torch.save({**state, "more": Code()}, folder / "pytorch_model.bin")


def code_alone(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump(Code(), file)


def shards(folder: Path) -> list[Path]:
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    im.load(folder)
    return sorted(folder.glob("model-*.safetensors"))


def cut_shard(folder: Path) -> None:
    path = shards(folder)[-1]
    path.write_bytes(path.read_bytes()[:-1000])


def lost_shard(folder: Path) -> None:
    shards(folder)[-1].unlink()


def lost_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    del state[max(name for name in state if name.endswith("weight") and state[name].ndim == 2)]
    save_file(state, path, metadata={"format": "pt"})


def lost(pattern: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.unlink()

    return damage


def written(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(text) and None


def edited(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, **changes)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (code_beside_tensors, "may run code and is not read"),
        (code_alone, "may run code and is not read"),
        (cut_shard, "damaged or cut short"),
        (lost_shard, "cannot load"),
        (lost_tensor, "lacks"),
        (lost("*.safetensors"), "cannot load"),
        (lost("*processor_config.json"), "cannot load"),
        (lost("tokenizer*"), ""),
        (lost("config.json"), "no config.json"),
        (written("{"), "missing or damaged"),
        (written("[]"), "missing or damaged"),
        (written("{}"), "no model_type"),
        (edited(model_type="vlm_9000"), 'model_type "vlm_9000", which Transformers'),
        (edited(vision_config=7), "vision_config"),
    ],
    ids=[
        "code beside tensors",
        "code alone",
        "a shard cut short",
        "a shard gone",
        "a tensor gone",
        "no weights",
        "no processor",
        "no tokenizer",
        "no configuration",
        "a configuration cut short",
        "a configuration of another form",
        "an empty configuration",
        "another revision's model",
        "another revision's value",
    ],
)
def test_damage_is_one_line(
    refused: Callable[[object], str],
    folder: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    words: str,
) -> None:
    Code.ran = tmp_path / "ran"
    damage(folder)
    line = refused(folder)
    assert words in line
    assert str(folder) in line
    assert not Code.ran.exists()


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Any:
    """What changes one tensor of a file, adds it or drops it."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        state = load_file(path)
        found = change(state.pop(name, torch.zeros(2)))
        save_file(state if found is None else {**state, name: found.contiguous()}, path)

    return damage


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


HEAD = "decoder.head.weight"
NANOVLM: list[tuple[str, Callable[[Path], None], str]] = [
    ("code beside tensors", code_beside_tensors, "model.safetensors"),
    ("code alone", code_alone, "model.safetensors"),
    ("a file cut short", cut, "damaged or cut short"),
    ("no weights", lost("*.safetensors"), "model.safetensors"),
    ("no tokenizer", lost("tokenizer*"), "SmolLM2-360M-Instruct, the tokenizer of"),
    ("no configuration", lost("config.json"), "no config.json"),
    ("a configuration cut short", written("{"), "missing or damaged"),
    ("an empty configuration", written("{}"), "no model_type"),
    ("no table", tensor(HEAD, lambda t: None), "decoder.token_embedding.weight is missing"),
    ("a row too few", tensor(HEAD, lambda t: t[:-1]), "is (326, 32), expected (327, 32)"),
    ("a tensor too many", tensor("decoder.bias", lambda t: t), "decoder.bias is unexpected"),
    (
        "no keys",
        tensor("vision_encoder.blocks.1.attn.qkv_proj.weight", lambda t: t[:64]),
        "vision_encoder.blocks.1.attn.qkv_proj.weight is (64, 32), expected (96, 32)",
    ),
    ("a size of words", edited(lm_n_blocks="two"), "'two' as lm_n_blocks: expected a whole number"),
    ("a size below 0", edited(vit_patch_size=-8), "-8 as vit_patch_size"),
    ("a number that is none", edited(lm_rms_eps=None), "None as lm_rms_eps: expected a number"),
    ("no tokenizer's name", edited(lm_tokenizer=None), "lm_tokenizer = None"),
    ("tokens in a list", edited(vlm_extra_tokens=["a"]), "expected tokens by name"),
    ("fewer rows than tokens", edited(lm_vocab_size=300), "327 with those of nanoVLM"),
    ("heads that do not divide", edited(lm_n_heads=5), "heads (5)"),
    ("a class token", edited(vit_cls_flag=True), "vit_cls_flag = True: expected False"),
    ("another model type", edited(model_type="vlm_9000"), 'model_type "vlm_9000", which'),
]


@pytest.mark.parametrize(("damage", "words"), [n[1:] for n in NANOVLM], ids=[n[0] for n in NANOVLM])
def test_damage_to_a_nanovlm_is_one_line(
    refused: Callable[[object], str], tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    Code.ran = tmp_path / "ran"
    folder = write_tiny_nanovlm(tmp_path / "model")
    damage(folder)
    line = refused(folder)
    assert words in line
    assert str(folder) in line
    assert not Code.ran.exists()


def test_unknown_keys_of_another_revision_are_no_matter(folder: Path) -> None:
    edit(folder, an_option_of_the_future=3)
    assert im.load(folder)
    nano = write_tiny_nanovlm(folder / "nano")
    edit(nano, an_option_of_the_future=3)
    assert im.load(nano)


def test_other_models_are_told_from_those_that_answer(
    refused: Callable[[object], str], tmp_path: Path
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    tower = transformers.ViTConfig(**sizes, num_attention_heads=2, image_size=32, patch_size=8)
    transformers.ViTModel(tower).save_pretrained(tmp_path / "vit")
    for name in (tmp_path / "vit", f"hf:{tmp_path / 'vit'}"):
        assert 'is a ViTModel ("vit"), neither' in refused(name)
    with pytest.raises(IsthmusError, match="neither"):
        im.load_language(f"hf:{tmp_path / 'vit'}")
    tiny_language_model("llama").save_pretrained(tmp_path / "lm")
    byte_tokenizer().save_pretrained(tmp_path / "lm")
    assert "name a language model alone" in refused(tmp_path / "lm")
    with pytest.raises(IsthmusError, match="cannot load"):
        im.load_vision(f"hf:{tmp_path / 'lm'}")
    tiny_text_model().save_pretrained(tmp_path / "bert")
    byte_tokenizer().save_pretrained(tmp_path / "bert")
    assert "lacks" in refused(f"hf:{tmp_path / 'bert'}")  # a head, which would be random
    assert "no model" in refused(tmp_path / "nowhere")


def test_a_whole_model_stands_for_no_encoder(whole: Path) -> None:
    name = f"hf:{whole}"
    known = json.loads((whole / "config.json").read_text())["model_type"] in RELEASED.names()
    if known:
        assert im.load_vision(name).config.name == name
    else:
        with pytest.raises(IsthmusError, match="not taken apart"):
            im.load_vision(name)
