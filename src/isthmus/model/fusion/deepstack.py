"""Features that are added to the states of an image's tokens behind early decoder layers.

DeepStack (Meng et al. 2024, arXiv 2406.04334, section 3), as Qwen3-VL has it: the token that stands
in the text is that of the vision tower's last layer, and what earlier layers say is added behind
decoder layers 0, 1, ..., at the places of the image alone. So only the pass that reads the image
is concerned, and no token of text.

Letters: B rows, L tokens a row, T visual tokens in all, D the language model's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from isthmus.model.backbones.language import LanguageModel
from isthmus.model.fusion.sight import pass_of
from isthmus.model.fusion.visual import Visual, joined


@dataclass
class Deepstack:
    """What is added in the passes over one batch.

    Attributes:
        is_image: (B, L) bool, the places of all images.
        levels: (T, D) for each of the first decoder layers.
        here: (B', L') bool, the places in the pass under way; None where it has none.
        numbers: Which visual tokens these are.
    """

    is_image: Tensor
    levels: tuple[Tensor, ...]
    here: Tensor | None = None
    numbers: Tensor | None = None

    def advance(self, rows: int, length: int, past: int) -> None:
        """Looks at the tokens of the coming forward pass.

        Args:
            rows: Rows B' of the pass, a multiple of B (each row repeated, as beams are).
            length: Tokens L' of the pass.
            past: Tokens already in the language model's cache.
        """
        self.here = self.numbers = None
        if past >= self.is_image.shape[1]:
            return
        number = self.is_image.flatten().cumsum(dim=0).view_as(self.is_image) - 1
        repeat = rows // len(self.is_image)
        here = self.is_image[:, past : past + length].repeat_interleave(repeat, dim=0)
        of_pass = number[:, past : past + length].repeat_interleave(repeat, dim=0)
        self.here, self.numbers = here, of_pass[here]

    def hook(self, language: LanguageModel) -> list[RemovableHandle]:
        """Adds the features in a language model until the hooks are removed."""
        first = partial(_follow, self)
        handles = [language.model.register_forward_pre_hook(first, with_kwargs=True)]
        for number in range(len(self.levels)):
            layer = language.layers[number]
            handles.append(layer.register_forward_hook(partial(_add, self, number)))
        return handles


def deepstack_of(fusion: Any, is_image: Tensor, visual: Visual) -> Deepstack | None:
    """What a fusion adds behind decoder layers; None if nothing.

    Args:
        fusion: The fusion; one that adds something has `deepstack`, the number of layers.
        is_image: (B, L) bool, the places of all images; in front may stand places of tokens that
            came before.
        visual: Their visual tokens, what is to be added behind what stands in the text.
    """
    count = int(getattr(fusion, "deepstack", 0))
    if not count:
        return None
    _, *levels = joined(visual).chunk(1 + count, dim=-1)
    return Deepstack(is_image, tuple(levels))


def _follow(deepstack: Deepstack, module: nn.Module, args: Any, kwargs: Any) -> None:
    """A forward pre-hook of a language model: tells which tokens a pass is about."""
    deepstack.advance(*pass_of(args, kwargs))


def _add(deepstack: Deepstack, level: int, module: nn.Module, args: Any, output: Any) -> Any:
    """A forward hook of a decoder layer: adds a level at the places of images."""
    here, numbers = deepstack.here, deepstack.numbers
    if here is None or numbers is None or not len(numbers):
        return None
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    added = hidden[here] + deepstack.levels[level][numbers].to(hidden.device, hidden.dtype)
    changed = torch.masked_scatter(hidden, here[..., None], added)
    return (changed, *output[1:]) if isinstance(output, tuple) else changed
