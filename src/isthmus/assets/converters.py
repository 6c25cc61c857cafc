"""From what a wheel holds to a folder that timm or Transformers loads.

Each takes the folder that holds the wheel's members, and an empty folder to fill. torch and
transformers are imported inside, so that listing assets stays cheap.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

from isthmus.errors import AssetError


def convert_efficientnet(source: Path, out: Path) -> None:
    """Gives the wheel's tensors timm's names, ImageNet head included.

    Both sides list the same layers in the same order under different names, so the order is
    the map; every shape and every last part of a name must agree, or nothing is written.
    """
    import timm
    import torch

    theirs = torch.load(
        source / "efficientnet-lite2-9656183e.pth", map_location="cpu", weights_only=True
    )
    model = timm.create_model("tf_efficientnet_lite2", pretrained=False)
    ours = model.state_dict()
    if len(theirs) != len(ours):
        raise AssetError(f"efficientnet-lite2: got {len(theirs)} tensors, timm has {len(ours)}")
    for (got, a), (expected, b) in zip(theirs.items(), ours.items(), strict=True):
        same_role = got.rpartition(".")[2] == expected.rpartition(".")[2]
        if not same_role or a.shape != b.shape:
            raise AssetError(
                f"efficientnet-lite2: {got} {tuple(a.shape)} does not fit timm's "
                f"{expected} {tuple(b.shape)}"
            )
    model.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    # Weights and preprocessing, as timm.create_model("local-dir:FOLDER", pretrained=True) reads
    timm.models.save_for_hf(model, str(out), safe_serialization=True)


def convert_smollm2(source: Path, out: Path) -> None:
    """Reads the GGUF file once, which takes 15 s or more, and writes what loads in 0.1 s.

    Stored as fp32: a Q4_1 weight is fp16 x integer + fp16, which neither fp16 (largest error
    0.05% of a weight) nor bf16 (0.4%) holds, and fp32 is what a CPU computes in: the file is
    mapped into memory as it is, and its pages are shared between processes.
    """
    import torch
    from transformers import AutoModelForCausalLM

    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with contextlib.redirect_stderr(io.StringIO()):  # their progress bars cannot be turned off
        read = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
        # A model that was read from GGUF refuses to be saved, though its weights are plain
        # tensors: hand them to a model that does not know where they come from
        config, weights = read.config, read.state_dict()
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.device("meta"):
            model = type(read)(config)
        model.load_state_dict(weights, assign=True)
        model.tie_weights()
        model.generation_config = read.generation_config
        model.save_pretrained(out)
    smollm_tokenizer(source / file, config.max_position_embeddings).save_pretrained(out)


def smollm_tokenizer(gguf_file: Path, longest: int) -> Any:
    """The tokenizer in a GGUF file of the SmolLM family, as its authors published it.

    Transformers takes it for GPT-2's, which lacks the split at digits, so that a digit after an
    empty line gives other tokens; and its older versions take <|im_start|> for the end.
    """
    from gguf import GGUFReader, TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = {k: f for k, f in GGUFReader(gguf_file).fields.items() if "tokenizer." in k}
    told = {k.removeprefix("tokenizer.ggml."): f.contents() for k, f in fields.items()}
    assert told["pre"] == "smollm"
    words = told["tokens"]
    merges = [tuple(pair.split(" ")) for pair in told["merges"]]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    backend.decoder = decoders.ByteLevel()
    special = [w for w, t in zip(words, told["token_type"], strict=True) if t == TokenType.CONTROL]
    backend.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=words[told["bos_token_id"]],
        eos_token=words[told["eos_token_id"]],
        unk_token=words[told["unknown_token_id"]],
        pad_token=words[told["padding_token_id"]],
        chat_template=told["tokenizer.chat_template"],
        model_max_length=longest,
        clean_up_tokenization_spaces=False,
    )


def convert_minilm(source: Path, out: Path) -> None:
    """Takes the Transformers folder as it is."""
    for file in source.iterdir():
        shutil.move(file, out / file.name)


MINILM_FILES = (
    *("config.json", "model.safetensors", "README.md"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"),
)
