"""Hooks that last for a forward pass, and how gradient checkpointing gets them again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch.utils.hooks import RemovableHandle

Hooks = Callable[[], Sequence[RemovableHandle]]
"""Registers forward hooks and returns their handles."""


class Again:
    """Registers hooks anew for as long as gradient checkpointing runs a layer a second time."""

    def __init__(self, hooks: Sequence[Hooks]) -> None:
        self.hooks = hooks
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> None:
        self._handles = [handle for register in self.hooks for handle in register()]

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
