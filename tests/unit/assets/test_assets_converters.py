"""Converters on tiny or random files of the same form as the real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from gguf import GGUFWriter, TokenType
from transformers import AutoTokenizer

from isthmus.assets.converters import convert_efficientnet, smollm_tokenizer
from isthmus.errors import AssetError

PTH = "efficientnet-lite2-9656183e.pth"


@pytest.fixture(scope="module")
def lite2() -> dict[str, torch.Tensor]:
    return timm.create_model("tf_efficientnet_lite2", pretrained=False).state_dict()


def in_the_wheels_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors, in order, under names whose last part alone is timm's."""
    return {f"_layer{i}.{k.rpartition('.')[2]}": v for i, (k, v) in enumerate(state.items())}


def test_efficientnet_becomes_a_folder_that_timm_loads(
    lite2: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(in_the_wheels_names(lite2), tmp_path / PTH)
    out = tmp_path / "out"
    convert_efficientnet(tmp_path, out)
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    loaded = model.state_dict()
    assert list(loaded) == list(lite2)
    assert all(torch.equal(loaded[k], v) for k, v in lite2.items())
    assert model.num_classes == 1000
    assert model.pretrained_cfg["input_size"] == (3, 260, 260)


def spoil(state: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    names = list(state)
    if how == "a tensor too few":
        return {k: state[k] for k in names[:-1]}
    if how == "another shape":
        return state | {names[0]: state[names[0]][:, :1]}
    # bias before weight: the same shapes in another order
    names[1], names[2] = names[2], names[1]
    return {k: state[k] for k in names}


@pytest.mark.parametrize("how", ["a tensor too few", "another shape", "another order"])
def test_efficientnet_that_does_not_fit_is_refused(
    lite2: dict[str, torch.Tensor], tmp_path: Path, how: str
) -> None:
    torch.save(spoil(in_the_wheels_names(lite2), how), tmp_path / PTH)
    with pytest.raises(AssetError, match=r"got 385 tensors|does not fit timm's"):
        convert_efficientnet(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    """A GGUF file with SmolLM's kind of tokenizer and twelve tokens. Ċ is a line feed."""
    words = [*SPECIAL, "Ċ", "Ġ", "1", "2", "a", "ĊĊ", "Ġa", "12", "ĠĠ"]
    writer = GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    types = [TokenType.CONTROL if w in SPECIAL else TokenType.NORMAL for w in words]
    writer.add_token_types(types)
    writer.add_token_merges(["Ċ Ċ", "Ġ a", "1 2", "Ġ Ġ"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    writer.add_tensor("token_embd.weight", np.zeros((12, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "tiny.gguf"


def test_the_gguf_tokenizer_is_the_one_smollm_was_trained_with(
    gguf_file: Path, tmp_path: Path
) -> None:
    smollm_tokenizer(gguf_file, 64).save_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    specials = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token)
    assert specials == ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_end|>")
    assert tokenizer.model_max_length == 64

    def pieces(text: str) -> list[str]:
        return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)

    # Digits stand alone, and what comes before them is split as if the text ended there
    assert pieces("\n\n12 a") == ["ĊĊ", "1", "2", "Ġa"]
    assert pieces("  1") == ["ĠĠ", "1"]
    chat = tokenizer.apply_chat_template([{"content": "a 1"}], tokenize=False)
    assert chat == "<|im_start|>a 1<|im_end|>"
    assert tokenizer(chat).input_ids[0] == 1
    assert tokenizer(chat).input_ids[-1] == 2
    assert tokenizer.decode(tokenizer(chat).input_ids) == chat
    assert tokenizer.decode(tokenizer(chat).input_ids, skip_special_tokens=True) == "a 1"
