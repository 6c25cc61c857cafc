"""Text encoders: Transformers encoders such as BERT, whose token vectors are pooled to one.

Letters: K texts, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.errors import (
    ConfigError,
    PromptError,
    loading,
    suggestion,
)
from isthmus.model.backbones.rotary import exact_frequencies

TextPooling = Literal["mean", "first"]
POOLINGS = ("mean", "first")
FORMS = ("asset:NAME", "hf:REPO", "tiny-text")
_NO_LIMIT = 10**6
"""Tokenizers without a limit say some enormous number."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Which text encoder, and how its tokens become one vector."""

    name: str
    """"asset:NAME", "hf:REPO" or "tiny-text"."""
    pooling: TextPooling = "mean"
    """The mean over a text's tokens (Sentence-BERT, arXiv 1908.10084), or the first of them."""
    normalize: bool = True
    """Whether vectors are brought to length 1, as sentence encoders are trained."""


class TextEncoder(nn.Module):
    """A frozen text encoder.

    Args:
        model: A Transformers encoder that gives `last_hidden_state`.
        tokenizer: Its tokenizer.
        config: What it was loaded from; written into checkpoints.

    Attributes:
        width: Width D of its vectors.
        context_length: Most tokens of a text.
    """

    def __init__(self, model: Any, tokenizer: Any, config: TextConfig) -> None:
        super().__init__()
        if config.pooling not in POOLINGS:
            raise ConfigError(
                f'unknown pooling "{config.pooling}": {suggestion(config.pooling, POOLINGS)}'
            )
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.width = int(model.config.hidden_size)
        positions = int(getattr(model.config, "max_position_embeddings", 0) or _NO_LIMIT)
        self.context_length = min(positions, int(tokenizer.model_max_length))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> TextEncoder:
        """It never leaves evaluation mode: a text has the same vector twice."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TextEncoder:
        with exact_frequencies(self):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text's token ids, special tokens included, whatever its length."""
        found: list[list[int]] = self.tokenizer(
            list(texts), padding=False, truncation=False, verbose=False
        )["input_ids"]
        return found

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors (K, D) of tokens (K, L)."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        hidden: Tensor = output.last_hidden_state
        if self.config.pooling == "first":
            pooled = hidden[:, 0]
        else:
            kept = attention_mask[..., None].to(hidden.dtype)
            pooled = (hidden * kept).sum(1) / kept.sum(1).clamp(min=1)
        return F.normalize(pooled, dim=-1) if self.config.normalize else pooled


def check_lengths(texts: Sequence[str], rows: Sequence[Sequence[int]], most: int) -> None:
    """Refuses texts that do not fit, by name.

    Raises:
        PromptError: If a text has more tokens than the encoder reads.
    """
    long = [(t, len(r)) for t, r in zip(texts, rows, strict=True) if len(r) > most]
    if long:
        text, length = long[0]
        shown = text if len(text) <= 100 else f"{text[:100]}..."
        more = f", and {len(long) - 1} more are too long" if len(long) > 1 else ""
        raise PromptError(
            f'"{shown}" has {length} tokens, and the text encoder reads at most {most}{more}: '
            "shorten it; nothing is cut silently"
        )


def load_text(
    source: str | TextConfig | nn.Module,
    *,
    tokenizer: Any = None,
    pooling: TextPooling | None = None,
    normalize: bool | None = None,
) -> TextEncoder:
    """Loads a text encoder by name, or wraps one.

    Args:
        source: "asset:minilm-l6-v2", "hf:REPO" (a hub name or a folder), "tiny-text", a
            `TextConfig`, or a Transformers encoder.
        tokenizer: The tokenizer, where the encoder is handed in as an object.
        pooling: In place of the configuration's.
        normalize: In place of the configuration's.

    Raises:
        ConfigError: If the name has an unknown form, or an object comes without its tokenizer.
        CheckpointError: If Transformers cannot load it.

    Example:
        >>> load_text("tiny-text").width
        32
    """
    given = {"pooling": pooling, "normalize": normalize}
    changes: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    if isinstance(source, TextEncoder):
        if changes or tokenizer is not None:
            raise ConfigError("got a TextEncoder, which is fixed, and options for it")
        return source
    if isinstance(source, nn.Module):
        if tokenizer is None:
            raise ConfigError(
                f"{type(source).__name__} was handed in without its tokenizer: pass tokenizer="
            )
        config = TextConfig(name=f"object:{type(source).__name__}", **changes)
        return TextEncoder(source, tokenizer, config)
    config = replace(TextConfig(name=source) if isinstance(source, str) else source, **changes)
    return TextEncoder(*_fetch(config.name), config)


@contextmanager
def no_bar_for_files(place: str) -> Iterator[None]:
    """Without Transformers' progress bar where a model is a folder, which is read in a blink."""
    from transformers.utils import logging

    hide = Path(place).is_dir() and logging.is_progress_bar_enabled()
    if hide:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            logging.enable_progress_bar()


def _fetch(name: str) -> tuple[Any, Any]:
    """Model and tokenizer behind a name."""
    from transformers import AutoModel, AutoTokenizer

    if name == "tiny-text":
        from isthmus.model.backbones.tiny import byte_tokenizer, tiny_text_model

        return tiny_text_model(), byte_tokenizer()
    scheme, _, rest = name.partition(":")
    if scheme not in ("asset", "hf") or not rest:
        raise ConfigError(f'unknown text encoder "{name}": {suggestion(name, FORMS)}')
    with loading(name, "a folder or a model"):
        if scheme == "asset":
            from isthmus.assets import registry as assets

            rest = str(assets.fetch_asset(rest))
        with no_bar_for_files(rest):
            model = AutoModel.from_pretrained(rest, dtype=torch.float32, trust_remote_code=False)
        return model, AutoTokenizer.from_pretrained(rest, trust_remote_code=False)
