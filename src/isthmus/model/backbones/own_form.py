"""Families of released models whose repositories are in a form that Transformers does not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeGuard, runtime_checkable


@runtime_checkable
class OwnForm(Protocol):
    """What a family has besides, whose repositories are in a form that Transformers does not know.

    Their `config.json` names no model type. `told_by` adds the name that the family is registered
    by, so that every other file asks for that alone.
    """

    @staticmethod
    def has_form(told: Mapping[str, Any]) -> bool:
        """Whether a `config.json` without a model type is in this form."""
        ...

    @staticmethod
    def config(place: str, told: Mapping[str, Any]) -> Any:
        """The configuration that `plan` takes.

        Raises:
            ConfigError: If entries are missing or of another kind.
        """
        ...

    @staticmethod
    def processor(place: str, config: Any) -> Any:
        """What Transformers has for it: `image_processor`, `tokenizer` and `chat_template`."""
        ...

    @staticmethod
    def model(place: str, config: Any, tokenizer: Any, pretrained: bool) -> Any:
        """The model in float32, as `parts` takes it; random without `pretrained`.

        Raises:
            CheckpointError: If its weights cannot be read, or are not those of the configuration.
        """
        ...


def own_form(family: Any) -> TypeGuard[OwnForm]:
    """Whether a family, a class of `registry.RELEASED`, is one of these.

    Example:
        >>> from isthmus.config.registry import RELEASED
        >>> own_form(RELEASED.find("nanovlm")), own_form(RELEASED.find("llava"))
        (True, False)
    """
    return isinstance(family, OwnForm)
