"""What can be named: models, connectors, fusions, templates, prompts and assets. No torch."""

from __future__ import annotations

from isthmus.align.templates import template_sets
from isthmus.assets import ASSETS
from isthmus.config import CONNECTOR_CONFIGS, FUSION_CONFIGS, SHIPPED
from isthmus.templates import TEMPLATES


def available() -> dict[str, dict[str, str]]:
    """Every name that can be given somewhere, by kind, with a line on each.

    Returns:
        The kinds "models", "connectors", "fusions", "templates", "prompts" and "assets".

    Example:
        >>> available()["connectors"]["mlp"][:3]
        'Two'
    """
    return {
        "models": dict(SHIPPED),
        "connectors": {n: _first_line(c) for n, c in CONNECTOR_CONFIGS.items()},
        "fusions": {n: _first_line(c) for n, c in FUSION_CONFIGS.items()},
        "templates": {
            **{n: _first_line(t) for n, t in TEMPLATES.items()},
            "chat": "The language model's own chat template.",
        },
        "prompts": {n: str(told["about"]) for n, told in template_sets().items()},
        "assets": {n: a.description for n, a in ASSETS.items()},
    }


def _first_line(documented: object) -> str:
    """The first line of a docstring."""
    return (documented.__doc__ or "").strip().partition("\n")[0]
