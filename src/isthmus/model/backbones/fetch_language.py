"""What stands behind the name of a language model: fetched, or made up."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from isthmus.config.model import LanguageConfig
from isthmus.errors import ConfigError, loading, suggestion
from isthmus.model.backbones.placement import (
    dispatched,
    loading_options,
    quiet_dispatch,
    refuse_incomplete,
)
from isthmus.model.backbones.refusals import refuse_code, refuse_no_language, refuse_others
from isthmus.model.backbones.released import family_of, read, refuse_missing
from isthmus.model.backbones.text import no_bar_for_files
from isthmus.model.reading import CAUSAL, Reading

TINY = {"tiny-lm": "llama", "tiny-moe": "glm4_moe"}
"""Language models with random weights, by name: their families."""
PREFIXES = ("hf:REPO-OR-FOLDER", "asset:NAME", *TINY)


def fetch_language(
    config: LanguageConfig, dtype: torch.dtype | None
) -> tuple[nn.Module, Any, Reading]:
    """The causal LM and tokenizer behind a name, and how it reads.

    Args:
        config: Its name, and the map that places it if one does.
        dtype: Data type of one that is placed by a map; None is that of its file. Any other is read
            in float32.

    Raises:
        ConfigError: If the name has an unknown form, or the map does not fit.
        CheckpointError: If the weights cannot be fetched.
    """
    name, placed = config.name, config.device_map is not None
    if name in TINY:
        from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_model

        tiny = tiny_language_model(TINY[name])
        return dispatched(tiny, config) if placed else tiny, byte_tokenizer(), CAUSAL
    scheme, _, rest = name.partition(":")
    if scheme not in ("hf", "asset") or not rest:
        raise ConfigError(f'unknown language model "{name}": {suggestion(name, PREFIXES)}')
    if scheme == "asset":
        from isthmus.assets import registry as assets

        rest = str(assets.fetch_asset(rest))
    elif family_of(rest) is not None:
        if placed:
            raise ConfigError(
                f'language.device_map: "{name}" is a vision-language model, which is taken apart '
                "on one device: expected the repository of a language model alone"
            )
        whole = read(name)
        return whole.language, whole.tokenizer, whole.plan.reading
    else:
        refuse_code(name)
        refuse_others(name)
        refuse_no_language(name)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    refuse_incomplete(f"hf:{rest}", config.device_map)
    options = loading_options(config, dtype) if placed else {"dtype": torch.float32}
    with loading(name, "a folder or a model"), no_bar_for_files(rest), quiet_dispatch():
        model, report = AutoModelForCausalLM.from_pretrained(
            rest, output_loading_info=True, trust_remote_code=False, **options
        )
        refuse_missing(name, sorted(report["missing_keys"]))
        tokenizer = AutoTokenizer.from_pretrained(rest, trust_remote_code=False)
    return model, tokenizer, CAUSAL
