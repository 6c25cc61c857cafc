"""Linear layers that compute in int8 where no gradient is wanted, adapters in their weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.cpu import int8_kernel
from isthmus.model.backbones.int8_map import Int8Map

NARROWEST = 128
"""Layers with fewer inputs or outputs stay as they are: they gain nothing."""
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names that Transformers gives to layers of one module that are called with the same inputs."""


class LowRankTerm(Protocol):
    """What an adapter adds to a linear map, `scale * B A x`: `fusion.adapter.LowRank`."""

    scale: float
    lora_A: nn.Linear
    lora_B: nn.Linear

    def __call__(self, states: Tensor, output: Tensor, elsewhere: Tensor | None) -> Tensor:
        """The map's output with the term added."""
        ...


class Sight(Protocol):
    """On which tokens of a pass adapters act: `fusion.adapter.Adapted`.

    Attributes:
        some: Whether they act on any.
        elsewhere: (tokens, 1) bool, the tokens that they do not act on; None where they act on all.
    """

    some: bool
    elsewhere: Tensor | None


class Adapters:
    """The adapters that act on the layers of a language model in the pass under way.

    Attributes:
        terms: The term of each layer that has one.
        sight: On which tokens; None for nowhere.
    """

    def __init__(self) -> None:
        self.terms: dict[nn.Module, LowRankTerm] = {}
        self.sight: Sight | None = None

    def act(self, terms: dict[nn.Module, LowRankTerm], sight: Sight) -> _Until:
        """Lets adapters act until what is returned is removed, as a hook is."""
        before = self.terms, self.sight
        self.terms, self.sight = terms, sight
        return _Until(self, before)


class _Until:
    def __init__(self, adapters: Adapters, before: tuple[Any, Any]) -> None:
        self._adapters, self._before = adapters, before

    def remove(self) -> None:
        """Puts back what was there."""
        self._adapters.terms, self._adapters.sight = self._before


class Together:
    """Layers that are called with the same inputs, one after the other.

    The first that is called computes for all; the others take what is theirs. Where adapters act,
    the maps are those of the weights with the adapters' terms added: they then cost nothing.

    Args:
        layers: The layers, in an order of their own.
        adapters: What acts on the language model's layers.
    """

    def __init__(self, layers: list[Int8Linear], adapters: Adapters) -> None:
        self.layers = layers
        self.adapters = adapters
        self._forget()

    def _forget(self) -> None:
        self._maps: dict[bool, Int8Map | None] = {}
        self._packed_of: dict[bool, list[tuple[int, int]]] = {}
        self._tensors_of: dict[bool, list[tuple[dict[str, Any], str]]] = {}
        self._terms_of: dict[nn.Module, LowRankTerm] | None = None
        # in one, since another thread may put its own there at any time
        self._last: tuple[Tensor, dict[nn.Module, Tensor]] | None = None

    def __getstate__(self) -> dict[str, Any]:  # what is packed is no part of a copy
        return {"layers": self.layers, "adapters": self.adapters}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def of(self, layer: Int8Linear, states: Tensor) -> Tensor | None:
        """A layer's outputs (..., N) of inputs (..., K); None without a kernel."""
        last = self._last
        if last is None or last[0] is not states or layer not in last[1]:
            found = self._computed(states.flatten(0, -2))
            if found is None:
                return None
            parts = found.view(*states.shape[:-1], -1)
            if len(self.layers) == 1:
                return parts
            sizes = [each.out_features for each in self.layers]
            each = torch.split(parts, sizes, dim=-1)
            last = self._last = states, dict(zip(self.layers, each, strict=True))
        mine = last[1].pop(layer)
        if not last[1]:
            self._last = None
        return mine

    def all(self, states: Tensor, over: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
        """Outputs (M, N) of all layers, side by side.

        Args:
            states: (M, K) inputs.
            over: (M, 1) what each token's inputs are to be divided by.
            onto: (M, N) what the outputs are added to.
        """
        found = None if _exactly.get() else self._computed(states, over, onto)
        if found is not None:
            return found
        if over is not None:
            states = states / over
        parts = [layer(states) for layer in self.layers]
        found = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return found if onto is None else found.add_(onto)

    def _computed(
        self, states: Tensor, over: Tensor | None = None, onto: Tensor | None = None
    ) -> Tensor | None:
        sight = self.adapters.sight
        terms = self.adapters.terms
        if sight is None or not sight.some or not any(each in terms for each in self.layers):
            return self._by(False, states, over, onto)
        if sight.elsewhere is None:
            return self._by(True, states, over, onto)
        away = sight.elsewhere[:, 0]
        parts = []
        for adapted, rows in ((False, away), (True, ~away)):
            its = [None if t is None else t[rows] for t in (over, onto)]
            parts.append((rows, self._by(adapted, states[rows], *its)))
        found: Tensor | None = None
        for rows, part in parts:
            if part is None:
                return None
            if found is None:
                found = part.new_empty(len(states), part.shape[1])
            found[rows] = part
        return found

    def _by(
        self, adapted: bool, states: Tensor, over: Tensor | None, onto: Tensor | None
    ) -> Tensor | None:
        seen = self.adapters.terms if adapted else None
        if adapted not in self._tensors_of or self._terms_of is not seen is not None:
            self._look(adapted)
        own = [version(place[name]) for place, name in self._tensors_of[adapted]]
        if self._packed_of.get(adapted) != own:
            self._maps[adapted], self._packed_of[adapted] = self._packed(self._terms(adapted)), own
        found = self._maps[adapted]
        return None if found is None else found(states, over, onto)

    def _terms(self, adapted: bool) -> list[LowRankTerm | None]:
        return [self.adapters.terms.get(each) if adapted else None for each in self.layers]

    def _look(self, adapted: bool) -> None:
        """Notes where the weights are: to ask each module for its own is slow."""
        terms = [term for term in self._terms(adapted) if term is not None]
        modules = [*self.layers, *(part for t in terms for part in (t.lora_A, t.lora_B))]
        self._tensors_of[adapted] = [
            (module._parameters, name)
            for module in modules
            for name, own in module._parameters.items()
            if own is not None
        ]
        if adapted:
            self._terms_of = self.adapters.terms

    def _packed(self, terms: Sequence[LowRankTerm | None]) -> Int8Map | None:
        by = int8_kernel()
        if by is None:
            return None
        weights: list[Tensor] = []
        biases: list[Tensor] = []
        for layer, term in zip(self.layers, terms, strict=True):
            weight = layer.weight.detach()
            if term is not None:
                first, second = term.lora_A.weight.detach(), term.lora_B.weight.detach()
                weight = torch.addmm(weight, second.float(), first.float(), alpha=term.scale)
            weights.append(weight)
            none = weight.new_zeros(len(weight))
            biases.append(none if layer.bias is None else layer.bias.detach())
        bias = None if all(each.bias is None for each in self.layers) else torch.cat(biases)
        return Int8Map(torch.cat(weights) if len(weights) > 1 else weights[0], bias, by)


def version(weight: Tensor) -> tuple[int, int]:
    """Differs for other values, and for those that were changed in place."""
    # what was made in inference mode counts no changes
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


class Int8Linear(nn.Linear):
    """A linear layer that computes in int8 where no gradient is wanted, on a CPU in float32.

    A layer becomes one by `to_int8`. It keeps its weights, and computes with them where a gradient
    is wanted or it was moved or converted. What is packed is packed at the first call, and again
    after weights were replaced.
    """

    together: Together

    def forward(self, states: Tensor) -> Tensor:
        """As `nn.Linear`, with the term of an adapter that acts on it."""
        if (
            not torch.is_grad_enabled()
            and not _exactly.get()
            and states.device.type == "cpu"
            and states.dtype == self.weight.dtype == torch.float32
        ):
            found = self.together.of(self, states)
            if found is not None:
                return found
        output = F.linear(states, self.weight, self.bias)
        adapters = self.together.adapters
        term = adapters.terms.get(self)
        if term is None or adapters.sight is None or not adapters.sight.some:
            return output
        return term(states, output, adapters.sight.elsewhere)


_exactly: ContextVar[bool] = ContextVar("with the weights themselves", default=False)


@contextmanager
def exactly() -> Iterator[None]:
    """While it lasts, layers compute with their weights, not in int8.

    Example:
        >>> layers, states = nn.Sequential(nn.Linear(256, 256)), torch.ones(1, 256)
        >>> expected, turned = layers(states), to_int8(layers)
        >>> with torch.no_grad(), exactly():
        ...     torch.equal(layers(states), expected)
        True
    """
    token = _exactly.set(True)
    try:
        yield
    finally:
        _exactly.reset(token)


def to_int8(module: nn.Module) -> int:
    """Turns linear layers into `Int8Linear`, those that gain by it; how many it turned.

    Example:
        >>> to_int8(nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 2)))
        1
    """
    adapters, turned = Adapters(), 0
    for owner in list(module.modules()):
        left = {name: layer for name, layer in owner.named_children() if _gains(layer)}
        while left:
            first = next(iter(left))
            names = next((s for s in SIBLINGS if first in s), (first,))
            group: list[Any] = [left.pop(name) for name in names if name in left]
            together = Together(group, adapters)
            for layer in group:
                layer.__class__ = Int8Linear
                layer.together = together
            turned += len(group)
    return turned


def _gains(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and min(layer.in_features, layer.out_features) >= NARROWEST
