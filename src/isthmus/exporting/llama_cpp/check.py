"""Whether two GGUF files are the model: read again, value by value, and run.

Every tensor must be the model's own in the size that was asked for, bit by bit. The language model
is loaded by Transformers, which reads GGUF, and must have the model's tensors and logits. Of the
other file a tower of Transformers is made by its keys alone, which must give the model's visual
tokens.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn import functional as F

from isthmus.errors import ExportError
from isthmus.exporting.check import GONE, drawn, on_cpu, prompts
from isthmus.exporting.language import language_tensors, text_config
from isthmus.exporting.llama_cpp.projector import IN_BLOCKS, PLACES
from isthmus.exporting.llama_cpp.sizes import packed
from isthmus.exporting.tokens import WrittenTokens
from isthmus.exporting.towers import tower_of
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.templates import template_named

TOLERANCES = {"f32": 1e-4, "f16": 0.05, "q8_0": 0.5}
"""Largest difference of two values that are computed, where the largest of them is 1 or less; in
proportion above. Below f32 it is that of rounded weights, which are the same bit by bit."""


def same_tensors(path: Path, expected: Mapping[str, Tensor], size: str) -> None:
    """Refuses a file whose tensors are not those that were written.

    Raises:
        ExportError: If a name, a shape or a value differs.
    """
    from gguf import GGUFReader

    found = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    if missing := sorted(expected.keys() ^ found.keys()):
        raise ExportError(f"{path.name} lacks {missing[0]}, or has it besides; {GONE}")
    for name, tensor in expected.items():
        values, kind = packed(name, tensor, size)
        got = found[name]
        same = got.tensor_type == kind and tuple(reversed(got.shape.tolist())) == tuple(
            tensor.shape
        )
        if not same or got.data.tobytes() != numpy.ascontiguousarray(values).tobytes():
            raise ExportError(f"{path.name} holds other values of {name}; {GONE}")


@torch.no_grad()
def same_language(path: Path, model: VisionLanguageModel, added: WrittenTokens, size: str) -> float:
    """Largest difference of two logits of what Transformers reads of a file.

    Raises:
        ExportError: If it cannot be read, or tensors or logits differ.
    """
    theirs = _read_by_transformers(path, model, added)
    state = theirs.state_dict()
    for name, tensor in language_tensors(model, added).items():
        own = name if name.startswith("lm_head.") else f"model.{name}"
        expected = _rounded(name, tensor, size)
        if own not in state or not torch.equal(state[own], expected):
            raise ExportError(f"Transformers reads other values of {name} in {path.name}; {GONE}")
    if (factors := _tensors(path).get("rope_freqs.weight")) is not None:
        theirs.base_model.rotary_emb.inv_freq /= factors  # which Transformers does not read
    ours, most = on_cpu(model), 0.0
    template = template_named(model.config.template, model.language.tokenizer)
    for number, (shots, query) in enumerate(prompts()):
        prompt = template(shots, query)
        batch = ours.prepare([prompt.spans], [prompt.images])
        expected = ours(batch).logits[..., : ours.language.vocab_rows]
        if batch.pixels is None:
            got = theirs(input_ids=added.translated(batch.input_ids, ours)).logits
        else:
            with ours.in_sight(batch) as embeddings:
                pass
            got = theirs(inputs_embeds=embeddings).logits
        taken = [i for i in (added.image_id, added.end_id) if i < expected.shape[-1]]
        got = got[..., : expected.shape[-1]].index_fill(-1, torch.tensor(taken).long(), 0.0)
        expected = expected.index_fill(-1, torch.tensor(taken).long(), 0.0)
        most = max(most, _difference(got, expected, size, f"prompt {number + 1} of 3: logits"))
    return most


@torch.no_grad()
def same_visual(path: Path, model: VisionLanguageModel, size: str) -> float:
    """Largest difference of two values of visual tokens, those of a tower made of a file's keys.

    Raises:
        ExportError: If they differ.
    """
    ours = on_cpu(model)
    pixels = torch.stack([ours.vision.preprocess(drawn((64 * n, 48), n)) for n in (1, 2)])
    expected: Tensor = ours.connector(ours.vision(pixels))
    got = visual_tokens(path, pixels, str(tower_of(model.vision).config.get("hidden_act", "")))
    return _difference(got, expected, size, "two images: visual tokens")


def visual_tokens(path: Path, pixels: Tensor, activation: str = "") -> Tensor:
    """Visual tokens (P, M, D) of pixels (P, 3, H, W), by what stands in a file.

    Args:
        path: The file.
        pixels: The pixels.
        activation: The tower's, where a file knows no more than that it is a GELU.
    """
    import transformers

    told, tensors = _fields(path), _tensors(path)
    names = {theirs: own for own, theirs in PLACES.items()}
    inner = {theirs: own for own, theirs in IN_BLOCKS.items()}
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        part, _, kind = name.rpartition(".")
        if name in names:
            state[names[name]] = tensor
        elif part in names:
            state[f"{names[part]}.{kind}"] = tensor
        elif part.startswith("v.blk."):
            _, _, number, place = part.split(".")
            state[f"encoder.layers.{number}.{inner[place]}.{kind}"] = tensor
    clip = "v.class_embd" in tensors
    gelu = activation or "gelu_pytorch_tanh"
    family = "CLIP" if clip else "Siglip"
    config = getattr(transformers, f"{family}VisionConfig")(
        hidden_size=told["clip.vision.embedding_length"],
        intermediate_size=told["clip.vision.feed_forward_length"],
        num_hidden_layers=told["clip.vision.block_count"],
        num_attention_heads=told["clip.vision.attention.head_count"],
        image_size=told["clip.vision.image_size"],
        patch_size=told["clip.vision.patch_size"],
        layer_norm_eps=told["clip.vision.attention.layer_norm_epsilon"],
        hidden_act=gelu if told.get("clip.use_gelu") else "quick_gelu",
    )
    if not clip:
        config.vision_use_head = False
    tower = getattr(transformers, f"{family}VisionModel")(config).eval()
    lacking = tower.load_state_dict(state, strict=False).missing_keys
    if lost := [
        n for n in lacking if not n.startswith(("post_layernorm", "embeddings.position_i"))
    ]:
        raise ExportError(f"{path.name} lacks what is {lost[0]} in Transformers; {GONE}")
    seen = tower(pixel_values=pixels, output_hidden_states=True)
    normed = "v.post_ln.weight" in tensors
    hidden = seen.last_hidden_state if normed else seen.hidden_states[-1]
    hidden = F.linear(hidden[:, int(clip) :], tensors["mm.0.weight"], tensors["mm.0.bias"])
    return F.linear(F.gelu(hidden), tensors["mm.2.weight"], tensors["mm.2.bias"])


def _difference(got: Tensor, expected: Tensor, size: str, what: str) -> float:
    difference = float((got - expected).abs().max()) if got.shape == expected.shape else torch.inf
    if not difference <= TOLERANCES[size] * max(1.0, float(expected.abs().max())):
        raise ExportError(
            f"{what} differ by {difference:.3g}, expected {TOLERANCES[size]:g} at most in {size}: "
            f"what was written is not the model; {GONE}"
        )
    return difference


def _read_by_transformers(path: Path, model: VisionLanguageModel, added: WrittenTokens) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    options: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    told = text_config(model, added)
    if told["model_type"] == "qwen3":  # whose width of a head it does not read
        options["config"] = AutoConfig.for_model(**told)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # bars that cannot be turned off
            return AutoModelForCausalLM.from_pretrained(
                path.parent, dtype=torch.float32, **options
            ).eval()
    except Exception as error:  # of many kinds
        raise ExportError(
            f"Transformers cannot read {path.name}: {type(error).__name__}: {error}; {GONE}"
        ) from error


def _rounded(name: str, tensor: Tensor, size: str) -> Tensor:
    """A tensor as it comes out of a file of a size."""
    from gguf.quants import dequantize

    return torch.from_numpy(dequantize(*packed(name, tensor, size)).copy()).view(tensor.shape)


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, in fp32."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    return {
        tensor.name: torch.from_numpy(
            dequantize(tensor.data, tensor.tensor_type).astype("float32")
        ).view(tuple(reversed(tensor.shape.tolist())))
        for tensor in GGUFReader(path).tensors
    }


def _fields(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}
