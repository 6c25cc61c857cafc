"""The configuration reference: every key of every table, from the dataclasses and their docstrings.

A key's type and range are those that a configuration is checked by, its default is the field's, and
its meaning is the docstring under the field.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from isthmus.config.base import Config, field_types
from isthmus.config.clip import ContrastiveConfig, DualEncoderConfig
from isthmus.config.evaluation import EvaluationConfig, PictureConfig
from isthmus.config.model import (
    PARTS,
    DataConfig,
    EpisodeConfig,
    LanguageConfig,
    ModelConfig,
    TokensConfig,
    TrainConfig,
    VisionConfig,
)
from isthmus.model.fusion.adapter import Adapter

SCALARS = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`"}
TABLES: dict[str, list[tuple[str, type[Config]]]] = {
    "The model": [("", ModelConfig), ("vision", VisionConfig), ("language", LanguageConfig)],
    "Connectors": [],
    "Fusions": [],
    "More of the model": [("fusion.adapter", Adapter), ("tokens", TokensConfig)],
    "A dual encoder": [("dual_encoder", DualEncoderConfig)],
    "Data": [("[data]", DataConfig), ("data.episodes", EpisodeConfig)],
    "Training": [("train", TrainConfig), ("train.contrastive", ContrastiveConfig)],
    "Evaluations": [("[run]", EvaluationConfig), ("[picture]", PictureConfig)],
}
"""Headings of the page, and the tables under each. Those of parts come from the registries."""
REGISTERED = {"Connectors": "connector", "Fusions": "fusion"}


def pages() -> str:
    """The body of the configuration reference, in Markdown."""
    return "\n\n".join(_sections())


def _sections() -> Iterator[str]:
    for heading, tables in TABLES.items():
        yield f"## {heading}"
        for table, cls in tables:
            yield _table(f"`[{table}]`" if table else "At the top of the file", table, cls)
        if heading in REGISTERED:
            kind = REGISTERED[heading]
            for name, cls in PARTS[kind].built_in().items():
                title = f'`type = "{name}"`'
                yield _table(title, f"{kind}.{name}", cls)


def _table(title: str, table: str, cls: type[Any]) -> str:
    """One table of a file: a heading, what it is for, and its keys."""
    anchor = table.strip("[]").replace("_", "-") or "top"
    about = inspect.cleandoc(cls.__doc__ or "")
    keys = list(keys_of(cls))
    body = "\n\n".join(_key(anchor, *key) for key in keys) or "It has no keys."
    return f"### {title} {{ #{anchor} }}\n\n{about}\n\n{body}"


def _key(anchor: str, name: str, kind: str, default: str, meaning: str) -> str:
    told = textwrap.indent(meaning, "    ").strip()
    return f"`{name}`{{ #{anchor}.{name} }} · {kind} · {default}\n:   {told}"


def keys_of(cls: type[Any]) -> Iterator[tuple[str, str, str, str]]:
    """Each key of a configuration: its name, its type, its default and its meaning."""
    types_of = field_types(cls)
    meanings = field_docstrings(cls)
    for field in dataclasses.fields(cls):
        yield (
            field.name,
            described(types_of[field.name]),
            _default(field),
            meanings.get(field.name, ""),
        )


def field_docstrings(cls: type[Any]) -> dict[str, str]:
    """The docstrings that stand under the fields of a class."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    (node,) = tree.body
    assert isinstance(node, ast.ClassDef)
    found: dict[str, str] = {}
    for field, after in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            found[field.target.id] = " ".join(after.value.value.split())
    return found


def described(hint: Any) -> str:
    """A type in words, with its range.

    Example:
        >>> described(Annotated[int, Range(1)]), described(Literal["ddp", "fsdp"])
        ('whole number, at least 1', '`"ddp"` or `"fsdp"`')
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return ", ".join([described(inner[0]), *(str(b) for b in inner[1:])])
    if origin is Literal:
        return " or ".join(f"`{json.dumps(choice)}`" for choice in inner)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(described(option) for option in inner if option is not type(None))
    if origin is tuple:
        return f"list of {described(inner[0])}"
    if hint is Any or dataclasses.is_dataclass(hint):
        return "table"
    return SCALARS[hint]


def _default(field: dataclasses.Field[Any]) -> str:
    """What is taken where a key is not set."""
    if field.default is not dataclasses.MISSING:
        if field.default is None:
            return "not set"
        return f"default `{json.dumps(field.default)}`"
    if field.default_factory is not dataclasses.MISSING:
        made = field.default_factory()
        for registry in PARTS.values():
            if type(made) in registry.built_in().values():
                return f"default `{json.dumps(registry.name_of(type(made)))}`"
        return "default: its own defaults"
    return "required"
