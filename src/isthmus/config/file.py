"""Reading and writing configurations. Pure: no torch.

A configuration file is TOML with one table per dataclass of `config`:

    [vision]      VisionConfig        [connector]   type = "mlp", and that connector's keys
    [language]    LanguageConfig      [fusion]      type = "inline", and that fusion's keys
    [train]       TrainConfig         [[data]]      DataConfig, once per data set
    [[media]]     type = "package.module:Class", and its keys; once per medium of another kind

The type of a part is a name that `registry` finds: a built-in one, an entry point of an installed
package, or "package.module:Class".

In place of the four parts of a vision-language model there may be `[dual_encoder]`, a
DualEncoderConfig; what only its training needs stands in `[train.contrastive]`.

An unknown key or part is an error that suggests the nearest known one.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isthmus.config.base import from_mapping
from isthmus.config.clip import DualEncoderConfig
from isthmus.config.model import PARTS, DataConfig, ModelConfig, RunConfig, TrainConfig
from isthmus.config.registry import MEDIA, Registry
from isthmus.errors import ConfigError, suggestion

DUAL_ENCODER = "dual_encoder"
"""The table that names a dual encoder."""


def part_from_mapping(
    kind: str, values: Mapping[str, Any], *, untrusted: Path | None = None
) -> Any:
    """The configuration of a connector, fusion or medium from a table with a `type`.

    Args:
        kind: "connector", "fusion" or "media".
        values: The table, for example `{"type": "resampler", "latents": 64}`. The type is the
            name of a built-in part, of an entry point, or "package.module:Class".
        untrusted: A folder from which no code is imported, where the table was read from it.

    Raises:
        ConfigError: If the type or a key is unknown, or a value does not fit its type.

    Example:
        >>> part_from_mapping("connector", {"type": "mlp"})
        MLP(depth=2, bias=True)
    """
    registry = MEDIA if kind == "media" else PARTS[kind]
    if "type" not in values:
        raise ConfigError(f'missing key "{kind}.type": {suggestion("", registry.names())}')
    cls = registry.find(str(values["type"]), untrusted=untrusted)
    if not dataclasses.is_dataclass(cls):
        raise ConfigError(
            f'"{values["type"]}" is not the configuration of a {kind}: expected a dataclass with a '
            f'method "{registry.method}"'
        )
    return from_mapping(cls, {k: v for k, v in values.items() if k != "type"}, kind)  # type: ignore[arg-type]


def to_mapping(config: Any) -> dict[str, Any]:
    """A dataclass as plain values for JSON, with `type` for connectors and fusions.

    Raises:
        ConfigError: If a part is of a class that cannot be imported by name.
    """
    values: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            registry = PARTS.get(f.name) if isinstance(config, ModelConfig) else None
            named = {} if registry is None else {"type": registry.name_of(type(value))}
            value = {**named, **to_mapping(value)}
        elif isinstance(value, tuple):
            own = MEDIA if f.name == "media" and isinstance(config, ModelConfig) else None
            value = [_entry(v, own) for v in value]
        values[f.name] = value
    return values


def _entry(value: Any, registry: Registry | None) -> Any:
    """One value of a list, with its `type` if it is a part."""
    if not dataclasses.is_dataclass(value):
        return value
    named = {} if registry is None else {"type": registry.name_of(type(value))}
    return {**named, **to_mapping(value)}


def model_from_mapping(values: Mapping[str, Any], *, untrusted: Path | None = None) -> ModelConfig:
    """A `ModelConfig` from tables `vision`, `language`, `connector` and so on.

    Args:
        values: The tables.
        untrusted: As `part_from_mapping` takes it.

    Raises:
        ConfigError: If anything in it is unknown, missing or does not fit its type.
    """
    parts = dict(values)
    for kind in PARTS:
        if kind in parts:
            if not isinstance(parts[kind], Mapping):
                raise ConfigError(f"{kind}: expected a table, got {parts[kind]!r}")
            parts[kind] = part_from_mapping(kind, parts[kind], untrusted=untrusted)
    listed = parts.get("media", ())
    if not isinstance(listed, list | tuple) or not all(isinstance(m, Mapping) for m in listed):
        raise ConfigError(f"media: expected a list of tables, got {listed!r}")
    media = tuple(part_from_mapping("media", m, untrusted=untrusted) for m in listed)
    if media:
        parts["media"] = media
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
    return run_from_mapping(tables_of(path), overrides)


def tables_of(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: If the file is missing or is not TOML.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"no configuration file at {file}")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
