"""A decoder as llama.cpp has it: which ones it has, under which names and keys.

llama.cpp turns pairs of neighbouring numbers of a query or a key, as the original Llama does, and
Transformers turns a number with the one half a head away. So a Llama's rows of queries and keys
are interleaved on the way out. Qwen's stay: llama.cpp turns those as Transformers does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from isthmus.model.backbones.language import LanguageModel

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""llama.cpp's class of a language model, by its model type in Transformers."""
INTERLEAVED = ("llama",)
"""Classes of llama.cpp that turn pairs of neighbours."""
ROPES = ("default", "linear", "llama3")
"""Ways to scale positions that are one factor for each frequency."""
_SUFFIXES = (".weight", ".bias")


def lacking(language: LanguageModel) -> tuple[str, str] | None:
    """What a language model is or has that is not written for llama.cpp; None if nothing.

    Returns:
        What was got, to be read behind its name, and what was expected.

    Example:
        >>> from isthmus.model.backbones.language import load_language
        >>> lacking(load_language("tiny-lm")) is None
        True
    """
    config = language.model.config
    if config.model_type not in ARCHITECTURES:
        return f'is a "{config.model_type}"', f"one of {', '.join(ARCHITECTURES)}"
    told = _ropes(config)
    rope = told.get("rope_type", "default")
    if rope not in ROPES:
        return f"has positions scaled by {rope!r}", f"one of {', '.join(ROPES)}"
    if told.get("partial_rotary_factor", 1.0) != 1.0:
        return "has heads turned in part", "whole ones"
    if config.hidden_act != "silu":
        return f"has the activation {config.hidden_act!r}", '"silu"'
    if config.model_type in ("llama", "qwen3") and _biased(language):
        return "has biases in its attention or its MLP", "none"
    return None


def write_keys(writer: Any, config: Any, rows: int) -> None:
    """Writes the keys of a language model.

    Args:
        writer: A `gguf.GGUFWriter` for the class that `ARCHITECTURES` names.
        config: Of the model in Transformers.
        rows: Of its tables as they are written.
    """
    heads = config.num_attention_heads
    size = head_size(config)
    # Mistral's first version sees no further than its window, which llama.cpp does not know of
    window = getattr(config, "sliding_window", None) if _slides(config) else None
    writer.add_context_length(min(config.max_position_embeddings, window or 1 << 31))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(_ropes(config)["rope_theta"]))
    writer.add_vocab_size(rows)


def named(language: LanguageModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by their names in llama.cpp, rows in its order.

    Args:
        language: The language model.
        tensors: By the names that its base model has for them, and `lm_head.weight`.

    Raises:
        KeyError: If llama.cpp has no name for one.
    """
    import gguf

    config = language.model.config
    architecture = ARCHITECTURES[config.model_type]
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], config.num_hidden_layers)
    found: dict[str, Tensor] = {}
    for own, tensor in tensors.items():
        name = names.get_name(own if own.startswith("lm_head.") else f"model.{own}", _SUFFIXES)
        if name is None:
            raise KeyError(own)
        if architecture in INTERLEAVED and (".attn_q." in name or ".attn_k." in name):
            tensor = interleaved(tensor, head_size(config))
        found[name] = tensor
    if (factors := _factors(language)) is not None:
        found["rope_freqs.weight"] = factors
    return found


def head_size(config: Any) -> int:
    """Width of a head."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def interleaved(rows: Tensor, size: int) -> Tensor:
    """Rows of queries or keys (heads * size, D) with the halves of each head interleaved.

    Example:
        >>> interleaved(torch.arange(8)[:, None], 4).flatten().tolist()
        [0, 2, 1, 3, 4, 6, 5, 7]
    """
    halves = rows.reshape(-1, 2, size // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def _factors(language: LanguageModel) -> Tensor | None:
    """(size / 2,) by what each frequency of the positions is divided; None if by 1."""
    config = language.model.config
    told, size = _ropes(config), head_size(config)
    powers = torch.arange(0, size, 2, dtype=torch.float32) / size
    plain = 1.0 / float(told["rope_theta"]) ** powers
    own = language.model.base_model.rotary_emb.inv_freq.detach().float().cpu()
    factors = plain / own
    return None if torch.allclose(factors, torch.ones_like(factors), atol=1e-6) else factors


def _ropes(config: Any) -> dict[str, Any]:
    return dict(getattr(config, "rope_parameters", None) or {})


def _biased(language: LanguageModel) -> bool:
    base = language.model.base_model
    return any(name.endswith(".bias") and "lora" not in name for name, _ in base.named_parameters())


def _slides(config: Any) -> bool:
    return bool(getattr(config, "use_sliding_window", True))
