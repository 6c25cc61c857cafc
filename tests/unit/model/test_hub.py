"""What a folder for the hub holds, and models found in the hub's cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from huggingface_hub import constants, file_download

import isthmus as im
from isthmus.model.card import PERMISSIVE, licence_of, strictest
from isthmus.model.checkpoint import locate
from isthmus.model.snapshots import fetched


def made() -> im.VisionLanguageModel:
    return im.compose("tiny-vit", "tiny-lm", im.MLP(), device="cpu")


def head(folder: Path) -> dict[str, object]:
    """The front matter of a card."""
    text = (folder / "README.md").read_text()
    assert text.startswith("---\n")
    return dict(yaml.safe_load(text.split("---\n")[1]))


def test_a_folder_and_back(tmp_path: Path) -> None:
    model = made()
    folder = im.save_pretrained(model, tmp_path / "mine")
    assert {p.name for p in folder.iterdir()} == {"README.md", "isthmus.json", "model.safetensors"}
    for again in (im.from_pretrained(folder), im.from_pretrained(str(folder)), im.load(folder)):
        assert torch.equal(again.connector.layers[0].weight, model.connector.layers[0].weight)
    assert im.from_pretrained(folder, dtype="bfloat16").device.type
    assert im.from_pretrained(f"hf:{folder}").config == model.config
    assert head(folder) == {
        "library_name": "isthmus",
        "pipeline_tag": "image-text-to-text",
        "license": "other",
        "tags": ["isthmus"],
    }
    assert 'im.from_pretrained("mine")' in (folder / "README.md").read_text()


def test_a_card_that_somebody_wrote_stays(tmp_path: Path) -> None:
    model = made()
    im.save_pretrained(model, tmp_path)
    first = (tmp_path / "README.md").read_text()
    im.save_pretrained(model, tmp_path, repository="me/mine")  # ours is written anew
    second = (tmp_path / "README.md").read_text()
    assert first != second
    assert 'im.from_pretrained("me/mine")' in second
    (tmp_path / "README.md").write_text("# Mine\n")
    im.save_pretrained(model, tmp_path)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


def test_the_parts_are_named(tmp_path: Path) -> None:
    """By their repositories; licences of those that are known."""
    model = made()
    saved = im.save(model, tmp_path)
    told = json.loads((saved / "isthmus.json").read_text())
    told["config"]["vision"]["name"] = "hf:openai/clip-vit-large-patch14"
    told["config"]["language"]["name"] = "asset:smollm2-135m-instruct"
    (saved / "isthmus.json").write_text(json.dumps(told))
    from isthmus.model.hub import write_card

    write_card(saved, "me/mine")
    assert head(saved)["base_model"] == ["openai/clip-vit-large-patch14"]
    assert head(saved)["base_model_relation"] == "adapter"
    text = (saved / "README.md").read_text()
    assert "openai/clip-vit-large-patch14: unknown here; smollm2-135m-instruct: apache-2.0" in text


def test_a_dual_encoder(tmp_path: Path) -> None:
    model = im.DualEncoder.join("tiny-vit", "tiny-text", width=8)
    folder = im.save_pretrained(model, tmp_path)
    assert head(folder)["pipeline_tag"] == "zero-shot-image-classification"
    assert "joined by Isthmus to a dual encoder" in (folder / "README.md").read_text()
    assert im.from_pretrained(folder).fingerprint() == model.fingerprint()


def licensed(folder: Path, licence: str) -> str:
    folder.mkdir()
    (folder / "README.md").write_text(f"---\ntags:\n- a\nlicense: {licence}\n---\n# Card\n")
    return f"hf:{folder}"


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (("mit", "mit"), "mit"),
        (("mit", "apache-2.0"), "apache-2.0"),
        (("apache-2.0", "bsd-3-clause"), "apache-2.0"),
        (("apache-2.0", "llama3.2"), "llama3.2"),
        (("gemma", "gemma"), "gemma"),
        (("gemma", "llama3.2"), "other"),
        (("mit", "other"), "other"),
    ],
)
def test_the_strictest_licence(licences: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    parts = [licensed(tmp_path / str(n), told) for n, told in enumerate(licences)]
    assert strictest(parts)[0] == strictest(parts[::-1])[0] == expected
    assert "cc-by-nc-4.0" not in PERMISSIVE


def test_licences_are_found_where_they_are() -> None:
    assert licence_of("timm:vit_base_patch16_clip_224.openai") in PERMISSIVE
    assert licence_of("timm:resnet50") in ("", *PERMISSIVE)
    assert licence_of("asset:efficientnet-lite2") == "apache-2.0"
    assert licence_of("tiny-lm") == licence_of("asset:none") == licence_of("hf:") == ""


def cached(cache: Path, folder: Path, repository: str) -> None:
    """A folder as the hub's library keeps what it has fetched."""
    place = cache / f"models--{repository.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    shutil.copytree(folder, place / "snapshots" / commit)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (constants, file_download):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    return tmp_path / "hub"


def test_a_model_in_the_cache_is_loaded_offline(cache: Path, tmp_path: Path) -> None:
    assert constants.HF_HUB_OFFLINE
    model = made()
    cached(cache, im.save_pretrained(model, tmp_path / "saved"), "me/strip")
    for again in (im.load("hf:me/strip"), im.from_pretrained("me/strip")):
        assert torch.equal(again.connector.layers[0].weight, model.connector.layers[0].weight)
    joint = im.DualEncoder.join("tiny-vit", "tiny-text", width=8)
    cached(cache, im.save_pretrained(joint, tmp_path / "joint"), "me/joint")
    assert im.load("hf:me/joint").fingerprint() == joint.fingerprint()
    assert locate("hf:me/strip").name == locate("hf:me/joint").name  # as train.init finds it
    with pytest.raises(im.ExportError, match="vision encoder is tiny-vit"):
        im.export("hf:me/strip", tmp_path / "out")


def test_a_repository_of_another_kind_is_none_of_ours(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    transformers.CLIPVisionConfig().save_pretrained(folder)
    cached(cache, folder, "you/clip")
    for name in ("hf:you/clip", "hf:you/none", f"hf:{folder}", "open_clip:ViT-B-32/openai", "tiny"):
        assert fetched(name) == name


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(im.CheckpointError, match="nobody/none"):
        im.from_pretrained("nobody/none")
    with pytest.raises(im.ConfigError, match='revision = "v1" of "tiny"'):
        im.from_pretrained("tiny", revision="v1")
    with pytest.raises(im.CheckpointError, match="no model"):
        im.from_pretrained(tmp_path / "nothing")


def test_parts_that_nobody_else_has_are_not_uploaded(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = transformers.SiglipVisionConfig(
        **sizes, num_attention_heads=2, image_size=32, patch_size=8
    )
    transformers.SiglipVisionModel(config).save_pretrained(tmp_path / "tower")
    size = {"height": 32, "width": 32}
    transformers.SiglipImageProcessor(size=size).save_pretrained(tmp_path / "tower")
    model = im.compose(f"hf:{tmp_path / 'tower'}", "tiny-lm", im.MLP())
    with pytest.raises(im.ConfigError, match="a folder of this machine"):
        im.push_to_hub(model, "me/strip")
    with pytest.raises(im.CheckpointError, match="cannot upload to me/strip: "):
        im.push_to_hub(made(), "me/strip")  # tests are offline
