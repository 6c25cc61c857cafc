"""The command reference: every verb, argument and option, from the Typer application.

It reads the functions that the verbs are, so it needs none of the classes that Typer makes of them.
"""

from __future__ import annotations

import enum
import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from typer.models import ArgumentInfo, OptionInfo

from isthmus.cli import app

WORDS = {int: "NUMBER", float: "NUMBER", str: "TEXT", Path: "PATH", bool: ""}


@dataclass(frozen=True)
class Parameter:
    """An argument or an option of a verb.

    Attributes:
        name: What is written: "IMAGE...", "--model TEXT", "--decode / --no-decode".
        notes: Whether it must be given, may be repeated, and its default.
        meaning: Its help.
        is_option: Whether it is an option.
        is_required: Whether it must be given.
    """

    name: str
    notes: str
    meaning: str
    is_option: bool
    is_required: bool


def verbs() -> dict[str, Callable[..., Any]]:
    """Every verb and the function behind it, in the order of the help."""
    found: dict[str, Callable[..., Any]] = {}
    for name, owner in (("", app), *((g.name, g.typer_instance) for g in app.registered_groups)):
        assert isinstance(owner, typer.Typer)
        for command in owner.registered_commands:
            assert command.callback is not None
            own = command.name or command.callback.__name__.strip("_").replace("_", "-")
            found[f"{name} {own}".strip()] = command.callback
    return found


def pages() -> str:
    """The body of the command reference, in Markdown."""
    return "\n\n".join(_verb(name, function) for name, function in verbs().items())


def _verb(name: str, function: Callable[..., Any]) -> str:
    found = list(parameters(function))
    given = [p.name if p.is_required else f"[{p.name}]" for p in found if not p.is_option]
    anchor = name.replace(" ", "-")
    parts = [
        f"## isthmus {name} {{ #{anchor} }}",
        *_paragraphs(inspect.cleandoc(function.__doc__ or "")),
        f"```\n{' '.join(['isthmus', name, *given, '[OPTIONS]'])}\n```",
        *(_entry(anchor, p) for p in found if not p.is_option),
        *(_entry(anchor, p) for p in found if p.is_option),
    ]
    return "\n\n".join(parts)


def _paragraphs(text: str) -> Iterator[str]:
    """The help's paragraphs; those that are a command become code."""
    for paragraph in text.split("\n\n"):
        is_code = paragraph.startswith("isthmus ")
        yield f"```\n{paragraph}\n```" if is_code else paragraph.replace("[", "\\[")


def _entry(anchor: str, parameter: Parameter) -> str:
    key = parameter.name.split()[0].strip("-.[]").lower()
    kind = "option" if parameter.is_option else "argument"
    notes = f" · {parameter.notes}" if parameter.notes else ""
    told = textwrap.indent(parameter.meaning, "    ").strip() or "&nbsp;"
    return f"`{parameter.name}`{{ #{anchor}-{kind}-{key} }}{notes}\n:   {told}"


def parameters(function: Callable[..., Any]) -> Iterator[Parameter]:
    """The arguments and options of a verb, in order."""
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints[name]
        if hint is typer.Context:
            continue
        annotation, info = hint, None
        if typing.get_origin(hint) is typing.Annotated:
            annotation, *more = typing.get_args(hint)
            info = next((m for m in more if isinstance(m, ArgumentInfo | OptionInfo)), None)
        if info is None:
            info = OptionInfo()
        yield _parameter(name, annotation, info, parameter.default)


def _parameter(
    name: str, annotation: Any, info: ArgumentInfo | OptionInfo, default: Any
) -> Parameter:
    kind, repeated = _kind(annotation)
    is_option = isinstance(info, OptionInfo)
    required = default is inspect.Parameter.empty
    notes = ["required"] if required and is_option else []
    if repeated and is_option:
        notes.append("may be repeated")
    if isinstance(info, OptionInfo):
        own = "--" + name.strip("_").replace("_", "-")
        # In `Annotated`, Typer takes the first name for a default and puts it right later
        named = (info.default, *(info.param_decls or ()))
        decls = [d for d in named if isinstance(d, str) and d.startswith("-")]
        decls = [" / ".join(part.strip() for part in d.split("/")) for d in decls]
        if kind is bool and not decls:
            decls = [f"{own} / --no-{own[2:]}"]
        word = info.metavar or _word(kind)
        written = " ".join([*(decls[:1] or [own]), *([word] if word else [])])
    else:
        word = info.metavar or name.strip("_").upper()
        written = f"{word}..." if repeated and not info.metavar else word
    if isinstance(default, enum.Enum):
        default = default.value
    if isinstance(default, bool):
        notes += ["on unless it is said"] if default else []
    elif default is not None and not required and default != "":
        notes.append(f"default `{default}`")
    if info.envvar:
        notes.append(f"or the environment variable `{info.envvar}`")
    return Parameter(written, " · ".join(notes), info.help or "", is_option, required)


def _kind(annotation: Any) -> tuple[Any, bool]:
    """The type of one value, and whether there may be several."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) in (list, tuple):
        return typing.get_args(annotation)[0], True
    return annotation, False


def _word(kind: Any) -> str:
    """What stands for a value."""
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "|".join(str(choice.value) for choice in kind)
    return WORDS.get(kind, "TEXT")
