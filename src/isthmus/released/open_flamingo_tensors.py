"""The tensors of OpenFlamingo's `checkpoint.pt`, by the part of ours that each belongs to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.errors import CheckpointError
from isthmus.model.backbones.added_tokens import AddedTokens
from isthmus.model.backbones.language import LanguageModel
from isthmus.model.connectors.resampler import Resampler
from isthmus.model.fusion.cross_attention import CrossAttention

HEAD_DIM = 64  # OpenFlamingo's, which no tensor tells
PIECE = 4096  # rows of a table that are compared at once

ATTENTION = {
    "to_q.weight": "attention.query_projection.weight",
    "to_kv.weight": "attention.context_projection.weight",  # K, then V, as here
    "to_out.weight": "attention.out_projection.weight",
}
FEED_FORWARD = ("0.weight", "0.bias", "1.weight", "3.weight")
LAYER = {
    **{f"0.norm_media.{kind}": f"patch_norm.{kind}" for kind in ("weight", "bias")},
    **{f"0.norm_latents.{kind}": f"latent_norm.{kind}" for kind in ("weight", "bias")},
    **{f"0.{theirs}": ours for theirs, ours in ATTENTION.items()},
    **{f"1.{name}": f"ffw.{name}" for name in FEED_FORWARD},
}
"""Our names of the tensors of a resampler's layer, by theirs."""
BLOCK = {
    "attn_gate": "attention_gate",
    "ff_gate": "ffw_gate",
    **{f"attn.norm.{kind}": f"norm.{kind}" for kind in ("weight", "bias")},
    **{f"attn.{theirs}": ours for theirs, ours in ATTENTION.items()},
    **{f"ff.{name}": f"ffw.{name}" for name in FEED_FORWARD},
}
"""Likewise of a gated block."""
HEAD = "embed_out.weight"
"""What GPT-NeoX called the head when the checkpoints were written."""
BUFFERS = ("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias")
"""What Transformers of that time saved of a decoder layer besides its weights."""


def _ours(name: str) -> str:
    """Our name of a resampler's tensor."""
    if match := re.fullmatch(r"layers\.(\d+)\.(.+)", name):
        return f"layers.{match[1]}.{LAYER.get(match[2], match[2])}"
    return "frames" if name == "frame_embs" else name


class Found:
    """What a checkpoint holds, sorted by the part that it belongs to.

    Args:
        path: The file, for messages.
        state: Its tensors by name.
        layers: Dotted path of the language model's decoder layers.

    Attributes:
        strip: The resampler's tensors by our names, and those of blocks as "block LAYER.NAME".
        theirs: What each is called in the file.
        language: Tensors of the language model, by its own names.
        vision: Tensors of the vision encoder, by its own names.

    Raises:
        CheckpointError: If it is not a checkpoint of OpenFlamingo's.
    """

    def __init__(self, path: Path, state: Mapping[str, Tensor], layers: str) -> None:
        self.path, self.layers = path, layers
        self.strip: dict[str, Tensor] = {}
        self.theirs: dict[str, str] = {}
        self.language: dict[str, Tensor] = {}
        self.vision: dict[str, Tensor] = {}
        # beside each decoder layer, or in a list of their own, as in the first version
        block = re.compile(
            rf"(?:{re.escape(layers)}\.(\d+)\.gated_cross_attn_layer|"
            r"gated_cross_attn_layers\.(\d+))\.(.+)"
        )
        for name, tensor in state.items():
            part, _, rest = name.partition(".")
            if part == "perceiver":
                self._keep(_ours(rest), name, tensor)
            elif part == "vision_encoder":
                self.vision[rest] = tensor
            elif part != "lang_encoder":
                raise self._unfit(f"{name} is unexpected")
            elif match := block.fullmatch(rest):
                number = match[1] or match[2]
                self._keep(f"block {number}.{BLOCK.get(match[3], match[3])}", name, tensor)
            else:
                own = re.sub(r"^old_decoder_blocks\.", f"{layers}.", rest)
                own = own.replace(".decoder_layer.", ".")
                if not own.endswith(BUFFERS):
                    self.language[own] = tensor
        self.blocks = sorted(
            {int(n[6:].partition(".")[0]) for n in self.strip if n[:6] == "block "}
        )
        if "latents" not in self.strip or not self.blocks:
            raise CheckpointError(
                f"{path} is not a checkpoint of OpenFlamingo for this language model: expected "
                f"perceiver.latents and lang_encoder.{layers}.*.gated_cross_attn_layer.*, got "
                f"{', '.join(list(state)[:3]) or 'nothing'}"
            )

    def _keep(self, ours: str, theirs: str, tensor: Tensor) -> None:
        if not torch.equal(self.strip.setdefault(ours, tensor), tensor):
            raise self._unfit(f"{theirs} and {self.theirs[ours]} are the same, and differ")
        self.theirs[ours] = theirs

    def _unfit(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} does not fit the model: {what}")

    def _sizes(self, attention: str, ffw: str) -> dict[str, Any]:
        """Heads, their width, and the width of the feed-forward, as the file's tensors tell."""
        query, wide = self.strip.get(attention), self.strip.get(ffw)
        inner = 8 * HEAD_DIM if query is None else len(query)
        if inner % HEAD_DIM:
            raise self._unfit(f"{self.theirs[attention]} has {inner} rows, no heads of {HEAD_DIM}")
        mult = 4 if wide is None or wide.ndim != 2 else max(1, wide.shape[0] // wide.shape[1])
        return {"heads": max(1, inner // HEAD_DIM), "head_dim": HEAD_DIM, "ffw_mult": mult}

    def resampler(self) -> Resampler:
        """The connector's configuration."""
        layers = [int(n.split(".")[1]) for n in self.strip if n.startswith("layers.")]
        frames = self.strip.get("frames")
        return Resampler(
            latents=len(self.strip["latents"]),
            depth=max(layers, default=0) + 1,
            max_frames=0 if frames is None else len(frames),
            **self._sizes("layers.0.attention.query_projection.weight", "layers.0.ffw.1.weight"),
        )

    def cross_attention(self, layers: int) -> CrossAttention:
        """The fusion's configuration, for a language model of so many layers.

        Raises:
            CheckpointError: If the blocks do not stand before every n-th layer.
        """
        every = self.blocks[0] + 1
        expected = [i for i in range(layers) if (i + 1) % every == 0]
        if self.blocks != expected:
            raise self._unfit(
                f"it has gated blocks before the layers {_listed(self.blocks)} of the language "
                f"model, expected {_listed(expected)} of {layers}"
            )
        block = f"block {self.blocks[0]}"
        return CrossAttention(
            every=every,
            offset=1,
            **self._sizes(f"{block}.attention.query_projection.weight", f"{block}.ffw.1.weight"),
        )

    def fill(self, modules: Mapping[str, nn.Module]) -> None:
        """Puts the strip's tensors into modules, by what stands before their names.

        Raises:
            CheckpointError: If tensors are missing, unexpected or of another shape.
        """
        own = {f"{at}{n}": t for at, m in modules.items() for n, t in m.state_dict().items()}
        wrong = [f"{self._called(n)} is missing" for n in sorted(own.keys() - self.strip.keys())]
        wrong += [f"{self.theirs[n]} is unexpected" for n in sorted(self.strip.keys() - own.keys())]
        wrong += [
            f"{self.theirs[n]} is {tuple(self.strip[n].shape)}, expected {tuple(own[n].shape)}"
            for n in sorted(own.keys() & self.strip.keys())
            if own[n].shape != self.strip[n].shape
        ]
        if wrong:
            more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
            raise self._unfit(f"{'; '.join(wrong[:3])}{more}")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(self.strip[name])

    def _called(self, ours: str) -> str:
        """What a tensor of the strip is called in such a file."""
        if ours.startswith("block "):
            number, _, name = ours[6:].partition(".")
            their = next(t for t, o in BLOCK.items() if o == name)
            return f"lang_encoder.{self.layers}.{number}.gated_cross_attn_layer.{their}"
        if ours.startswith("layers."):
            _, number, name = ours.split(".", 2)
            return f"perceiver.layers.{number}.{next(t for t, o in LAYER.items() if o == name)}"
        return f"perceiver.{ours}"

    def fill_rows(self, tokens: AddedTokens, language: LanguageModel) -> None:
        """Puts the rows of the two tokens into ours, and takes the tables off what is left.

        Raises:
            CheckpointError: If the word embedding is missing or of another length, or rows of it
                differ from the language model's.
        """
        called = {id(m): f"{n}.weight" for n, m in language.model.named_modules()}
        shown, head = language.input_embedding, language.output_embedding
        inside = self._added_rows(called[id(shown)], shown.weight, language)
        if inside is None:
            raise self._unfit(f"lang_encoder.{called[id(shown)]} is missing")
        name = called[id(head)]
        if name not in self.language:
            name = HEAD
        said = self._added_rows(name, head.weight, language)
        if said is None and head.weight is shown.weight:
            said = inside
        with torch.no_grad():
            tokens.input_rows.copy_(inside[[1, 0]])  # ours are the image's and the end's
            if said is not None:  # the first version kept no head: the end is the model's own
                tokens.output_rows.copy_(said[:1])

    def _added_rows(self, name: str, own: Tensor, language: LanguageModel) -> Tensor | None:
        """The rows behind the tokenizer's words, the end's and the image's; None without a table.

        The table was resized to the tokenizer's length, so the model's padding is not in it.
        """
        table = self.language.pop(name, None)
        if table is None:
            return None
        words = len(language.tokenizer)
        if table.ndim != 2 or table.shape[1] != own.shape[1]:
            raise self._unfit(
                f"lang_encoder.{name} is {tuple(table.shape)}, expected rows of {own.shape[1]}"
            )
        if len(table) - words not in (2, 3):
            raise self._unfit(
                f"lang_encoder.{name} has {len(table)} rows, expected {words + 2} or {words + 3}: "
                f"the tokenizer's {words}, <|endofchunk|>, <image>, and <PAD> where it had none"
            )
        if not _same(table[:words], own[:words]):
            raise self._unfit(
                f"rows of words in lang_encoder.{name} differ from those of "
                f"{language.config.name}: expected that only rows of new tokens were trained; name "
                "the language model that it is joined to"
            )
        return table[words:]

    def refuse_changed(self, part: str, tensors: Mapping[str, Tensor], module: nn.Module) -> None:
        """Refuses tensors of a frozen part that are not its own, which nothing here would hold.

        Raises:
            CheckpointError: If there is one.
        """
        own = module.state_dict()
        for name, tensor in tensors.items():
            if name not in own:
                raise self._unfit(f"{part}.{name} is unexpected")
            if own[name].shape != tensor.shape or not _same(tensor, own[name]):
                raise self._unfit(
                    f"{part}.{name} differs from the {type(module).__name__} that it is joined to: "
                    "expected a part that was not trained"
                )


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether values agree as far as bfloat16 tells them apart, in which a part may be read."""
    pieces = zip(torch.split(one, PIECE), torch.split(other, PIECE), strict=True)
    return all(
        bool(torch.isclose(a.float(), b.float(), rtol=2**-7, atol=1e-6).all()) for a, b in pieces
    )


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
