"""Contrastive losses that never hold the square of the batch.

Scores are computed a tile at a time: the forward pass keeps a log-sum-exp for each row and column,
the backward pass computes each tile again and adds its share to the gradients. Memory grows with
the batch and not with its square, and the result is exact.

Spread over processes, each holds the rows of its own images: texts are gathered once, the
column sums of all processes are put together, and each text's gradient is summed at the process
that it came from. A loss is then the process's *share*: the shares of all processes sum to the
loss of the whole batch, and so do the gradients of anything that all of them hold.

Letters: B pairs of this process, N pairs of all processes, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from isthmus.errors import ConfigError, InputError, suggestion
from isthmus.training.losses.tiles import (
    Tile,
    Tiles,
    first_of,
    gathered,
    put_together,
    summed_home,
    wide,
)

SameName = Literal["negative", "neither", "positive"]
SAME_NAME = ("negative", "neither", "positive")


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    factor: Tensor | float,
    *,
    names: Tensor | None = None,
    same_name: SameName = "neither",
    tile: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Symmetric InfoNCE: each image must find its text among all, and each text its image.

    The mean over images and texts of the cross-entropy of `factor * image . text` (CLIP, Radford
    et al. 2021, arXiv 2103.00020, figure 3).

    Args:
        image_features: Vectors (B, D) of length 1, in any precision; sums are taken in fp32, or in
            fp64 if the features are.
        text_features: Vectors (B, D) of length 1; row i belongs to image i.
        factor: What similarities are multiplied with: `model.logit_scale.exp()`.
        names: (B,) int64, the same number for pairs that show the same thing, whose crossed pairs
            would be false negatives.
        same_name: What such crossed pairs are: "neither" leaves them out of the sums; "positive"
            spreads the target evenly over them (UniCL, Yang et al. 2022, arXiv 2204.03610,
            section 3.2); "negative" is plain InfoNCE. Without `names` all are "negative".
        tile: Rows and columns that are scored at once; it changes nothing else.
        group: Processes that share the batch; None for this one alone.

    Returns:
        This process's share of the loss, a scalar: the whole where it is alone. Differentiable
        once, for both features and the factor.

    Raises:
        InputError: If shapes do not match.
        ConfigError: If `same_name` or `tile` is out of range.

    Example:
        >>> one_hot = torch.eye(4)
        >>> float(clip_loss(one_hot, one_hot, 0.0).exp())  # nothing known: a choice out of 4
        4.0
    """
    scale = _checked(image_features, text_features, factor, names, same_name, tile)
    loss: Tensor = _ClipLoss.apply(
        image_features, text_features, scale, names, same_name, tile, group
    )
    return loss


def siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    factor: Tensor | float,
    bias: Tensor | float,
    *,
    names: Tensor | None = None,
    same_name: SameName = "neither",
    tile: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Sigmoid loss: for each image and each text by itself, whether they belong together.

    The sum over all pairs of `-log sigmoid(z (factor * image . text + bias))`, z = 1 for pairs that
    belong together and -1 for others, over N (SigLIP, Zhai et al. 2023, arXiv 2303.15343,
    equation 1).

    Args:
        image_features: As in `clip_loss`.
        text_features: As in `clip_loss`.
        factor: What similarities are multiplied with: `model.logit_scale.exp()`.
        bias: What is added then: `model.logit_bias`.
        names: As in `clip_loss`.
        same_name: As in `clip_loss`; "positive" has z = 1.
        tile: As in `clip_loss`.
        group: As in `clip_loss`.

    Returns:
        This process's share of the loss; see `clip_loss`. Differentiable once, for both features,
        the factor and the bias.

    Raises:
        InputError: If shapes do not match.
        ConfigError: If `same_name` or `tile` is out of range.

    Example:
        >>> one_hot = torch.eye(4)
        >>> float(siglip_loss(one_hot, one_hot, 0.0, 0.0) / torch.tensor(2.0).log())
        4.0
    """
    scale = _checked(image_features, text_features, factor, names, same_name, tile)
    offset = torch.as_tensor(bias, dtype=scale.dtype, device=scale.device)
    loss: Tensor = _SigLipLoss.apply(
        image_features,
        text_features,
        scale,
        offset,
        names,
        same_name,
        tile,
        group,
    )
    return loss


def _checked(
    image: Tensor,
    text: Tensor,
    factor: Tensor | float,
    names: Tensor | None,
    same_name: str,
    tile: int | None,
) -> Tensor:
    """The factor as a tensor, of arguments that fit together."""
    if image.ndim != 2 or image.shape != text.shape or not len(image):
        raise InputError(
            f"image features are {tuple(image.shape)}, text features {tuple(text.shape)}: expected "
            "both (B, D), a row for each pair"
        )
    if names is not None and (names.shape != image.shape[:1] or names.is_floating_point()):
        raise InputError(
            f"names are {tuple(names.shape)} of {names.dtype}: expected ({len(image)},) integers, "
            "one for each pair"
        )
    if same_name not in SAME_NAME:
        raise ConfigError(f'unknown same_name "{same_name}": {suggestion(same_name, SAME_NAME)}')
    if tile is not None and tile < 1:
        raise ConfigError(f"tile is {tile}: expected at least 1")
    return torch.as_tensor(factor, dtype=wide(image), device=image.device)


class _ClipLoss(torch.autograd.Function):
    """Softmax over rows and over columns."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        names: Tensor | None,
        same_name: SameName,
        tile: int | None,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        tiles = _tiles(ctx, image, text, scale, None, names, same_name, tile, group)
        row_sums = image.new_full((len(image),), -torch.inf, dtype=tiles.dtype)
        column_sums = image.new_full((len(tiles.text),), -torch.inf, dtype=tiles.dtype)
        agreed = row_sums.new_zeros(())
        with torch.autocast(image.device.type, enabled=False):
            for t in tiles:
                if t.positive is not None:
                    agreed += (t.scores[t.positive] * t.weight).sum()
                row_sums[t.rows] = torch.logaddexp(row_sums[t.rows], t.scores.logsumexp(1))
                found = t.scores.logsumexp(0)
                column_sums[t.columns] = torch.logaddexp(column_sums[t.columns], found)
        put_together(column_sums, group)
        ctx.save_for_backward(image, tiles.text, scale, None, tiles.names, row_sums, column_sums)
        own = column_sums[tiles.first : tiles.first + len(image)]
        return ((row_sums.sum() + own.sum()) / 2 - agreed) / len(tiles.text)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        *of_tiles, row_sums, column_sums = ctx.saved_tensors

        def slope(t: Tile) -> Tensor:
            found = (t.scores - row_sums[t.rows, None]).exp_()
            found.add_(t.scores.sub_(column_sums[t.columns]).exp_()).mul_(0.5)
            if t.positive is not None:
                found[t.positive] -= t.weight
            return found

        d_image, d_text, d_scale, _ = _gradients(ctx, of_tiles, slope, upstream)
        return d_image, d_text, d_scale, None, None, None, None


class _SigLipLoss(torch.autograd.Function):
    """A sigmoid for each pair."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor,
        names: Tensor | None,
        same_name: SameName,
        tile: int | None,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        tiles = _tiles(ctx, image, text, scale, bias, names, same_name, tile, group)
        total = image.new_zeros((), dtype=tiles.dtype)
        with torch.autocast(image.device.type, enabled=False):
            for t in tiles:
                # -log sigmoid(s) = softplus(s) - s
                if t.positive is not None:
                    total -= t.scores[t.positive].sum()
                total += F.softplus(t.scores).sum()
        ctx.save_for_backward(image, tiles.text, scale, bias, tiles.names)
        return total / len(tiles.text)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        def slope(t: Tile) -> Tensor:
            found = t.scores.sigmoid_()
            if t.positive is not None:
                found[t.positive] -= 1
            return found

        found = _gradients(ctx, ctx.saved_tensors, slope, upstream)
        return *found, None, None, None, None


def _tiles(
    ctx: Any,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    names: Tensor | None,
    same_name: SameName,
    size: int | None,
    group: dist.ProcessGroup | None,
) -> Tiles:
    """The tiles of a loss, with what the backward pass needs to make them again left in `ctx`."""
    names = None if same_name == "negative" else names
    ctx.group = group
    ctx.sizes, text, names = gathered(text, names, group)
    first = first_of(ctx.sizes, group)
    ctx.how = {"spread": same_name == "positive", "first": first, "size": size}
    return Tiles(image, text, scale, bias, names, **ctx.how)


def _gradients(
    ctx: Any, of_tiles: Sequence[Any], slope: Callable[[Tile], Tensor], upstream: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of images, texts, factor and bias.

    Args:
        ctx: Of the function.
        of_tiles: What `Tiles` takes.
        slope: The gradient of a tile's scores; it may overwrite them.
        upstream: The gradient of the loss.
    """
    tiles = Tiles(*of_tiles, **ctx.how)
    image, text, scale = tiles.image, tiles.text, tiles.scale
    wanted = ctx.needs_input_grad
    upstream = upstream / len(text)
    d_image = torch.zeros_like(image, dtype=tiles.dtype)
    d_text = torch.zeros_like(text, dtype=tiles.dtype)
    d_bias = d_image.new_zeros(())
    with torch.autocast(image.device.type, enabled=False):
        for t in tiles:
            found = slope(t)
            d_image[t.rows].addmm_(found, t.words)
            if wanted[1]:
                d_text[t.columns].addmm_(found.T, t.images)
            if tiles.bias is not None:
                d_bias += found.sum()
    # The factor's gradient is the sum over all pairs of gradient and similarity, and the
    # similarities are sums over what d_image holds already
    d_scale = d_image.new_zeros(())
    for i in range(0, len(image), tiles.size):
        d_scale += (d_image[i : i + tiles.size] * image[i : i + tiles.size]).sum()
    if wanted[1]:
        d_text = summed_home(d_text, ctx.sizes, ctx.group)
    return (
        d_image.mul_(upstream * scale).to(image.dtype) if wanted[0] else None,
        d_text.mul_(upstream * scale).to(text.dtype) if wanted[1] else None,
        d_scale * upstream if wanted[2] else None,
        d_bias * upstream if tiles.bias is not None and wanted[3] else None,
    )
