"""What a name of Transformers stands for, told by its configuration before any weight is read.

Each refusal is one line: what was found, what was expected, and what can be done.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from isthmus.config.registry import RELEASED
from isthmus.errors import CheckpointError, ConfigError
from isthmus.model.backbones.own_form import own_form
from isthmus.model.backbones.released import told_by

CODE = "hf+code"
"""Scheme of the name of a repository whose own code is run. Nothing else runs any."""


def whole_class(place: str) -> str | None:
    """The class of a vision-language model that nobody here can take apart; None of anything else.

    Example:
        >>> whole_class("no/such-model") is None
        True
    """
    from transformers.models.auto import modeling_auto

    told = told_by(place)
    model_type = str(told.get("model_type"))
    if model_type in RELEASED.names():
        return None
    whole: Mapping[str, str] = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    text: Mapping[str, str] = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    name = str((told.get("architectures") or [whole.get(model_type, "")])[0])
    # some classes count among language models too, with a picture's sizes or without
    sees = any(key in told for key in ("vision_config", "image_size", "patch_size"))
    return name if name in whole.values() and (sees or name not in text.values()) else None


def refuse_whole_name(name: str) -> None:
    """Refuses the name of a vision-language model that nobody here can take apart.

    Raises:
        ConfigError: If it is one; the message names the families that are known.
    """
    scheme, _, place = name.partition(":")
    found = whole_class(place) if scheme == "hf" else None
    if scheme == CODE or found:
        what = (
            f'is a {found} ("{told_by(place).get("model_type")}")' if found else "runs its own code"
        )
        raise ConfigError(
            f'"{name}" {what}, which is not taken apart here: it generates and scores closed '
            "answers in whole (im.load; isthmus ask, eval, classify, info), and what needs its "
            "parts cannot be done with it (serve, chat, train, features, export); taken apart are: "
            f"{', '.join(RELEASED.names())}"
        )


def refuse_no_language(name: str) -> None:
    """Refuses a vision-language model as a language model, where Transformers has no such part.

    Raises:
        ConfigError: If it is one.
    """
    from transformers.models.auto import modeling_auto

    scheme, _, place = name.partition(":")
    found = whole_class(place) if scheme == "hf" else None
    known: Mapping[str, str] = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if found and str(told_by(place).get("model_type")) not in known:
        refuse_whole_name(name)


def refuse_others(name: str) -> None:
    """Refuses a folder that holds no model which answers questions.

    A repository on the hub that cannot be read is reported by whoever loads it.

    Raises:
        CheckpointError: If its `config.json` is missing or damaged, of a model type that this
            Transformers does not know, or of a model of another kind.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    scheme, _, place = name.partition(":")
    told = told_by(place)
    kind = told.get("model_type")
    if scheme == CODE or not (told or Path(place).is_dir()):
        return
    if not isinstance(kind, str):
        raise CheckpointError(
            f'"{place}" holds no model of Transformers: its config.json is missing or damaged, or '
            "has no model_type; fetch it again"
        )
    if kind in RELEASED.names() and own_form(RELEASED.find(kind)):
        return
    if kind not in transformers.CONFIG_MAPPING:
        raise CheckpointError(
            f'"{place}" has the model_type "{kind}", which Transformers {transformers.__version__} '
            "does not know: pip install --upgrade transformers, or take a repository that was "
            "converted to it"
        )
    whole: Mapping[str, str] = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    text: Mapping[str, str] = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if kind not in {*whole, *text}:
        what = (told.get("architectures") or [kind])[0]
        raise CheckpointError(
            f'"{place}" is a {what} ("{kind}"), neither a vision-language model nor a language '
            "model: join it to one with im.compose, or use it as an encoder (im.load_vision)"
        )


def refuse_code(name: str) -> None:
    """Refuses a repository whose model is code that comes with it.

    Raises:
        ConfigError: If it is one.
    """
    from transformers import CONFIG_MAPPING

    scheme, _, place = name.partition(":")
    told = told_by(place) if scheme == "hf" else {}
    if told.get("auto_map") and told.get("model_type") not in CONFIG_MAPPING:
        raise ConfigError(
            f'"{name}" ("{told.get("model_type")}") brings code of its own, which is not run: '
            f'read it, and if you trust it, name the model "{CODE}:{place}", which generates and '
            "scores in whole"
        )
