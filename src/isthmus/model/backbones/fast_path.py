"""Decoder layers of Llama's form in int8, computed with few calls where no gradient is wanted.

Letters: B rows, T tokens, H heads, G key heads, D the width of a head, M = B * T.

In int8 a token of a small language model takes as long in Python and in the calls of Transformers'
layer as in its products. A layer of this form

    x + O Attention(R Q n(x), R K n(x), V n(x)),   then   y + W_down (act(W_gate n(y)) * W_up n(y))

(Touvron et al. 2023, arXiv 2302.13971, section 2.2; n is RMSNorm, R the rotary embedding) is
computed here with a product for Q, K and V together and one for gate and up, and with queries and
keys turned at once. Whether a layer is of this form is found out by trying it beside the layer's
own `forward`, in float32; those that differ stay as they are. So does a layer that is called
with a gradient, with hooks on what is inside of it, or with another attention than SDPA.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.model.backbones.int8_layers import Int8Linear, Together, exactly, version

_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


class Rotation:
    """Cosines and signed sines of the pass under way, which all layers share."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, 1, D) each; the sines of a head's first half with the sign of `rotate_half`."""
        last = self._last
        if last is None or last[0] is not sin:
            half = sin.shape[-1] // 2
            signed = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
            last = self._last = sin, cos.unsqueeze(2), signed.unsqueeze(2)
        return last[1:]

    def __getstate__(self) -> dict[str, Any]:  # what one pass needs is no part of a copy
        return {"_last": None}


class Norm:
    """An RMSNorm in two parts: what is divided, and by what.

    Zhang and Sennrich 2019, arXiv 1910.07467, equation 4, with the epsilon of Llama.

    In int8 the second costs nothing: each token is divided by a number of its own anyway.

        w * x / sqrt(|x|^2 / D + eps)  =  (w * x) / (hypot(|x|, sqrt(D eps)) / sqrt(D))
    """

    def __init__(self, norm: Any) -> None:
        self.norm = norm
        self._packed_of: tuple[int, int] | None = None

    def __call__(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(M, D) and (M, 1) of states (M, D)."""
        weight = self.norm._parameters["weight"]
        own = version(weight)
        if self._packed_of != own:
            size = weight.numel()
            self._weight = weight.detach() * size**0.5
            self._least = torch.tensor((size * self.norm.variance_epsilon) ** 0.5)
            self._packed_of = own
        length = torch.linalg.vector_norm(states, dim=1, keepdim=True)
        return states * self._weight, torch.hypot(length, self._least)


class FastLayer:
    """The `forward` of a decoder layer: few calls where they do, the layer's own elsewhere.

    Args:
        layer: The layer, whose linear maps are in int8.
        rotation: What the layers of a language model share.
    """

    def __init__(self, layer: Any, rotation: Rotation) -> None:
        self.layer = layer
        self.rotation = rotation
        attention, mlp = layer.self_attn, layer.mlp
        inside = [m for m in layer.modules() if m is not layer]
        self.hooks = [h for m in inside for h in (m._forward_pre_hooks, m._forward_hooks)]
        self.parts = [
            (owner._modules, name, part)
            for owner in (layer, attention, mlp)
            for name, part in owner.named_children()
        ]
        self.qkv: Together = attention.q_proj.together
        self.out: Together = attention.o_proj.together
        self.gate_up: Together = mlp.gate_proj.together
        self.down: Together = mlp.down_proj.together
        self.norms = Norm(layer.input_layernorm), Norm(layer.post_attention_layernorm)
        self.head: int = attention.head_dim
        self.heads = attention.q_proj.out_features // self.head
        self.key_heads = attention.k_proj.out_features // self.head

    def __call__(self, hidden_states: Tensor, **options: Any) -> Any:
        """As the layer's own `forward`."""
        mask: Any = options.get("attention_mask")
        around: Any = options.get("position_embeddings")
        if not self._fits(hidden_states, mask, around):
            return type(self.layer).forward(self.layer, hidden_states, **options)
        # its second name is the one before Transformers 5.24
        cache = options.get("cache", options.get("past_key_values"))
        return self._computed(hidden_states, mask, cache, around)

    def _fits(self, states: Tensor, mask: Any, around: Any) -> bool:
        return (
            not torch.is_grad_enabled()
            and not self.layer.training  # which may drop out
            and states.dtype == torch.float32
            and states.is_cpu
            and around is not None
            and around[0].shape[-1] == self.head
            and (mask is None or mask.dim() == 4)
            and self.layer.self_attn.config._attn_implementation == "sdpa"
            and not any(self.hooks)
            and all(names.get(name) is own for names, name, own in self.parts)
        )

    def _computed(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        cache: Any,
        position_embeddings: tuple[Tensor, Tensor],
    ) -> Tensor:
        layer, attention = self.layer, self.layer.self_attn
        rows, length, width = hidden.shape
        states = hidden.reshape(-1, width)
        found = self.qkv.all(*self.norms[0](states))
        heads = found.view(rows, length, -1, self.head)
        both = self.heads + self.key_heads
        turned = heads[:, :, :both]
        if "q_norm" in attention._modules:
            turned = torch.cat(
                [
                    _normed(attention.q_norm, heads[:, :, : self.heads]),
                    _normed(attention.k_norm, heads[:, :, self.heads : both]),
                ],
                dim=2,
            )
        cos, sin = self.rotation(*position_embeddings)
        # roll is rotate_half without its sign, which the sines have
        turned = torch.addcmul(turned * cos, turned.roll(self.head // 2, -1), sin)
        keys, values = (
            turned[:, :, self.heads :].transpose(1, 2),
            heads[:, :, both:].transpose(1, 2),
        )
        if cache is not None:
            keys, values = cache.update(keys, values, attention.layer_idx)
        queries = turned[:, :, : self.heads]
        if rows == length == 1 and (mask is None or mask.is_floating_point()):
            scores = torch.baddbmm(
                hidden[:, :, :1] if mask is None else mask[0],
                queries.view(self.key_heads, -1, self.head),
                keys[0].transpose(1, 2),
                beta=0 if mask is None else 1,
                alpha=attention.scaling,
            )
            seen = torch.bmm(scores.softmax(-1), values[0]).view(1, -1)
        elif length == 1:
            queries = queries.view(rows, self.key_heads, -1, self.head)
            seen = F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, scale=attention.scaling
            ).view(rows, -1)
        else:
            seen = F.scaled_dot_product_attention(
                queries.transpose(1, 2),
                keys,
                values,
                attn_mask=mask,
                is_causal=mask is None and getattr(attention, "is_causal", True),
                scale=attention.scaling,
                enable_gqa=self.heads != self.key_heads,
            )
            seen = seen.transpose(1, 2).reshape(rows * length, -1)
        states = self.out.all(seen, onto=states)
        gate, up = self.gate_up.all(*self.norms[1](states)).chunk(2, 1)
        states = self.down.all(layer.mlp.act_fn(gate).mul_(up), onto=states)
        return states.view(rows, length, width)


def _normed(norm: Any, states: Tensor) -> Tensor:
    weight: Tensor = norm.weight
    return F.rms_norm(states, weight.shape, weight, norm.variance_epsilon)


def take_fast_path(model: nn.Module) -> int:
    """Lets decoder layers of Llama's form compute with few calls; how many it found.

    Args:
        model: A language model whose linear maps `int8_layers.to_int8` has turned.

    Example:
        >>> from isthmus.model.backbones.int8_layers import to_int8
        >>> from isthmus.model.backbones.tiny import tiny_language_model
        >>> model = tiny_language_model("llama", layers=2, width=256)
        >>> to_int8(model), take_fast_path(model)
        (15, 2)
    """
    rotation, same, taken = Rotation(), dict[Any, bool](), 0
    for layer in list(model.modules()):
        if not _has_form(layer):
            continue
        fast, kind = FastLayer(layer, rotation), _kind(layer)
        if kind not in same:
            same[kind] = _is_equal(fast)
        if same[kind]:
            vars(layer)["forward"] = fast
            taken += 1
    return taken


def _has_form(layer: Any) -> bool:
    def named(module: Any) -> set[str]:
        return {name for name, child in module.named_children() if child is not None}

    if not isinstance(layer, nn.Module) or named(layer) != _LAYER:
        return False
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    if named(attention) - _HEAD_NORMS != _ATTENTION or named(mlp) != _MLP:
        return False
    maps = [getattr(attention, name) for name in sorted(_ATTENTION)]
    if not all(
        isinstance(m, Int8Linear) for m in (*maps, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    ):
        return False
    qkv, gate_up = attention.q_proj.together.layers, mlp.gate_proj.together.layers
    return (
        qkv == [attention.q_proj, attention.k_proj, attention.v_proj]
        and gate_up == [mlp.gate_proj, mlp.up_proj]
        and all(hasattr(attention, name) for name in ("head_dim", "scaling", "layer_idx"))
    )


def _kind(layer: nn.Module) -> Any:
    """Equal for layers that differ in their weights alone."""
    plain = (bool, int, float, str, type(None))
    return tuple(
        (
            name,
            type(module),
            tuple(
                sorted(
                    (k, str(v))
                    for k, v in vars(module).items()
                    if isinstance(v, plain) and k != "layer_idx"
                )
            ),
        )
        for name, module in layer.named_modules()
    )


@torch.inference_mode()
def _is_equal(fast: FastLayer) -> bool:
    """Whether it computes what the layer does, to rounding: a prompt, and one token."""
    layer, make = fast.layer, torch.Generator().manual_seed(0)
    width = fast.qkv.layers[0].in_features
    try:
        for length in (5, 1):
            states = torch.randn(2, length, width, generator=make)
            angles = torch.randn(2, length, fast.head // 2, generator=make).repeat(1, 1, 2)
            mask = torch.full((2, 1, length, length), torch.finfo(torch.float32).min).triu(1)
            given: dict[str, Any] = {
                "attention_mask": mask,
                "position_embeddings": (angles.cos(), angles.sin()),
            }
            with exactly():
                expected = type(layer).forward(layer, states, **given)
                # whatever the attention is now, which may be SDPA later
                got = fast._computed(states, mask, None, given["position_embeddings"])
            if not torch.allclose(got, expected, rtol=1e-4, atol=1e-4 * float(expected.std())):
                return False
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return False  # it wants to be called in another way
    return True
