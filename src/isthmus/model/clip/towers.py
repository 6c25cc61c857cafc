"""What a dual encoder's two towers must offer, whatever library they are from.

Letters: B images, K texts, L tokens, D width of the common space.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from isthmus.errors import ConfigError, InputError
from isthmus.model.backbones.text import check_lengths

Tokens = dict[str, Tensor]
"""What a text tower reads: `input_ids` (K, L) and, in some families, `attention_mask` (K, L)."""


class ImageTower(nn.Module):
    """Pixels to vectors.

    Attributes:
        image_size: (H, W) of the pixels.
    """

    image_size: tuple[int, int]

    def preprocess(self, image: Image.Image) -> Tensor:
        """Pixels (3, H, W), float32, of an image."""
        raise NotImplementedError

    def forward(self, pixels: Tensor) -> Tensor:
        """Vectors (B, D), of any length, of pixels (B, 3, H, W)."""
        raise NotImplementedError


class TextTower(nn.Module):
    """Tokens to vectors.

    Attributes:
        context_length: Most tokens of a text.
        pad_id: Token id of padding.
        pads_left: Whether padding stands before a text.
        fixed_length: Whether a text's vector depends on how far it is padded, so that padding
            must always reach the context length (SigLIP); else padding is trimmed.
        masked: Whether padding is told by an attention mask.
        prefix: Special tokens in front of a text: 1 in CLIP and BERT, 0 in SigLIP.
    """

    context_length: int
    pad_id: int
    pads_left: bool = False
    fixed_length: bool = False
    masked: bool = False
    prefix: int = 1

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text's token ids, special tokens included, neither padded nor cut."""
        raise NotImplementedError

    def forward(self, tokens: Tokens) -> Tensor:
        """Vectors (K, D), of any length."""
        raise NotImplementedError

    def token_embedding(self) -> nn.Module:
        """The module that looks up a vector for each token id."""
        raise ConfigError(
            f"{type(self).__name__} does not tell where its token embedding is, so no context "
            'can be learned through it: choose another method than "coop"'
        )

    def tokenize(self, texts: Sequence[str], *, trim: bool = True) -> Tokens:
        """Tokens of texts, padded as the family pads.

        Args:
            texts: The texts.
            trim: Whether padding ends with the longest text, where that changes no vector;
                otherwise it reaches the context length.

        Raises:
            PromptError: If a text has more tokens than the context; it is named, never cut.
            InputError: If there is no text, or one is no string.
        """
        texts = checked_texts(texts)
        rows = self.token_ids(texts)
        check_lengths(texts, rows, self.context_length)
        return self.pad(rows, trim=trim)

    def pad(self, rows: Sequence[Sequence[int]], *, trim: bool = True) -> Tokens:
        """Rows of token ids as tensors (K, L); see `tokenize`."""
        longest = max(len(row) for row in rows)
        length = longest if trim and not self.fixed_length else self.context_length
        ids = torch.full((len(rows), length), self.pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            place = slice(length - len(row), length) if self.pads_left else slice(0, len(row))
            ids[i, place] = torch.tensor(row, dtype=torch.long)
            mask[i, place] = 1
        return {"input_ids": ids, "attention_mask": mask} if self.masked else {"input_ids": ids}


def checked_texts(texts: Sequence[str]) -> list[str]:
    """Texts as a list.

    Raises:
        InputError: If it is one string, empty, or holds something other than strings.
    """
    if isinstance(texts, str):
        raise InputError(f'got the one string "{texts[:60]}": expected a list of texts')
    found = list(texts)
    if not found:
        raise InputError("got no texts: expected at least one")
    for text in found:
        if not isinstance(text, str):
            raise InputError(f"got {type(text).__name__} among the texts: expected strings")
    return found


@contextmanager
def context_in_place(tower: TextTower, context: Tensor) -> Iterator[None]:
    """Within it, learned vectors stand in a text's first places in place of its tokens'.

    The tokens must have as many places free behind the tower's prefix. It is a hook on the token
    embedding, so that positions, masks and everything after are the tower's own.

    Args:
        tower: The text tower.
        context: Vectors (M, W) for all texts.
    """
    first, many = tower.prefix, context.shape[0]

    def replace(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        middle = context.to(output.dtype).expand(output.shape[0], -1, -1)
        return torch.cat([output[:, :first], middle, output[:, first + many :]], dim=1)

    handle = tower.token_embedding().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
