"""What can be named: models, connectors, fusions, templates, prompts and assets."""

from __future__ import annotations

from isthmus.assets.registry import ASSETS
from isthmus.classification.templates import template_sets
from isthmus.config.model import SHIPPED
from isthmus.config.registry import CONNECTORS, FUSIONS, MEDIA, RELEASED, Registry
from isthmus.prompts.templates import TEMPLATES


def available() -> dict[str, dict[str, str]]:
    """Every name that can be given somewhere, by kind, with a line on each.

    Returns:
        The kinds "models", "released" (families of released models, by Transformers' model type),
        "connectors", "fusions", "media", "templates", "prompts" and "assets".

    Example:
        >>> available()["connectors"]["mlp"][:3]
        'Lin'
    """
    return {
        "models": dict(SHIPPED),
        "released": _parts(RELEASED),
        "connectors": _parts(CONNECTORS),
        "fusions": _parts(FUSIONS),
        "media": {"image": "Images.", "clip": "Clips: images in order.", **_parts(MEDIA)},
        "templates": {
            **{n: t.about.partition("\n")[0] for n, t in TEMPLATES.items()},
            "chat": "The language model's own chat template.",
            "paligemma": "PaliGemma's prompt: images, the question, a line break; no shots.",
        },
        "prompts": {n: str(told["about"]) for n, told in template_sets().items()},
        "assets": {n: a.description for n, a in ASSETS.items()},
    }


def _parts(registry: Registry) -> dict[str, str]:
    """Built-in parts with a line on each, and those that installed packages offer."""
    built_in = {n: _first_line(c) for n, c in registry.built_in().items()}
    return {**built_in, **{n: f"from {v}" for n, v in registry.offered().items()}}


def _first_line(documented: object) -> str:
    """The first line of a docstring."""
    return (documented.__doc__ or "").strip().partition("\n")[0]
