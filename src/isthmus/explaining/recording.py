"""What a language model computes on its way, recorded by hooks during one forward pass.

Models are loaded with attention kernels that never hold their weights. While a recording lasts the
language model computes with Transformers' own "eager" attention, which does; what it was set to is
put back afterwards. Only the rows of the positions that are asked for are kept, layer by layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from isthmus.model.backbones.language import LanguageModel
from isthmus.model.fusion import Fusion

IMPLEMENTATION = "_attn_implementation_internal"
"""Where a Transformers configuration keeps which attention a model computes."""


@contextmanager
def eager_attention(model: nn.Module) -> Iterator[None]:
    """While it lasts, a Transformers model computes attention that tells its weights.

    Example:
        >>> from isthmus.model.backbones.tiny import tiny_language_model
        >>> model = tiny_language_model("opt")
        >>> with eager_attention(model):
        ...     model.config._attn_implementation
        'eager'
        >>> model.config._attn_implementation
        'sdpa'
    """
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    before = [(c, getattr(c, IMPLEMENTATION)) for c in configs.values() if _has_one(c)]
    try:
        for config, _ in before:
            setattr(config, IMPLEMENTATION, "eager")
        yield
    finally:
        for config, implementation in before:
            setattr(config, IMPLEMENTATION, implementation)


def _has_one(config: Any) -> bool:
    return hasattr(config, IMPLEMENTATION)


@dataclass
class Recorded:
    """What was recorded in a forward pass over one row. Letters as in `explanation`.

    Attributes:
        attention: (T, H, L) of each layer that tells its weights, by its number.
        blocks: (T, H, P, M) of each gated block, by the number of its layer.
        states: (S, D) hidden states of the positions that were asked for, by how many layers
            they have been through.
        last: (1, L, D) hidden states behind the last layer.
        head_input: (1, ..., D) what the head was given.
        tail: The modules between the last layer and the head, in order.
    """

    attention: dict[int, Tensor] = field(default_factory=dict)
    blocks: dict[int, Tensor] = field(default_factory=dict)
    states: dict[int, Tensor] = field(default_factory=dict)
    last: Tensor | None = None
    head_input: Tensor | None = None
    tail: list[nn.Module] = field(default_factory=list)


class Recorder:
    """Records a forward pass of a language model, as hooks for `LanguageModel.hooked`.

    Args:
        language: The language model.
        fusion: The fusion, whose blocks run inside of it.
        queries: Positions whose attention is kept.
        places: Positions whose hidden states are kept.
        depths: After how many layers, from 1.
    """

    def __init__(
        self,
        language: LanguageModel,
        fusion: Fusion,
        queries: Sequence[int],
        places: Sequence[int],
        depths: Sequence[int],
    ) -> None:
        self.language, self.fusion = language, fusion
        self.queries, self.places, self.depths = list(queries), list(places), set(depths)
        self.found = Recorded()
        self._open = 0  # modules of the tail that are under way
        self._past_layers = False

    def hooks(self) -> list[RemovableHandle]:
        """Registers the hooks."""
        handles: list[Any] = []
        layers = self.language.layers
        for number, layer in enumerate(layers):
            for name, module in layer.named_modules():
                if name:
                    handles.append(module.register_forward_hook(self._attention(number)))
            handles.append(layer.register_forward_hook(self._layer(number + 1)))
        for name, block in self.fusion.blocks.items():
            if callable(getattr(block, "weights", None)):
                handles.append(block.register_forward_pre_hook(self._block(int(name))))
        inside = {id(m) for m in layers.modules()}
        for module in self.language.model.modules():
            if id(module) in inside or any(m is layers for m in module.modules()):
                continue
            handles.append(module.register_forward_pre_hook(self._tail_begins))
            handles.append(module.register_forward_hook(self._tail_ends))
        return handles

    def _attention(self, number: int) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            """Keeps the weights of the attention; modules around it may hand them on."""
            if number in self.found.attention or not isinstance(output, tuple) or len(output) < 2:
                return
            weights = output[1]
            if isinstance(weights, Tensor) and weights.ndim == 4 and _is_square(weights):
                self.found.attention[number] = _kept(weights[0][:, self.queries].transpose(0, 1))

        return keep

    def _layer(self, depth: int) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            if depth in self.depths:
                self.found.states[depth] = states[0, self.places].detach()
            if depth == len(self.language.layers):
                self.found.last, self._past_layers = states.detach(), True

        return keep

    def _block(self, number: int) -> Any:
        def keep(module: Any, args: Any) -> None:
            self.found.blocks[number] = _kept(module.weights(*args)[0, self.queries])

        return keep

    def _tail_begins(self, module: nn.Module, args: Any) -> None:
        if not self._past_layers:
            return
        if self._open == 0:
            if module is self.language.output_embedding:
                self.found.head_input = args[0].detach()
                self._past_layers = False
                return
            self.found.tail.append(module)
        self._open += 1

    def _tail_ends(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._past_layers and self._open:
            self._open -= 1


def _is_square(weights: Tensor) -> bool:
    """Whether weights (1, H, L, L) are those of all positions of one row over the same."""
    return len(weights) == 1 and weights.shape[-1] == weights.shape[-2]


def _kept(weights: Tensor) -> Tensor:
    """Weights in float32 on the CPU."""
    return weights.detach().to("cpu", torch.float32)
