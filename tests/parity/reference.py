"""What the parity tests share, and a resampler in plain loops that needs no other library."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from isthmus.model.connectors.resampler import PerceiverResampler

TOLERANCE = 1e-5


def scramble(module: nn.Module) -> None:
    """Moves every parameter off its first value: norms of 1 and biases of 0 would hide mix-ups."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)


def copy(target: nn.Module, source: nn.Module) -> None:
    """Copies weights and bias; one that only one side has is an error."""
    target.load_state_dict(source.state_dict())


def assert_parity(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], features: Tensor
) -> None:
    """Equal outputs, and equal gradients of the features, for one random cotangent."""
    mine, other = (features.clone().requires_grad_() for _ in range(2))
    got, expected = ours(mine), theirs(other)
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)
    cotangent = torch.randn_like(expected)
    got.backward(cotangent)
    expected.backward(cotangent)
    assert other.grad.abs().max() > 1e-3  # the comparison is about something
    torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=TOLERANCE)


# --- The Perceiver Resampler, one number at a time ---------------------------------------------

ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "squared_relu": lambda x: max(x, 0.0) ** 2,
}

Vector = list[float]


def _norm(x: Vector, norm: nn.LayerNorm) -> Vector:
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    scale, shift = norm.weight.tolist(), norm.bias.tolist()
    return [
        (v - mean) / math.sqrt(variance + norm.eps) * s + b
        for v, s, b in zip(x, scale, shift, strict=True)
    ]


def _apply(matrix: list[Vector], x: Vector) -> Vector:
    return [sum(m * v for m, v in zip(row, x, strict=True)) for row in matrix]


def _attend(query: Vector, keys: list[Vector], values: list[Vector], heads: int) -> Vector:
    size = len(query) // heads
    out: Vector = []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        scores = [
            sum(q * k for q, k in zip(query[own], key[own], strict=True)) / math.sqrt(size)
            for key in keys
        ]
        weights = [math.exp(s - max(scores)) for s in scores]
        for i in range(size):
            total = sum(w * v[own][i] for w, v in zip(weights, values, strict=True))
            out.append(total / sum(weights))
    return out


def slow_resampler(resampler: PerceiverResampler, features: Tensor, activation: str) -> Tensor:
    """Visual tokens (B, M, D) of features (B, N, D), after Flamingo's figure 5, in fp64.

    Reads only the weights of `resampler`; all arithmetic is here.
    """
    images = []
    for image in features.double().tolist():
        latents: list[Vector] = resampler.latents.double().tolist()
        for layer in resampler.layers:
            to_q = layer.attention.query_projection.weight.double().tolist()
            to_kv = layer.attention.context_projection.weight.double().tolist()
            to_out = layer.attention.out_projection.weight.double().tolist()
            wide = layer.ffw[1].weight.double().tolist()
            narrow = layer.ffw[3].weight.double().tolist()
            inner = len(to_q)
            normed = [_norm(latent, layer.latent_norm) for latent in latents]
            context = [_norm(patch, layer.patch_norm) for patch in image] + normed
            keys = [_apply(to_kv[:inner], c) for c in context]
            values = [_apply(to_kv[inner:], c) for c in context]
            moved = []
            for latent, query in zip(latents, normed, strict=True):
                read = _attend(_apply(to_q, query), keys, values, layer.attention.heads)
                latent = [a + b for a, b in zip(latent, _apply(to_out, read), strict=True)]
                hidden = [
                    ACTIVATIONS[activation](h) for h in _apply(wide, _norm(latent, layer.ffw[0]))
                ]
                moved.append([a + b for a, b in zip(latent, _apply(narrow, hidden), strict=True)])
            latents = moved
        images.append([_norm(latent, resampler.norm) for latent in latents])
    return torch.tensor(images)
