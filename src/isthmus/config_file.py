"""Reading and writing configurations. Pure: no torch.

A configuration file is TOML with one table per dataclass of `config`:

    [vision]      VisionConfig        [connector]   type = "mlp", and that connector's keys
    [language]    LanguageConfig      [fusion]      type = "inline", and that fusion's keys
    [train]       TrainConfig         [[data]]      DataConfig, once per data set

In place of the four parts of a vision-language model there may be `[dual_encoder]`, a
DualEncoderConfig; what only its training needs stands in `[train.contrastive]`.

An unknown key or part is an error that suggests the nearest known one.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from isthmus.config import (
    CONNECTOR_CONFIGS,
    FUSION_CONFIGS,
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
)
from isthmus.dual_encoder_config import DualEncoderConfig
from isthmus.errors import ConfigError, suggestion

T = TypeVar("T")
DUAL_ENCODER = "dual_encoder"
"""The table that names a dual encoder."""


def _check_value(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type that `hint` says, or a ConfigError that names `where`."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value not in typing.get_args(hint):
            choices = [str(a) for a in typing.get_args(hint)]
            raise ConfigError(f'{where} = "{value}": {suggestion(str(value), choices)}')
        return value
    if origin in (types.UnionType, typing.Union):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        return _check_value(value, next(o for o in options if o is not type(None)), where)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError(f"{where} = {value!r}: expected a list")
        return tuple(_check_value(v, typing.get_args(hint)[0], where) for v in value)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_mapping(hint, value, where)  # type: ignore[arg-type]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where} = {value!r}: expected {hint.__name__}")
    return value


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Builds a configuration dataclass; an unknown or missing key is an error."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected a table, got {values!r}")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(f'unknown key "{where}.{key}": {suggestion(key, known)}')
    for name, f in known.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f'missing key "{where}.{name}"')
    return cls(**{k: _check_value(v, hints[k], f"{where}.{k}") for k, v in values.items()})


def part_from_mapping(kind: str, values: Mapping[str, Any]) -> Any:
    """A connector's or fusion's dataclass from a table with a `type`.

    Args:
        kind: "connector" or "fusion".
        values: The table, for example `{"type": "resampler", "latents": 64}`.

    Raises:
        ConfigError: If the type or a key is unknown, or a value has another type.

    Example:
        >>> part_from_mapping("connector", {"type": "mlp"})
        MLP(depth=2)
    """
    table = {"connector": CONNECTOR_CONFIGS, "fusion": FUSION_CONFIGS}[kind]
    if "type" not in values:
        raise ConfigError(f'missing key "{kind}.type": {suggestion("", table)}')
    name = str(values["type"])
    if name not in table:
        raise ConfigError(f'unknown {kind} "{name}": {suggestion(name, table)}')
    return from_mapping(table[name], {k: v for k, v in values.items() if k != "type"}, kind)


def to_mapping(config: Any) -> dict[str, Any]:
    """A dataclass as plain values for JSON, with `type` for connectors and fusions."""
    values: dict[str, Any] = {}
    if "type" in vars(type(config)):
        values["type"] = config.type
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            value = to_mapping(value)
        elif isinstance(value, tuple):
            value = [to_mapping(v) if dataclasses.is_dataclass(v) else v for v in value]
        values[f.name] = value
    return values


def model_from_mapping(values: Mapping[str, Any]) -> ModelConfig:
    """A `ModelConfig` from tables `vision`, `language`, `connector`, `fusion`, `template`."""
    parts = dict(values)
    for kind in ("connector", "fusion"):
        if kind in parts:
            if not isinstance(parts[kind], Mapping):
                raise ConfigError(f"{kind}: expected a table, got {parts[kind]!r}")
            parts[kind] = part_from_mapping(kind, parts[kind])
    return from_mapping(ModelConfig, parts, "model")


def apply_override(values: dict[str, Any], override: str) -> None:
    """Writes one `section.key=value` into the tables; the value is TOML, or a bare string."""
    path, equals, text = override.partition("=")
    *sections, key = path.strip().split(".")
    if not equals or not sections or not all((*sections, key)):
        raise ConfigError(f'--set "{override}": expected section.key=value')
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table: Any = values
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            kind = "a list" if isinstance(table, list) else "a value"
            raise ConfigError(f'--set "{override}": "{section}" is {kind}, not a table')
    table[key] = value


def _dual_encoder(tables: Mapping[str, Any]) -> DualEncoderConfig:
    """The `DualEncoderConfig` of a file's table: a name, or the two encoders."""
    model = from_mapping(DualEncoderConfig, tables[DUAL_ENCODER], DUAL_ENCODER)
    if model.name is None and (model.vision is None or model.text is None):
        raise ConfigError(f"[{DUAL_ENCODER}] expects either name, or vision and text")
    if model.name is not None and model != DualEncoderConfig(name=model.name):
        raise ConfigError(f'[{DUAL_ENCODER}] has name = "{model.name}": expected nothing beside it')
    return model


def run_from_mapping(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """A `RunConfig` from the tables of a configuration file.

    Args:
        values: The tables.
        overrides: Strings `section.key=value`, as `--set` takes them.

    Raises:
        ConfigError: If anything in it is unknown, missing or of the wrong type.
    """
    tables = json.loads(json.dumps(values))  # a deep copy, and proof that it is plain data
    for override in overrides:
        apply_override(tables, override)
    dual = DUAL_ENCODER in tables
    model_keys = {DUAL_ENCODER} if dual else {f.name for f in dataclasses.fields(ModelConfig)}
    known = {*model_keys, "train", "data"}
    for key in tables:
        if key not in known:
            raise ConfigError(f'unknown key "{key}": {suggestion(key, known)}')
    parts = {k: v for k, v in tables.items() if k in model_keys}
    return RunConfig(
        model=_dual_encoder(tables) if dual else model_from_mapping(parts),
        train=from_mapping(TrainConfig, tables.get("train", {}), "train"),
        data=tuple(from_mapping(DataConfig, d, "data") for d in tables.get("data", [])),
    )


def read_run(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a TOML configuration file.

    Raises:
        ConfigError: If the file is missing, is not TOML, or does not fit `RunConfig`.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"no configuration file at {file}")
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    return run_from_mapping(values, overrides)
