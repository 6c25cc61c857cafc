"""Released models by name or folder: what is refused, in one line, and the command line."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlavaForConditionalGeneration

import isthmus as im
from isthmus.config.file import read_run
from isthmus.config.registry import RELEASED
from isthmus.errors import CheckpointError, ConfigError
from isthmus.model.backbones.causal import causal_model
from isthmus.model.backbones.released import family_of, plan_of
from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_model
from isthmus.model.backbones.tiny_llava import write_tiny_llava
from isthmus.model.backbones.tiny_qwen_vl import write_tiny_qwen_vl
from isthmus.model.backbones.tiny_whole import write_tiny_whole
from isthmus.model.checkpoint import load_vlm
from isthmus.training.run import build

QUESTION = "What is it?"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llava(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "llava"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.linear_gradient("L").convert("RGB").save(path)
    return path


def edit(folder: Path, **changes: Any) -> None:
    """Changes entries of `config.json`; one of `text_config` or `vision_config` by a dot."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    for name, value in changes.items():
        *tables, key = name.split("__")
        table = values
        for inner in tables:
            table = table[inner]
        table[key] = value
    path.write_text(json.dumps(values))


# --- found ----------------------------------------------------------------------------------------


def test_it_is_found_by_name_and_by_folder(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(whole.parent)
    for source in (f"hf:{whole}", str(whole), whole, whole.name):
        model = im.load(source)
        assert model.config.language.name == f"hf:{whole}"
        assert not model.text_only
    assert "llava" in RELEASED.names()
    assert plan_of("tiny-lm") is None
    assert plan_of("timm:vit") is None
    assert family_of(str(whole.parent)) is None


def test_templates_kept_apart_from_the_tokenizer_are_read(folder: Path) -> None:
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert im.load(folder).config.template == "chat"
    assert im.load_language(f"hf:{folder}").tokenizer.chat_template == template
    (folder / "chat_template.json").unlink()
    assert im.load(folder).config.template == "plain"


LAYOUTS = {
    "llava-hf": {"vision_tower.": "vision_tower.vision_model."},
    "in memory": {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    },
}
"""Names that files have for weights, by those that Transformers writes today."""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_repository_as_on_the_hub_is_the_same_model(
    folder: Path, whole: Path, layout: str
) -> None:
    """Names of weights of several years, and a file for each part of the processor."""
    path, names = folder / "model.safetensors", LAYOUTS[layout]
    state = {}
    for name, tensor in load_file(path).items():
        prefix = next((p for p in names if name.startswith(p)), "")
        state[names.get(prefix, "") + name.removeprefix(prefix)] = tensor
    assert state.keys() != load_file(path).keys()
    save_file(state, path, metadata={"format": "pt"})
    told = json.loads((folder / "processor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(told.pop("image_processor")))
    (folder / "processor_config.json").write_text(json.dumps(told))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    one, other = im.load(whole), im.load(folder)
    assert other.config.template == "chat"
    batch = one.prepare(["a <image>b"], [[Image.linear_gradient("L")]])
    again = other.prepare(["a <image>b"], [[Image.linear_gradient("L")]])
    with torch.no_grad():
        assert torch.equal(one(batch).logits, other(again).logits)


def test_random_weights_can_be_asked_for(whole: Path) -> None:
    encoder = im.load_vision(f"hf:{whole}", pretrained=False)
    assert encoder.shape == im.load_vision(f"hf:{whole}").shape


# --- the command line -----------------------------------------------------------------------------


def test_the_command_line_asks_it(run: Any, whole: Path, image: Path) -> None:
    expected = im.ask(im.load(whole), image, QUESTION, max_new_tokens=4).text
    for source in (whole, f"hf:{whole}"):
        arguments = ("ask", image, QUESTION, "--model", source, "--max-new-tokens", 4)
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        assert out == f"{expected}\n"


def test_the_command_line_tells_of_it(run: Any, whole: Path) -> None:
    code, out, _ = run("info", whole)
    assert code == 0
    assert "of the language model's vocabulary" in out


# --- the page -------------------------------------------------------------------------------------


def test_the_page_is_true(
    whole: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "released.md").read_text(encoding="utf-8")
    name = "hf:llava-hf/llava-1.5-7b-hf"
    assert name in page
    shutil.copy(image, tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    places = {
        name: f"hf:{whole}",
        "hf:Qwen/Qwen2.5-VL-3B-Instruct": f"hf:{write_tiny_qwen_vl(tmp_path / 'qwen')}",
        "hf:Qwen/Qwen3-0.6B": "tiny-lm",
    }
    names: dict[str, Any] = {}
    other = write_tiny_whole(tmp_path / "git")
    for block in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S):
        places["hf:meta-llama/Llama-3.2-11B-Vision-Instruct"] = f"hf:{other}"
        for told, place in places.items():
            block = block.replace(told, place)
        exec(block, names)
    assert names["encoder"].config.feature_layer == -2
    assert isinstance(names["model"], im.VisionLanguageModel)
    table, media = re.findall(r"^```toml\n(.*?)^```$", page, re.M | re.S)
    [bounds] = tomllib.loads(media)["media"]
    assert bounds.pop("type") == "native"
    assert im.NativeImages(**bounds).max_pixels == 512 * 512
    table = table.replace(name, f"hf:{whole}").replace("image_id = 32000", "image_id = 259")
    (tmp_path / "run.toml").write_text(f'{table}\n[train]\ninit = "llava-strip"\n')
    config = read_run(tmp_path / "run.toml")
    built = build(config, "cpu").eval()
    assert isinstance(built, im.VisionLanguageModel)
    batch = built.prepare(["<image>a"], [[torch.zeros(3, 32, 32)]])
    with torch.no_grad():  # the adapters are new, and do nothing yet
        assert torch.equal(built(batch).logits, im.load(whole)(batch).logits)


# --- refused --------------------------------------------------------------------------------------


def assert_one_line(result: tuple[int, str, str], *parts: str) -> None:
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_feature_layer": [-2, -1]}, "layers [-2, -1]"),
        ({"projector_hidden_act": "gelu_pytorch_tanh"}, 'activation "gelu_pytorch_tanh"'),
        ({"vision_config": {"model_type": "pixtral"}}, 'vision tower "pixtral"'),
        ({"text_config": {"model_type": "gemma2"}}, "final_logit_softcapping = 30"),
        ({"architectures": ["LlavaLlamaForCausalLM"]}, "is a LlavaLlamaForCausalLM"),
        ({"model_type": "llava_llama"}, "llava_llama"),
        ({"image_token_index": 97}, '"a", which any text may have'),
    ],
    ids=str,
)
def test_what_our_parts_lack_is_named(
    run: Any, folder: Path, image: Path, changes: dict[str, Any], message: str
) -> None:
    edit(folder, **changes)
    with pytest.raises((ConfigError, CheckpointError)):
        im.load(folder)
    assert_one_line(run("ask", image, QUESTION, "--model", folder), message)


def test_an_unknown_family_hears_which_are_known(folder: Path) -> None:
    edit(folder, model_type="aria", architectures=["AriaForConditionalGeneration"])
    with pytest.raises(ConfigError, match=r'"aria".*taken apart are:.*llava'):
        load_vlm(f"hf:{folder}")
    edit(folder, model_type="aria", architectures=None)
    with pytest.raises(ConfigError, match="AriaForConditionalGeneration"):
        load_vlm(folder)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def shard(folder: Path) -> None:
    """Several files of weights, one of which is cut short."""
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    assert im.load(folder).layout.places == 16
    path = sorted(folder.glob("model-*.safetensors"))[-1]
    path.write_bytes(path.read_bytes()[:-1000])


def lose(folder: Path) -> None:
    shard(folder)
    sorted(folder.glob("model-*.safetensors"))[-1].unlink()


def drop(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    del state[next(name for name in state if "linear_1" in name)]
    save_file(state, path, metadata={"format": "pt"})


def reshape(folder: Path) -> None:
    edit(folder, text_config__vocab_size=300)


def unlink(pattern: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.unlink()

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "cannot load"),
        (shard, "cannot load"),
        (lose, "cannot load"),
        (drop, "lacks 1 of its weights, such as model.multi_modal_projector.linear_1"),
        (reshape, "cannot load"),
        (unlink("*.safetensors"), "cannot load"),
        (unlink("*processor_config.json"), "cannot load"),
        (unlink("tokenizer*"), "cannot load"),
    ],
    ids=[
        "cut short",
        "shard",
        "shard gone",
        "a tensor gone",
        "another shape",
        "no weights",
        "no processor",
        "no tokens",
    ],
)
def test_a_damaged_folder_is_one_line(
    run: Any, folder: Path, image: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        im.load(folder)
    assert_one_line(run("ask", image, QUESTION, "--model", folder), message, str(folder))


def test_a_language_model_is_no_whole_model(run: Any, tmp_path: Path, image: Path) -> None:
    tiny_language_model("qwen3").save_pretrained(tmp_path / "lm")
    byte_tokenizer().save_pretrained(tmp_path / "lm")
    with pytest.raises(CheckpointError, match=r"holds no vision-language model.*hf:"):
        im.load(tmp_path / "lm")
    result = run("ask", image, QUESTION, "--model", tmp_path / "lm")
    assert_one_line(result, "holds no vision-language model", f'"hf:{tmp_path / "lm"}"')
    assert im.load(f"hf:{tmp_path / 'lm'}").text_only


def test_a_decoder_that_stands_alone_nowhere_is_refused(whole: Path) -> None:
    tower = im.load_vision(f"hf:{whole}").model
    with pytest.raises(ConfigError, match='type "clip_vision_model"'):
        causal_model(tower, nn.Linear(2, 2), None)


def test_parts_beside_it_are_refused(whole: Path) -> None:
    with pytest.raises(ConfigError, match="brings its own parts"):
        im.load(whole, vision=im.load_vision("tiny-vit"))


def test_it_is_no_language_model_s_object(whole: Path) -> None:
    """The strip of another connector over its parts, with the token of its vocabulary."""
    name = f"hf:{whole}"
    tokens = im.load(whole).config.tokens
    model = im.compose(name, name, im.Pool(tokens=4), tokens=tokens, template="chat")
    batch = model.prepare(["<image>a"], [[torch.zeros(3, 32, 32)]])
    assert batch.input_ids.tolist() == [[259] * 4 + [97]]
    again = im.load(im.save(model, whole.parent / "strip"))
    with torch.no_grad():
        assert torch.equal(again(batch).logits, model(batch).logits)
