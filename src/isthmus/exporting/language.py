"""A language model's tensors as another class holds them: adapters merged, tables grown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.errors import ExportError
from isthmus.exporting.tokens import WrittenTokens, input_table, output_table
from isthmus.model.backbones.language import LanguageModel
from isthmus.model.vlm import VisionLanguageModel

INSTEAD = "serve it with `isthmus serve` instead"


def refuse_other_heads(language: LanguageModel, target: str) -> None:
    """Refuses a language model that another class would compute differently.

    Classes of vision-language models hold a decoder and a matrix. A language model that does more
    behind its decoder (a bias, a soft cap, a scale) would lose it without a word. So it is tried.

    Args:
        language: The language model.
        target: The class that it is written for.

    Raises:
        ExportError: If it would compute something else.
    """
    from transformers import AutoModel

    model, name = language.model, language.config.name
    base = model.base_model
    if any(not parameter.is_floating_point() for parameter in model.parameters()):
        raise ExportError(
            f"{name} is quantised, and {target} is written in whole weights: expected a language "
            f"model in float32, bfloat16 or float16; {INSTEAD}"
        )
    try:
        with torch.device("meta"):
            expected = type(AutoModel.from_config(model.config))
    except Exception:  # of many kinds: no class of that configuration, code of its owner's
        expected = None
    if type(base) is not expected or not hasattr(base, "embed_tokens"):
        raise ExportError(
            f"{name} is a {type(model).__name__}, whose decoder {target} does not hold: expected "
            f"one of Llama's build, such as Llama, Mistral, Qwen or Gemma; {INSTEAD}"
        )
    ids = torch.arange(4, device=base.embed_tokens.weight.device)[None]
    with torch.no_grad():
        hidden = base(input_ids=ids, use_cache=False).last_hidden_state
        plain = hidden @ language.output_embedding.weight.T
        own = model(input_ids=ids, use_cache=False).logits
    tolerance = 1e-4 if own.dtype == torch.float32 else 0.05
    if (plain - own).abs().max() > tolerance * max(1.0, float(own.abs().max())):
        raise ExportError(
            f"{name} is a {type(model).__name__}, which does more to its logits than a matrix (a "
            f"bias, a scale or a soft cap), and {target} does not: expected one such as Llama, "
            f"Mistral or Qwen; {INSTEAD}"
        )


def language_tensors(
    model: VisionLanguageModel, added: WrittenTokens, *, merge: bool = True
) -> dict[str, Tensor]:
    """The decoder's tensors by the names that its base model has for them, and `lm_head.weight`.

    LoRA is merged, or left out. Where the two tokens were added, the head is written out even if it
    was tied to the embedding: the two rows of `<|endofchunk|>` differ.
    """
    base = model.language.model.base_model
    found = dict(_without_layers_of_lora(base, merge))
    for name, module in base.named_modules():
        if module is model.language.input_embedding:
            found[f"{name}.weight"] = input_table(model, added)
    if not added.tied:
        found["lm_head.weight"] = output_table(model, added)
    return found


def text_config(model: VisionLanguageModel, added: WrittenTokens) -> dict[str, Any]:
    """The language model's configuration with grown tables and a head of its own."""
    values: dict[str, Any] = model.language.model.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "quantization_config"):
        values.pop(name, None)
    values |= {"vocab_size": added.rows, "tie_word_embeddings": added.tied}
    values["pad_token_id"] = added.tokenizer.pad_token_id
    values["dtype"] = dtype_name(model)
    return values


def dtype_name(model: VisionLanguageModel) -> str:
    """Data type of the language model's weights, as configurations write it."""
    return str(model.language.input_embedding.weight.dtype).removeprefix("torch.")


def _without_layers_of_lora(module: nn.Module, merge: bool) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a module by name, those of LoRA merged into what they adapt, or left out."""
    adapted: dict[str, Any] = {
        name: layer for name, layer in module.named_modules() if hasattr(layer, "base_layer")
    }
    for name, tensor in module.state_dict().items():
        owner = next((n for n in adapted if name.startswith(f"{n}.")), None)
        if owner is None:
            yield name, tensor
        elif name.startswith(f"{owner}.base_layer."):
            own = name.removeprefix(f"{owner}.base_layer.")
            if own == "weight" and merge:
                layer = adapted[owner]
                for adapter in layer.active_adapters:
                    tensor = tensor + layer.get_delta_weight(adapter).to(tensor)
            yield f"{owner}.{own}", tensor
