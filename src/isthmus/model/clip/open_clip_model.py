"""open_clip's dual encoders, their preprocessing and tokens as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from isthmus.config.model import VisionConfig
from isthmus.errors import ConfigError, loading
from isthmus.model.backbones.libraries import open_clip_library, open_clip_transform
from isthmus.model.backbones.vision_names import open_clip_model
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.clip.towers import ImageTower, TextTower, Tokens


class OpenClipImageTower(ImageTower):
    """The visual tower of an open_clip model.

    Args:
        model: The model.
        transform: An image to pixels: open_clip's evaluation transform.
    """

    def __init__(self, model: Any, transform: Callable[[Image.Image], Tensor]) -> None:
        super().__init__()
        self.visual = model.visual
        self.transform = transform
        size = model.visual.image_size
        self.image_size = (size, size) if isinstance(size, int) else (size[0], size[1])

    def preprocess(self, image: Image.Image) -> Tensor:
        """Pixels (3, H, W) by the transform."""
        return self.transform(image)

    def forward(self, pixels: Tensor) -> Tensor:
        """Vectors (B, D)."""
        found: Any = self.visual(pixels.to(next(self.visual.parameters()).dtype))
        vectors: Tensor = found[0] if isinstance(found, tuple) else found
        return vectors


class OpenClipTextTower(TextTower):
    """The text tower of an open_clip model.

    Where its attention is causal and it reads a text off its end token, what follows changes
    nothing, so that padding is trimmed; open_clip's own `encode_text` needs all 77 places.

    Args:
        model: The model.
        tokenizer: Its tokenizer, from `open_clip.get_tokenizer`.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        # A model of the old form is its text tower itself
        self.part: Any = model.text if hasattr(model, "text") else model
        self.context_length = int(getattr(model, "context_length", 0) or tokenizer.context_length)
        self.fixed_length = not _is_trimmable(self.part)
        self._bpe = hasattr(tokenizer, "sot_token_id")
        if self._bpe:
            self.pad_id = 0
            return
        inner: Any = getattr(tokenizer, "tokenizer", None)
        mode: Any = getattr(tokenizer, "tokenizer_mode", None)
        if inner is None or mode:
            raise ConfigError(
                f"{type(tokenizer).__name__} does not tell how long a text is: pass what "
                "open_clip.get_tokenizer gives for a model whose tokenizer has no mode"
            )
        self.pad_id = inner.pad_token_id
        if getattr(tokenizer, "strip_sep_token", False) and self.pad_id == inner.sep_token_id:
            self.pad_id = 0
        self.pads_left = inner.padding_side == "left"
        whole, bare = inner("a").input_ids, inner("a", add_special_tokens=False).input_ids
        self.prefix = whole.index(bare[0])

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text's token ids, cleaned as the tokenizer cleans."""
        tokenizer = self.tokenizer
        if self._bpe:
            start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
            return [[start, *tokenizer.encode(text), end] for text in texts]
        rows: list[list[int]] = tokenizer.tokenizer(
            [tokenizer.clean_fn(text) for text in texts],
            padding=False,
            truncation=False,
            verbose=False,
        ).input_ids
        if getattr(tokenizer, "strip_sep_token", False):
            sep = tokenizer.tokenizer.sep_token_id
            rows = [[0 if token == sep else token for token in row] for row in rows]
        return rows

    def forward(self, tokens: Tokens) -> Tensor:
        """Vectors (K, D)."""
        ids = tokens["input_ids"]
        if self.fixed_length:
            encode = getattr(self.part, "encode_text", self.part)
            whole: Any = encode(ids)
            vectors: Tensor = whole[0] if isinstance(whole, tuple) else whole
            return vectors
        part, length = self.part, ids.shape[1]
        dtype = part.transformer.get_cast_dtype()
        x = part.token_embedding(ids).to(dtype) + part.positional_embedding[:length].to(dtype)
        x = part.ln_final(part.transformer(x, attn_mask=part.attn_mask[:length, :length]))
        if _pooling(part) == "argmax":  # the end token has the largest id
            ends = ids.argmax(dim=-1)
        else:
            end: int = part.eos_id if hasattr(part, "eos_id") else part.text_eos_id
            ends = torch.eq(ids, end).int().argmax(dim=-1)
        pooled: Tensor = x[range(len(x)), ends]
        projection = part.text_projection
        if projection is None:
            return pooled
        return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection

    def token_embedding(self) -> nn.Module:
        """The word embedding."""
        if hasattr(self.part, "token_embedding"):
            found: nn.Module = self.part.token_embedding
            return found
        inner: Any = getattr(self.part, "transformer", None)
        if hasattr(inner, "get_input_embeddings"):
            found = inner.get_input_embeddings()
            return found
        return super().token_embedding()


def _pooling(part: Any) -> str:
    """How a text tower reads a text off its tokens; old models and new ones name it otherwise."""
    return str(getattr(part, "text_pool_type", getattr(part, "pool_type", "")))


def _is_trimmable(part: Any) -> bool:
    causal = getattr(part, "attn_mask", None) is not None
    plain = getattr(part, "cls_emb", None) is None and hasattr(part, "positional_embedding")
    return causal and plain and _pooling(part) in ("argmax", "eos")


def wrap_open_clip(
    model: Any, tokenizer: Any, transform: Any = None, name: str = "object"
) -> DualEncoder:
    """An open_clip model as a dual encoder; its parameters are shared, not copied.

    Args:
        model: The model.
        tokenizer: Its tokenizer, from `open_clip.get_tokenizer`.
        transform: Its evaluation transform; None makes the one that open_clip would have made.
        name: What it was loaded from.

    Raises:
        ConfigError: If it is no dual encoder, or its tokenizer is missing.
    """
    kind = type(model).__name__
    if not all(hasattr(model, name) for name in ("visual", "encode_text", "logit_scale")):
        raise ConfigError(
            f"{kind} is not a dual encoder of open_clip or Transformers: join a vision encoder and "
            "a text encoder by DualEncoder.join"
        )
    if tokenizer is None:
        raise ConfigError(
            f"{kind} was handed in without its tokenizer: pass "
            "tokenizer=open_clip.get_tokenizer(ARCH)"
        )
    return DualEncoder(
        OpenClipImageTower(model, transform or open_clip_transform(model.visual)),
        OpenClipTextTower(model, tokenizer),
        logit_scale=model.logit_scale,
        logit_bias=getattr(model, "logit_bias", None),
        name=name,
    ).eval()


def load_open_clip(name: str, *, pretrained: bool = True) -> DualEncoder:
    """The dual encoder "open_clip:ARCH/PRETRAINED".

    Weights that were trained with QuickGELU get it, whatever the architecture's name says;
    open_clip itself only warns.

    Args:
        name: Its name; ARCH may be open_clip's "hf-hub:REPO" or "local-dir:FOLDER".
        pretrained: Whether to fetch weights; without, they are random.

    Raises:
        CheckpointError: If open_clip has no such model, or cannot fetch it.
        MissingExtraError: If open_clip is not installed.
    """
    library = open_clip_library()
    rest = name.partition(":")[2]
    with loading(name, "a model with its tokenizer"):
        model, _, transform = open_clip_model(rest, pretrained, VisionConfig(name=name))
        arch = rest if ":" in rest else rest.partition("/")[0]
        return wrap_open_clip(model, library.get_tokenizer(arch), transform, name)
