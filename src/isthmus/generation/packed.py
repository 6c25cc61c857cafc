"""Linear layers on oneDNN, with weights laid out for it once and not in every call.

On a CPU PyTorch multiplies fp32 matrices with MKL, which rearranges the weight in each call: most
of the time of a step of a few rows goes there. oneDNN takes weights that were rearranged
beforehand, as `torch.compile` has it do. The operators are the compiler's own and may go: then, or
with `ISTHMUS_PACKED=0`, layers are left as they are (`speedups.onednn`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.config.speedups import onednn
from isthmus.model.backbones.vision import VisionEncoder

_TYPES = (torch.float32, torch.bfloat16)


class PackedLinears:
    """The linear layers of a model while they run on oneDNN.

    Only for inference: the operators have no gradient.

    Args:
        model: Its layers of exactly `nn.Linear`, on a CPU, in fp32 or bf16, are taken.
        memory: Most bytes of rearranged weights, which stand beside the model's own. Layers that
            there is no room for run on oneDNN with the weights as they are.

    Attributes:
        layers: The layers that were taken.
        bytes: Bytes of rearranged weights.

    Example:
        >>> layer = nn.Linear(8, 4)
        >>> packed = PackedLinears(layer, memory=1 << 20)
        >>> packed.restore()
    """

    def __init__(self, model: nn.Module, memory: int) -> None:
        self.layers: list[nn.Linear] = []
        self.bytes = 0
        traced = {
            layer
            for encoder in model.modules()
            if isinstance(encoder, VisionEncoder) and encoder.convolutional
            for layer in encoder.modules()
        }
        for layer in model.modules():
            if layer in traced:  # another forward in it would not go into the graph
                continue
            if type(layer) is not nn.Linear or "forward" in vars(layer):
                continue
            if layer.weight.device.type != "cpu" or layer.weight.dtype not in _TYPES:
                continue
            size = layer.weight.numel() * layer.weight.element_size()
            pack = self.bytes + size <= memory
            forward = _forward_of(layer, pack)
            if forward is None:
                continue
            vars(layer)["forward"] = forward
            self.layers.append(layer)
            self.bytes += size * pack

    def restore(self) -> None:
        """Leaves every layer as it was."""
        for layer in self.layers:
            vars(layer).pop("forward", None)
        self.layers = []
        self.bytes = 0


@torch.inference_mode()
def _forward_of(layer: nn.Linear, pack: bool) -> Callable[[Tensor], Tensor] | None:
    """A layer's forward on oneDNN; None where it cannot be had, or says something else."""
    operators = onednn()
    if operators is None:
        return None
    reorder, linear = operators
    bias = layer.bias
    try:
        weight = layer.weight.detach()
        if pack:
            weight = reorder(weight, None)

        def forward(states: Tensor) -> Tensor:
            return linear(states, weight, bias, "none", [], "")

        probe = torch.linspace(-1, 1, layer.in_features).to(layer.weight.dtype)[None]
        expected = F.linear(probe, layer.weight, layer.bias).float()
        away = (forward(probe).float() - expected).norm()
        bound = (1e-4 if layer.weight.dtype == torch.float32 else 2e-2) * expected.norm()
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        return None
    return forward if float(away) <= float(bound) else None
