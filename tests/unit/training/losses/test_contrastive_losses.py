"""Contrastive losses in tiles are the plain formulas, with their gradients, in little memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from isthmus.errors import ConfigError, InputError
from isthmus.training.losses import contrastive as losses
from isthmus.training.losses.contrastive import clip_loss, siglip_loss

PAIRS = 11


def features(
    pairs: int = PAIRS, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    drawn = (torch.randn(pairs, 6, generator=made, dtype=torch.float64) for _ in range(2))
    image, text = (F.normalize(d, dim=-1).to(dtype).requires_grad_() for d in drawn)
    return image, text


def names() -> Tensor:
    """Three of one name, two of another, and the rest alone."""
    return torch.tensor([4, 7, 4, 1, 2, 7, 4, 0, 3, 5, 6])


def plain_clip(
    image: Tensor, text: Tensor, factor: Tensor, names: Tensor | None, same_name: str
) -> Tensor:
    """The formula over the whole matrix."""
    scores = factor * image @ text.T
    eye = torch.eye(len(image), dtype=torch.bool)
    same = eye if names is None else names[:, None] == names
    if same_name == "neither":
        scores = scores.masked_fill(same & ~eye, -torch.inf)
    targets = (same if same_name == "positive" else eye).to(scores.dtype)
    targets = targets / targets.sum(1, keepdim=True)
    rows, columns = (
        -(s.log_softmax(1).masked_fill(targets == 0, 0) * targets).sum(1).mean()
        for s in (scores, scores.T)
    )
    return (rows + columns) / 2


def plain_siglip(
    image: Tensor,
    text: Tensor,
    factor: Tensor,
    bias: Tensor,
    names: Tensor | None,
    same_name: str,
) -> Tensor:
    scores = factor * image @ text.T + bias
    eye = torch.eye(len(image), dtype=torch.bool)
    same = eye if names is None else names[:, None] == names
    signs = torch.where(same if same_name == "positive" else eye, 1.0, -1.0)
    kept = ~(same & ~eye) if same_name == "neither" else torch.ones_like(same)
    return -(F.logsigmoid(signs * scores) * kept).sum() / len(image)


def both(kind: str, factor: float = 8.0, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Value and gradients: in tiles, and by the formula."""
    found = []
    for ours in (True, False):
        image, text = features()
        scale = torch.tensor(factor, dtype=torch.float64, requires_grad=True)
        bias = torch.tensor(-1.5, dtype=torch.float64, requires_grad=True)
        given = options.get("names")
        same = options.get("same_name", "neither")
        if kind == "clip":
            inputs = [image, text, scale]
            loss = (
                clip_loss(image, text, scale, **options)
                if ours
                else plain_clip(image, text, scale, given, same)
            )
        else:
            inputs = [image, text, scale, bias]
            loss = (
                siglip_loss(image, text, scale, bias, **options)
                if ours
                else plain_siglip(image, text, scale, bias, given, same)
            )
        found.append([loss.detach(), *torch.autograd.grad(2 * loss, inputs)])
    return found[0], found[1]


@pytest.mark.parametrize("tile", [1, 3, 4, 64])
@pytest.mark.parametrize("same_name", losses.SAME_NAME)
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_tiles_are_the_formula(kind: str, named: bool, same_name: str, tile: int) -> None:
    ours, plain = both(
        kind,
        names=names() if named else None,
        same_name=same_name if named else "neither",
        tile=tile,
    )
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("same_name", ["neither", "positive"])
def test_names_matter(kind: str, same_name: str) -> None:
    named, _ = both(kind, names=names(), same_name=same_name)
    unnamed, _ = both(kind)
    assert abs(float(named[0] - unnamed[0])) > 1e-2


@pytest.mark.parametrize("same_name", losses.SAME_NAME)
def test_gradcheck(same_name: losses.SameName) -> None:
    image, text = features(5)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    some = torch.tensor([0, 1, 0, 2, 0])
    options: Any = {"names": some, "same_name": same_name, "tile": 2}
    assert torch.autograd.gradcheck(lambda *x: clip_loss(*x, **options), (image, text, scale))
    assert torch.autograd.gradcheck(
        lambda *x: siglip_loss(*x, **options), (image, text, scale, bias)
    )


def test_a_locked_side_needs_no_gradient() -> None:
    image, text = features()
    expected = torch.autograd.grad(clip_loss(image, text, 8.0, tile=4), [image, text])
    for side in (0, 1):
        free = [image, text]
        free[1 - side] = free[1 - side].detach()
        found = torch.autograd.grad(clip_loss(free[0], free[1], 8.0, tile=4), free[side])
        torch.testing.assert_close(found[0], expected[side], rtol=0, atol=0)


def test_scores_as_large_as_they_get() -> None:
    """A factor of 100 and opposite vectors: no sum overflows, none is lost."""
    image, text = features(dtype=torch.float32)
    with torch.no_grad():
        text.copy_(-image)
    ours = clip_loss(image, text, 100.0, tile=4)
    plain = plain_clip(
        image.double(), text.double(), torch.tensor(100.0).double(), None, "negative"
    )
    assert float(plain.detach()) > 100
    torch.testing.assert_close(ours.double(), plain, rtol=1e-6, atol=0)
    assert all(g.isfinite().all() for g in torch.autograd.grad(ours, [image, text]))


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_summed_in_single(autocast: bool) -> None:
    """The loss of features in bf16 is that of the same numbers in fp32, not of rounded scores."""
    image, text = features(64, dtype=torch.bfloat16)
    wide = [image.detach().float().requires_grad_(), text.detach().float().requires_grad_()]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        half = clip_loss(image, text, 50.0)
        half_sigmoid = siglip_loss(image, text, 10.0, -10.0)
    full = clip_loss(wide[0], wide[1], 50.0)
    assert half.dtype == torch.float32
    assert float(half.detach()) == float(full.detach())
    assert float(half_sigmoid.detach()) == float(siglip_loss(*wide, 10.0, -10.0).detach())
    mine = torch.autograd.grad(half, [image, text])
    theirs = torch.autograd.grad(full, wide)
    for a, b in zip(mine, theirs, strict=True):
        assert a.dtype == torch.bfloat16
        assert torch.equal(a, b.bfloat16())


def test_no_tensor_has_the_square_of_the_batch() -> None:
    """Counted where tensors are made: the largest is a tile's or the features'."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            for tensor in made if isinstance(made, tuple | list) else [made]:
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return made

    image, text = features(256)
    ids = torch.arange(256) // 2
    for same_name in losses.SAME_NAME:
        with Watch():
            clip_loss(image, text, 8.0, tile=16, names=ids, same_name=same_name).backward()
            siglip_loss(image, text, 8.0, -1.0, tile=16, names=ids, same_name=same_name).backward()
    assert largest == 256 * 6
    with Watch():
        clip_loss(image, text, 8.0, tile=256).backward()
    assert largest == 256 * 256  # and the watch sees one that has


def test_bad_input_is_named() -> None:
    image, text = features()
    with pytest.raises(InputError, match=r"image features are \(11, 6\), text features \(10, 6\)"):
        clip_loss(image, text[:10], 1.0)
    with pytest.raises(InputError, match="a row for each pair"):
        siglip_loss(image[:0], text[:0], 1.0, 0.0)
    with pytest.raises(InputError, match=r"names are \(2,\) of torch.int64: expected \(11,\)"):
        clip_loss(image, text, 1.0, names=torch.tensor([1, 2]))
    with pytest.raises(ConfigError, match='did you mean "neither"'):
        clip_loss(image, text, 1.0, same_name="neihter")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tile is 0: expected at least 1"):
        clip_loss(image, text, 1.0, tile=0)
