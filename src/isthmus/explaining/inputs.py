"""A prompt with its answer behind it, as the model reads them, and how likely the answer is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isthmus.model.batch import Batch
from isthmus.model.layout import Layout
from isthmus.model.media.base import stacked
from isthmus.model.vlm import VisionLanguageModel


@dataclass(frozen=True)
class Inputs:
    """A prompt and its answer.

    Attributes:
        ids: The prompt's tokens.
        answer: The answer's T tokens, at least one.
        layouts: The images' layouts.
    """

    ids: tuple[int, ...]
    answer: tuple[int, ...]
    layouts: tuple[Layout, ...]

    @property
    def queries(self) -> list[int]:
        """The positions (T,) that the answer's tokens are read off."""
        return list(range(len(self.ids) - 1, len(self.ids) + len(self.answer) - 1))

    def batch(self, visual: Sequence[Sequence[Tensor]], device: torch.device) -> Batch:
        """Rows of the same text, each with visual tokens (M_i, D_visual) of its own images."""
        row = torch.tensor([[*self.ids, *self.answer[:-1]]])
        return Batch(
            input_ids=row.repeat(len(visual), 1),
            attention_mask=torch.ones_like(row).repeat(len(visual), 1),
            visual=stacked([own for of_row in visual for own in of_row]),
            layouts=self.layouts * len(visual),
        ).to(device)


def logits_of(
    model: VisionLanguageModel, inputs: Inputs, visual: Sequence[Sequence[Tensor]], **more: Any
) -> Tensor:
    """Logits (B, T, V) that the answer's tokens are read off, a row for each set of images.

    Args:
        model: The model.
        inputs: The prompt and its answer.
        visual: Visual tokens of each row's images.
        **more: More for the language model's `forward`.
    """
    batch = inputs.batch(visual, model.device)
    places = model.language.places(batch.attention_mask, None)
    with model.in_sight(batch) as embeddings:
        found: Tensor = model.language.model(
            inputs_embeds=embeddings,
            logits_to_keep=len(inputs.answer),
            use_cache=False,
            **places,
            **more,
        ).logits
    return found[:, -len(inputs.answer) :]


def of_answer(logits: Tensor, answer: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Log-probabilities (B, T) of an answer's tokens, and which rows (B,) would give it, greedily.

    Example:
        >>> logprobs, given = of_answer(torch.tensor([[[0.0, 9.0], [0.0, 9.0]]]), [1, 0])
        >>> logprobs.shape, given.tolist()
        (torch.Size([1, 2]), [False])
    """
    ids = torch.tensor(list(answer), device=logits.device)
    known = logits.float().log_softmax(dim=-1)
    found = known.gather(2, ids[None, :, None].expand(len(logits), -1, 1)).squeeze(2)
    return found.cpu(), (logits.argmax(dim=-1) == ids).all(dim=1).cpu()
