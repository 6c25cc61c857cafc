"""Prompts of labels: published templates, the user's own, or descriptions of each label.

Pure: no torch.
"""

from __future__ import annotations

import functools
import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from isthmus.errors import InputError, PromptError, suggestion

SLOT = "{}"
Templates = str | Path | Sequence[str] | Mapping[str, Sequence[str]]
"""The name of a published set, one template, several, a file of them, or descriptions by label."""


@functools.cache
def template_sets() -> dict[str, dict[str, Any]]:
    """The published sets: name to `about` and `templates`.

    Example:
        >>> template_sets()["digits"]["templates"]
        ['a photo of the number: "{}".']
    """
    path = resources.files("isthmus") / "classification" / "prompts.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def checked_labels(labels: Sequence[str]) -> list[str]:
    """Labels as a list, without spaces around them.

    Raises:
        InputError: If there are none, or one is no text, empty, or there twice.
    """
    if isinstance(labels, str):
        raise InputError(f'labels is the one text "{labels[:60]}": expected a list of labels')
    found = list(labels)
    if not found:
        raise InputError('got no labels: expected at least one, as in ["cat", "dog"]')
    for label in found:
        if not isinstance(label, str):
            raise InputError(
                f"got {type(label).__name__} {label!r} among the labels: expected text"
            )
    found = [label.strip() for label in found]
    if "" in found:
        raise InputError(f"label {found.index('') + 1} of {len(found)} is empty")
    twice = (
        sorted({label for label in found if found.count(label) > 1}) if _has_twins(found) else []
    )
    if twice:
        shown = ", ".join(f'"{label}"' for label in twice[:3])
        more = f" and {len(twice) - 3} more" if len(twice) > 3 else ""
        raise InputError(f"the labels hold {shown}{more} more than once: name each class once")
    return found


def _has_twins(labels: Sequence[str]) -> bool:
    return len(set(labels)) < len(labels)


def prompts_of(labels: Sequence[str], templates: Templates) -> list[list[str]]:
    """The prompts of each label.

    Args:
        labels: The labels.
        templates: The name of a published set ("imagenet-80"), a template with `{}`, several of
            them, the path of a file of them (`.txt`, one a line), or descriptions of each label
            as CuPL writes them (Pratt et al. 2023, arXiv 2209.03320): a mapping or a JSON file of
            label to texts.

    Raises:
        PromptError: If a template has no `{}`, or a label no description.
        InputError: If a set is unknown or a file cannot be read.

    Example:
        >>> prompts_of(["7"], "digits")
        [['a photo of the number: "7".']]
    """
    found = resolved_templates(templates)
    if isinstance(found, dict):
        return _described(labels, found)
    if not found:
        raise PromptError('got no templates: expected at least one, as in ["a photo of a {}."]')
    for template in found:
        if not isinstance(template, str) or SLOT not in template:
            raise PromptError(
                f"the template {template!r} has no {{}}: expected a place for the label, as in "
                '"a photo of a {}."'
            )
    # Not str.format, which would trip over any other brace
    return [[template.replace(SLOT, label) for template in found] for label in labels]


def resolved_templates(templates: Templates) -> list[str] | dict[str, Sequence[str]]:
    """The templates that a name or a file stands for, or descriptions by label, unchecked.

    Raises:
        PromptError: If one template has no `{}`.
        InputError: If a set is unknown or a file cannot be read.

    Example:
        >>> resolved_templates("digits")
        ['a photo of the number: "{}".']
    """
    found = _named(templates) if isinstance(templates, str | Path) else templates
    return dict(found) if isinstance(found, Mapping) else list(found)


def _named(given: str | Path) -> Sequence[str] | Mapping[str, Sequence[str]]:
    """The templates of a set's name, of a file, or the one template."""
    name, sets = str(given), template_sets()
    if name in sets:
        templates: list[str] = sets[name]["templates"]
        return templates
    if SLOT in name:
        return [name]
    path = Path(name)
    if path.suffix.lower() not in (".json", ".txt"):
        if " " in name:
            raise PromptError(
                f'the template "{name}" has no {{}}: expected a place for the label, as in '
                '"a photo of a {}."'
            )
        raise InputError(
            f'unknown templates "{name}": {suggestion(name, sets)}; or a template with {{}}, or '
            "a .txt or .json file"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".txt":
            return [line.strip() for line in text.split("\n") if line.strip()]
        told = json.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(told, dict | list):
        raise InputError(f"{path} holds {type(told).__name__}: expected label to texts, or a list")
    return told


def _described(labels: Sequence[str], descriptions: Mapping[str, Sequence[str]]) -> list[list[str]]:
    missing = [label for label in labels if not descriptions.get(label)]
    if missing:
        shown = ", ".join(f'"{label}"' for label in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise PromptError(f"no description of {shown}{more}: add one for each label")
    found = []
    for label in labels:
        texts = descriptions[label]
        texts = [texts] if isinstance(texts, str) else list(texts)
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                raise PromptError(f'a description of "{label}" is {text!r}: expected a text')
        found.append([text.replace(SLOT, label) for text in texts])
    return found
