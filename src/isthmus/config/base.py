"""What every configuration has in common: a frozen dataclass whose values are checked. No torch.

The types of the fields are the rule, wherever the values come from: a TOML file, `--set`, or
Python. `Annotated` types add a range:

    @dataclass(frozen=True, kw_only=True)
    class Resampler(Config):
        latents: Count = 64
        activation: Literal["gelu", "relu"] = "gelu"

    Resampler(latents=0)          ConfigError: Resampler.latents = 0: expected at least 1
    Resampler(activation="gelo")  ConfigError: ... did you mean "gelu"? Choices: gelu, relu
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from isthmus.errors import ConfigError, suggestion

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, for `Annotated`.

    Attributes:
        least: The least value.
        most: The largest value.
        above: Whether the least value itself is excluded.
    """

    least: float = -math.inf
    most: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        low = value > self.least if self.above else value >= self.least
        return low and value <= self.most and math.isfinite(value)

    def __str__(self) -> str:
        if self.least == -math.inf:
            return "a finite number" if self.most == math.inf else f"at most {self.most:g}"
        low = f"above {self.least:g}" if self.above else f"at least {self.least:g}"
        return low if self.most == math.inf else f"{low} and at most {self.most:g}"


Count = Annotated[int, Range(1)]
"""A number of things, at least one."""
NotNegative = Annotated[int, Range(0)]
"""A number of things, or none."""
Positive = Annotated[float, Range(0, above=True)]
"""A finite number above 0."""
Amount = Annotated[float, Range(0)]
"""A finite number, 0 or more."""
Share = Annotated[float, Range(0, 1)]
"""A part of a whole."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of every configuration: checks each field against its type when it is made.

    A list becomes a tuple and a whole number a float where the type says so. A subclass that has
    a `__post_init__` of its own calls `super().__post_init__()` first.

    Raises:
        ConfigError: If a value has another type, is none of the choices, or is out of range; the
            message names the field.
    """

    def __post_init__(self) -> None:
        for name, hint in field_types(type(self)).items():
            given = getattr(self, name)
            value = checked(given, hint, f"{type(self).__name__}.{name}")
            if value is not given:
                object.__setattr__(self, name, value)

    def toy(self) -> typing.Self:
        """The same at a size for trials (`isthmus train --smoke`); by default itself."""
        return self


def field_types(cls: Any) -> dict[str, Any]:
    """The types of a dataclass's fields by name, with their ranges."""
    if cls not in _FIELD_TYPES:
        hints = typing.get_type_hints(cls, include_extras=True)
        _FIELD_TYPES[cls] = {f.name: hints[f.name] for f in dataclasses.fields(cls)}
    return _FIELD_TYPES[cls]


_FIELD_TYPES: dict[Any, dict[str, Any]] = {}


def checked(value: Any, hint: Any, where: str) -> Any:
    """A value as the type that a hint says.

    Args:
        value: Any value; a mapping stands for a nested configuration.
        hint: A type, `Literal`, `Annotated` with a `Range`, a union with None, or `tuple[T, ...]`.
        where: What to call the value in a message.

    Raises:
        ConfigError: If it has another type, is none of the choices, or is out of range.

    Example:
        >>> checked(2, Annotated[float, Range(0, 1)], "train.final_lr")
        Traceback (most recent call last):
        ...
        isthmus.errors.ConfigError: train.final_lr = 2: expected at least 0 and at most 1
    """
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        inner, *bounds = typing.get_args(hint)
        found = checked(value, inner, where)
        for bound in bounds:
            if isinstance(bound, Range) and found not in bound:
                raise ConfigError(f"{where} = {value!r}: expected {bound}")
        return found
    if origin is Literal:
        choices = typing.get_args(hint)
        if not any(value == c and type(value) is type(c) for c in choices):
            known = suggestion(str(value), [str(c) for c in choices])
            raise ConfigError(f'{where} = "{value}": {known}')
        return value
    if origin in (types.UnionType, typing.Union):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        own = [o for o in options if o is not type(None)]
        fits = (o for o in own if dataclasses.is_dataclass(o) and isinstance(value, o))  # type: ignore[arg-type]
        return checked(value, next(fits, own[0]), where)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError(f"{where} = {value!r}: expected a list")
        item = typing.get_args(hint)[0]
        found = tuple(checked(v, item, f"{where}[{i}]") for i, v in enumerate(value))
        return value if isinstance(value, tuple) and _same(value, found) else found
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_mapping(hint, value, where)  # type: ignore[arg-type]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where} = {value!r}: expected {hint.__name__}")
    return value


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Builds a configuration from a table.

    Args:
        cls: A dataclass.
        values: Its fields by name.
        where: What to call the table in a message.

    Raises:
        ConfigError: If a key is unknown or missing, or a value does not fit its type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected a table, got {values!r}")
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(f'unknown key "{where}.{key}": {suggestion(str(key), known)}')
    for name, f in known.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f'missing key "{where}.{name}"')
    hints = field_types(cls)
    return cls(**{k: checked(v, hints[k], f"{where}.{k}") for k, v in values.items()})


def _same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return all(a is b for a, b in zip(one, other, strict=True))
