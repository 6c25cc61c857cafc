"""Inline fusion: visual tokens take the place of `<image>` in the text (LLaVA, Liu et al. 2023)."""

from __future__ import annotations

from torch import Tensor, nn


class InlineFusion(nn.Module):
    """Puts visual tokens where `<image>` stands.

    The tag is repeated once per visual token before embedding, so positions and padding need no
    second book-keeping.

    Args:
        tokens: Visual tokens M of one picture.

    Attributes:
        tokens_in_text: How often the tag is repeated, M.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens_in_text = tokens

    def embed(self, embeddings: Tensor, is_image: Tensor, visual: Tensor) -> Tensor:
        """Replaces the embeddings of the tags.

        Args:
            embeddings: (B, L, D) embeddings of the expanded text.
            is_image: (B, L) bool, True at P * M places.
            visual: (P, M, D) visual tokens of the pictures in reading order.

        Returns:
            (B, L, D) in the precision of `embeddings`.
        """
        source = visual.to(embeddings.dtype).flatten(0, 1)
        return embeddings.masked_scatter(is_image[..., None], source)
