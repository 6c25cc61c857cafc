"""Our cross-entropy is PyTorch's, values and gradients, chunk by chunk."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from isthmus.model import cross_entropy
from isthmus.model.cross_entropy import token_losses


def both(logits: torch.Tensor, targets: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Losses and gradients of ours and of PyTorch's, under the same weights."""
    weights = torch.linspace(0.5, 2, len(logits))
    found = []
    for losses_of in (
        token_losses,
        lambda x, t: F.cross_entropy(x.float(), t, reduction="none"),
    ):
        leaf = logits.clone().requires_grad_()
        losses = losses_of(leaf, targets)
        (losses * weights).sum().backward()
        assert leaf.grad is not None
        found.append((losses.detach(), leaf.grad))
    return found


@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_losses_and_gradients_are_those_of_pytorch(
    chunk: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cross_entropy.CHUNK, "cpu", chunk)
    torch.manual_seed(0)
    logits = (8 * torch.randn(7, 50)).to(dtype)
    logits[:, 13] = float("-inf")
    targets = torch.tensor([0, 49, 3, 3, 20, 7, 12])
    (ours, own_gradient), (theirs, gradient) = both(logits, targets)
    assert torch.allclose(ours, theirs, atol=2e-6, rtol=1e-6)
    assert own_gradient.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    assert torch.allclose(own_gradient.float(), gradient.float(), atol=tolerance, rtol=tolerance)
    assert torch.equal(own_gradient[:, 13], torch.zeros(7, dtype=dtype))


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([[1e4, 1e4 - 1, -1e4]])
    (ours, own), (theirs, gradient) = both(logits, torch.tensor([1]))
    assert torch.allclose(ours, theirs)
    assert torch.allclose(own, gradient)


def test_a_graph_can_be_gone_through_twice() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, requires_grad=True)
    losses = token_losses(logits, torch.tensor([0, 1, 2])).sum()
    (first,) = torch.autograd.grad(losses, logits, retain_graph=True)
    (second,) = torch.autograd.grad(losses, logits)
    assert torch.equal(first, second)


def test_nothing_to_lose() -> None:
    logits = torch.randn(0, 5, requires_grad=True)
    token_losses(logits, torch.zeros(0, dtype=torch.long)).sum().backward()
    assert logits.grad is not None
