"""Keys and values that a language model keeps: under which name they go in and come out.

Transformers calls them `cache` since 5.24, and `past_key_values` before; a model from elsewhere may
still do so. This is the one place that knows.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

NAMES = ("cache", "past_key_values")


def as_states(model: nn.Module, states: Any) -> dict[str, Any]:
    """States as the keyword that a language model takes them by.

    Args:
        model: A causal language model of Transformers, or of that manner.
        states: Its states, a Transformers `Cache`.

    Example:
        >>> from isthmus.model.backbones.language import load_language
        >>> len(as_states(load_language("tiny-lm").model, None))
        1
    """
    takes = inspect.signature(model.forward).parameters
    return {next((name for name in NAMES if name in takes), NAMES[-1]): states}


def states_in(named: Mapping[str, Any]) -> Any:
    """The states in a model's output or in the keywords of a call; None if there are none."""
    return next((named[name] for name in NAMES if named.get(name) is not None), None)
