"""Where the layers of a language model are put, in the values that Transformers takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from isthmus.errors import ConfigError, suggestion

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways in which Transformers finds a map itself."""

_DEVICE = re.compile(r"cpu|disk|mps|(cuda|xpu|npu)(:\d+)?|\d+")
_SIZE = re.compile(r"\d+(\.\d+)?\s*[KMGT]i?B", re.IGNORECASE)


def checked_map(value: Any) -> str | dict[str, int | str] | None:
    """A `device_map` as Transformers takes it: devices of a number are numbers.

    Args:
        value: One of `STRATEGIES`, a device, or a mapping of names of modules to devices.

    Raises:
        ConfigError: If it is none of these.

    Example:
        >>> checked_map({"model.layers.0": "1", "lm_head": "cpu"})
        {'model.layers.0': 1, 'lm_head': 'cpu'}
    """
    if value is None or (isinstance(value, str) and value in STRATEGIES):
        return value
    if isinstance(value, Mapping) and value:
        return {str(name): _device(own, f'device_map["{name}"]') for name, own in value.items()}
    if isinstance(value, (str, int)):
        return {"": _device(value, "device_map")}
    raise ConfigError(
        f"device_map = {value!r}: expected one of {', '.join(STRATEGIES)}, a device, or a mapping "
        "of names of modules to devices"
    )


def checked_memory(value: Any) -> dict[int | str, int | str] | None:
    """A `max_memory` as Accelerate takes it: how much of each device may be filled with weights.

    Args:
        value: A mapping of devices (0, "cpu", "disk") to bytes or sizes ("120GiB").

    Raises:
        ConfigError: If it is no such mapping.

    Example:
        >>> checked_memory({"0": "120GiB", "cpu": 1000})
        {0: '120GiB', 'cpu': 1000}
    """
    if value is None:
        return None
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(
            f'max_memory = {value!r}: expected a mapping of devices to sizes, as {{0: "120GiB"}}'
        )
    found: dict[int | str, int | str] = {}
    for name, size in value.items():
        number = isinstance(size, int) and not isinstance(size, bool) and size >= 0
        if not number and not (isinstance(size, str) and _SIZE.fullmatch(size)):
            raise ConfigError(
                f'max_memory["{name}"] = {size!r}: expected bytes, or a size such as "120GiB"'
            )
        found[_device(name, "max_memory")] = size
    return found


def _device(value: Any, where: str) -> int | str:
    text = str(value)
    if isinstance(value, bool) or not _DEVICE.fullmatch(text):
        raise ConfigError(
            f"{where} = {value!r}: {suggestion(text, ('0', 'cpu', 'cuda:0', 'disk'))}"
        )
    return int(text) if text.isdigit() else text
