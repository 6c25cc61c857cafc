"""The decoder layers of any causal language model, found by structure."""

from __future__ import annotations

from typing import Any

from torch import nn

from isthmus.errors import ConfigError


def find_decoder_layers(model: nn.Module, path: str | None = None) -> nn.ModuleList:
    """The list of decoder layers of a causal LM, found by structure and not by class name.

    It is the one `nn.ModuleList` that has as many entries as the configuration says the model
    has hidden layers. Where several do, an outer list wins over one inside it.

    Args:
        model: A Transformers causal LM.
        path: Dotted path of the list, which overrides the search ("model.layers").

    Raises:
        ConfigError: If the path is not a ModuleList, or the search finds none or several. The
            message lists the candidates.

    Example:
        >>> from isthmus.model.backbones.tiny import tiny_language_model
        >>> len(find_decoder_layers(tiny_language_model("gpt2", layers=3)))
        3
    """
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    listing = ", ".join(f"{name} ({len(m)})" for name, m in lists.items()) or "none"
    if path is not None:
        if path not in lists:
            raise ConfigError(
                f'language.layers = "{path}" is not a list of modules. Found: {listing}'
            )
        return lists[path]
    config: Any = model.config
    expected = config.get_text_config(decoder=True).num_hidden_layers
    fitting = {n: m for n, m in lists.items() if len(m) == expected}
    outer = [n for n in fitting if not any(n.startswith(o + ".") for o in fitting if o != n)]
    if len(outer) != 1:
        raise ConfigError(
            f"{type(model).__name__}: expected one list of {expected} decoder layers, found "
            f"{len(outer)}; name it with language.layers. Lists: {listing}"
        )
    return lists[outer[0]]
