"""What a model is made of: parameters, visual tokens and FLOPs, part by part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from isthmus.config.registry import FUSIONS
from isthmus.model.layout import Layout
from isthmus.model.media.base import Ranging


@dataclass(frozen=True)
class Part:
    """Parameters of one part.

    Attributes:
        name: "vision", "language", "connector", "fusion" or "special tokens".
        what: What it is.
        frozen: Number of frozen parameters.
        trained: Number of trained parameters.
    """

    name: str
    what: str
    frozen: int
    trained: int


@dataclass(frozen=True)
class Summary:
    """A model's parts and the cost of an image.

    Attributes:
        parts: The parts in the order an image meets them.
        visual_tokens: Visual tokens M that an image becomes, at most.
        text_positions: Positions of the language model's sequence that an image takes, at most.
        flops: Floating-point operations per image by part (a multiply-add counts as two), of one
            that becomes so many tokens. The fusion's are those of projecting an image's K and V.
        usual_tokens: Visual tokens of an image of 640 x 480 pixels, where images differ.
    """

    parts: tuple[Part, ...]
    visual_tokens: int
    text_positions: int
    flops: dict[str, int]
    usual_tokens: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{'part':<16}{'frozen':>12}{'trained':>12}{'GFLOP/image':>16}  what"]
        for part in self.parts:
            cost = self.flops.get(part.name)
            gflop = "-" if cost is None else f"{cost / 1e9:.3f}"
            lines.append(
                f"{part.name:<16}{part.frozen:>12,}{part.trained:>12,}{gflop:>16}  {part.what}"
            )
        frozen = sum(p.frozen for p in self.parts)
        trained = sum(p.trained for p in self.parts)
        total = sum(self.flops.values()) / 1e9
        lines.append(f"{'total':<16}{frozen:>12,}{trained:>12,}{total:>16.3f}")
        most = "" if self.usual_tokens is None else f"at most, {self.usual_tokens} mostly, "
        lines.append(
            f"an image becomes {self.visual_tokens} visual tokens {most}and takes "
            f"{self.text_positions} position(s) of the text"
        )
        return "\n".join(lines)


def count(module: nn.Module) -> tuple[int, int]:
    """Frozen and trained parameters of a module."""
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    return frozen, sum(p.numel() for p in module.parameters() if p.requires_grad)


def flops_of(module: Callable[..., Any], *inputs: torch.Tensor) -> int:
    """Floating-point operations of one call, counted while it runs."""
    # with gradients on: the counter's module tracker fails on parameters that are inputs without
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return int(counter.get_total_flops())


def largest_layout(model: Any) -> Layout:
    """The longest layout that an image can have: that of the medium that is asked first."""
    ranging = [medium for medium in model.media if isinstance(medium, Ranging)]
    layout: Layout = ranging[0].largest(model) if ranging else model.layout
    return layout


def passes(model: Any) -> int:
    """How often the encoder and the connector run for an image, at most: once a tile."""
    return max(1, largest_layout(model).holes // int(model.connector.num_tokens))


def summary_of(model: Any) -> Summary:
    """What a `VisionLanguageModel` is made of, and what an image costs in it."""
    height, width = model.vision.image_size
    pixels = torch.zeros(1, 3, height, width, device=model.device)
    pixels = pixels.to(next(model.vision.parameters()).dtype)
    features = model.vision(pixels)
    connected = features.to(next(model.connector.parameters(), features).dtype)
    flops = {
        "vision": flops_of(model.vision.eager, pixels),
        "connector": flops_of(model.connector, connected),
    }
    with torch.no_grad():
        visual = model.connector(connected)
    if cost := flops_of(model.fusion.project, visual):
        flops["fusion"] = cost
    layout, usual = largest_layout(model), None
    tokens = int(model.connector.num_tokens)
    if ranging := [m for m in model.media if isinstance(m, Ranging)]:
        flops |= {name: cost * passes(model) for name, cost in flops.items()}
        tokens, usual = layout.holes or tokens * passes(model), ranging[0].usual(model).holes
    names = ", ".join(model.special_tokens.names)
    described = {
        "vision": (model.vision, model.config.vision.name),
        "connector": (model.connector, type(model.connector).__name__),
        "fusion": (model.fusion, FUSIONS.name_of(type(model.config.fusion))),
        "special tokens": (model.special_tokens, names or "of the language model's vocabulary"),
        "language": (model.language, model.config.language.name),
    }
    for medium in model.media:
        if isinstance(medium, torch.nn.Module):
            described[str(medium.name)] = (medium, type(medium).__name__)
    parts = tuple(Part(name, what, *count(m)) for name, (m, what) in described.items())
    return Summary(parts, tokens, len(layout), flops, usual)
