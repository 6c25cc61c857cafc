"""The next token of each row: the likeliest, or drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chooser:
    """How the next token is found.

    Attributes:
        temperature: 0 takes the likeliest.
        top_p: Draw from the likeliest tokens that hold this share (Holtzman et al. 2020).
        top_k: Draw from so many of the likeliest; 0 for all.
        seed: Of the drawing.

    Example:
        >>> chooser = Chooser(temperature=0.0)
        >>> chooser(torch.tensor([[0.0, 2.0, 1.0]]), [chooser.generator(0)])
        tensor([1])
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def generator(self, sample: int) -> torch.Generator:
        """The random numbers of one sample, on the CPU whatever the model runs on."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + sample)

    def __call__(self, logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Tokens (B,) from logits (B, V), each row with its own random numbers."""
        if self.temperature <= 0:
            return logits.argmax(dim=-1)
        scaled = logits.float() / self.temperature
        if 0 < self.top_k < scaled.shape[1]:
            least = scaled.topk(self.top_k, dim=-1).values[:, -1:]
            scaled = scaled.masked_fill(scaled < least, -torch.inf)
        if self.top_p < 1:
            ordered, index = scaled.softmax(dim=-1).sort(dim=-1, descending=True)
            # a token stays while what is likelier than it holds less than the share
            gone = ordered.cumsum(dim=-1) - ordered >= self.top_p
            scaled = scaled.masked_fill(gone.scatter(1, index, gone), -torch.inf)
        shares = scaled.softmax(dim=-1).cpu()
        drawn = [
            torch.multinomial(row, 1, generator=generator)
            for row, generator in zip(shares, generators, strict=True)
        ]
        return torch.cat(drawn).to(logits.device)
