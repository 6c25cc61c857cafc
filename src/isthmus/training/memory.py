"""How much memory a step of training takes, estimated before it is run.

What autograd keeps, with frozen linear maps (their weight is kept anyway, their input is not, for
no gradient of the weight is wanted; so it is less than the 34 bytes for each token and each unit
of width of Korthikanti et al. 2022, section 4.1, who train every weight). For one token in one
decoder layer of width D, attention width A = heads * head width, width of keys K (before they are
repeated to A), and MLP width F:

    norms           2 * 4 D                 their inputs, fp32
    attention       s (A + 2 K + A)         q, k, v after rotation, and what was read
    MLP             s 3 F                   gate, its activation, and what it is multiplied with
    experts         k s (3 F + D)           the same of the k experts that a token goes through, and
                                            what each says, which its share is multiplied with
    with LoRA       s (2 D + F)             the inputs of the adapted maps, which are trained
    eager           (4 + s) heads L         softmax and its copy, where attention is not fused and
                                            L tokens stand in a row

with s bytes a value: 4 in fp32, 2 in half precision, and (4 + s) D once for the norm after the last
layer and the trained word that reads its output. With gradient checkpointing a layer keeps its
input alone, s D, and one layer at a time is computed again (gated blocks stand outside of the
layers and keep theirs; how much, their fusion says). Logits: s for each labelled token and row of
the vocabulary, three times (without and with our two tokens, and their gradient; see
`cross_entropy`). What the connector keeps is counted while it runs on one image, since connectors
are many.

`benchmarks/memory_estimate.py` compares it with the measured peak. What tensors take is what is
estimated; the heap of a CPU run may hold up to half as much again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.config.model import TrainConfig
from isthmus.model.checkpoint import STRIP
from isthmus.model.summary import passes
from isthmus.model.vlm import VisionLanguageModel
from isthmus.training.precision import decided

FP32 = 4


@dataclass(frozen=True)
class Load:
    """What goes through the model in one forward pass of one process.

    Attributes:
        rows: Rows of the batch.
        tokens: Tokens of a row.
        images: Images in all rows.
        labelled: Tokens of all rows that are learned.
        cached: Whether features come from the cache, so that the encoder does not run.
    """

    rows: int
    tokens: int
    images: int
    labelled: int
    cached: bool = True


def memory(
    model: VisionLanguageModel,
    config: TrainConfig,
    load: Load,
    processes: int = 1,
    device: torch.device | None = None,
) -> dict[str, int]:
    """Bytes that one process needs for a step, item by item; the module says the formulas.

    Frozen backbones are held in the run's precision, a frozen strip and all that is trained in
    fp32, with a gradient and two moments of AdamW for each trained parameter. FSDP divides all of
    these by the processes. In half precision the trained matrices are also held in that.
    PyTorch's own libraries (some 0.4 GiB on a CPU, 0.5 to 1 GiB of a GPU) are left out.

    Args:
        model: The model.
        config: Precision, gradient checkpointing, sharding and `freeze`.
        load: One forward pass.
        processes: Processes that share a sharded model.
        device: Where it will be trained; None is where it is.

    Returns:
        Bytes by item, none of them 0.
    """
    device = device or model.device
    config = decided(config, device)
    value = FP32 if config.precision == "fp32" else 2
    backbone = strip = trained = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not name.startswith(config.freeze or ("\0",)):
            trained += parameter.numel()
        elif name.startswith(STRIP):
            strip += parameter.numel()
        else:
            backbone += parameter.numel()
    shards = processes if config.sharding == "fsdp" else 1
    items = {
        "frozen weights": (backbone * value + strip * FP32) // shards,
        "trained weights": trained * FP32 // shards,
        "their gradients": trained * FP32 // shards,
        "AdamW's moments": 2 * trained * FP32 // shards,
        "trained weights in half precision": trained * 2 if value == 2 else 0,
        "vision encoder, without gradients": 0 if load.cached else _vision(model, load),
        "connector's activations": _connector(model, value) * load.images * passes(model),
        **_language(model, config, load, value, device),
    }
    return {name: count for name, count in items.items() if count}


def _language(
    model: VisionLanguageModel, config: TrainConfig, load: Load, value: int, device: torch.device
) -> dict[str, int]:
    """What the language model and the gated blocks keep for the backward pass."""
    tokens = load.rows * load.tokens
    width, count = model.language.width, len(model.language.layers)
    text: Any = model.language.model.config.get_text_config()
    own = [layer_bytes(layer, text, width, value) for layer in model.language.layers]
    extra = 0
    unfused = getattr(text, "_attn_implementation", "") == "eager"
    if unfused or (device.type == "cpu" and value == 2):  # as the loop then sets it
        extra += int(text.num_attention_heads) * load.tokens * (FP32 + value)
    if model.language.config.lora_rank or model.fusion.adapter is not None:
        extra += value * (2 * width + _mlp_width(text, width))
    each = int(model.connector.num_tokens) * passes(model)  # type: ignore[arg-type]
    visual = each * load.images
    blocks = model.fusion.activation_bytes(tokens, visual, value)
    rows = model.language.vocab_rows + len(model.special_tokens.names)
    logits = 3 * value * load.labelled * rows
    # Blocks below the lowest one that learns, and the layers below them, keep nothing
    lowest = _lowest(model, config)
    layers = sum(own[lowest:]) + (count - lowest) * extra
    end = (FP32 + value) * width * tokens
    if not config.gradient_checkpointing:
        return {
            "decoder layers' activations": layers * tokens + end,
            "gated blocks' activations": blocks,
            "logits": logits,
        }
    return {
        "decoder layers' inputs": (count - lowest) * value * width * tokens + end,
        "gated blocks' activations": blocks,
        # one layer is computed again when the logits are already gone
        "logits, or one layer": max(logits, 2 * (max(own) + extra) * tokens),
    }


def layer_bytes(layer: nn.Module, text: Any, width: int, value: int) -> int:
    """Bytes that autograd keeps of one frozen decoder layer for one token, attention fused.

    Args:
        layer: A decoder layer; of its modules only the names count.
        text: The language model's configuration.
        width: Width of the hidden states.
        value: Bytes of an activation.
    """
    names = {name.rpartition(".")[2] for name, _ in layer.named_modules()}
    heads = int(text.num_attention_heads)
    if getattr(text, "kv_lora_rank", None):  # latent attention: DeepSeek-V2, section 2.1
        query = heads * (int(text.qk_nope_head_dim) + int(text.qk_rope_head_dim))
        kept = value * 2 * (query + heads * int(text.v_head_dim))
        kept += FP32 * (int(text.q_lora_rank or 0) + int(text.kv_lora_rank))
    else:
        head = int(getattr(text, "head_dim", None) or width // heads)
        attention = heads * head
        keys = int(getattr(text, "num_key_value_heads", None) or heads) * head
        kept = value * (2 * attention + 2 * keys)
        if "q_norm" in names:
            kept += FP32 * (attention + keys)
    kept += 2 * FP32 * width
    if "experts" not in names:
        return kept + value * 3 * _mlp_width(text, width)
    expert = int(getattr(text, "moe_intermediate_size", None) or _mlp_width(text, width))
    routed, shared = experts_of(text)[1], 0
    if names & {"shared_experts", "shared_expert"}:
        found = getattr(text, "shared_expert_intermediate_size", None)
        shared = int(found or expert * int(getattr(text, "n_shared_experts", None) or 1))
    return kept + value * (routed * (3 * expert + width) + 3 * shared)


def experts_of(text: Any) -> tuple[int, int]:
    """How many experts a mixture has, and how many of them a token goes through; (1, 1) of none.

    Args:
        text: The language model's configuration.
    """

    def first(*names: str) -> int:
        found = (getattr(text, name, None) for name in names)
        return next((value for value in found if isinstance(value, int) and value > 0), 1)

    of = first("n_routed_experts", "num_local_experts", "num_experts")
    return of, min(of, first("num_experts_per_tok", "moe_topk", "top_k_experts"))


def _lowest(model: VisionLanguageModel, config: TrainConfig) -> int:
    """The layer at which the backward pass ends: 0 where the input embeddings want a gradient."""
    learns = "special_tokens.input_rows" in dict(model.named_parameters())
    frozen = not learns or (
        bool(config.freeze) and "special_tokens.input_rows".startswith(config.freeze)
    )
    if model.fusion.in_text or not model.fusion.blocks or not frozen:
        return 0
    if model.language.config.lora_rank:
        return 0
    lowest = [int(i) for i in model.fusion.blocks]
    if model.fusion.adapter is not None:
        lowest += [int(key.partition("/")[0]) for key in model.fusion.adapter.maps]
    return min(lowest)


def _mlp_width(text: Any, width: int) -> int:
    """Hidden width of a decoder layer's MLP, under the names that families give it."""
    for name in ("intermediate_size", "ffn_dim", "n_inner"):
        found = getattr(text, name, None)
        if isinstance(found, int):
            return found
    return 4 * width


def _vision(model: VisionLanguageModel, load: Load) -> int:
    """A frozen encoder's pass: the pixels, and the largest tensors of the layer that is run."""
    height, width = model.vision.image_size
    shape = model.vision.shape
    tile = 3 * height * width + 12 * shape.tokens * shape.width
    return load.images * passes(model) * FP32 * tile


def _connector(model: VisionLanguageModel, value: int) -> int:
    """Bytes of one image's features, and of what autograd keeps of the connector's run on it."""
    kept = saved_bytes(
        model.connector,
        torch.zeros(
            1,
            model.vision.shape.tokens,
            model.vision.shape.width,
            device=model.device,
            dtype=next(model.connector.parameters(), torch.zeros(0)).dtype,
        ),
    )
    features = model.vision.shape.tokens * model.vision.shape.width * FP32
    return features + kept * value // FP32


def saved_bytes(module: nn.Module, features: Tensor) -> int:
    """Bytes that autograd keeps of a module's run, its parameters left out.

    Args:
        module: The module.
        features: Its input, in fp32.

    Example:
        >>> layer = nn.Sequential(nn.Linear(8, 8), nn.GELU())  # keeps its input and the GELU's
        >>> saved_bytes(layer, torch.zeros(2, 8))
        128
    """
    own = {p.untyped_storage().data_ptr() for p in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = module(features)
    del output
    return sum(kept.values())
