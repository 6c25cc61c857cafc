"""Scores of images with texts, a tile at a time, and what processes tell each other of them.

Letters: B pairs of this process, N pairs of all processes, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

TILE = {"cpu": 1024, "cuda": 4096}
"""Rows and columns of a tile: enough for a matrix product to run at full speed."""


def wide(features: Tensor) -> torch.dtype:
    """The precision that sums are taken in."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Tile:
    """Scores (r, c) of a run of images with a run of texts.

    Attributes:
        rows, columns: Which images of this process, and which texts of all.
        images, words: Their vectors (r, D) and (c, D) in full precision.
        scores: Their scores; -inf for pairs that are left out.
        positive: Index of the scores of pairs that belong together; None without any.
        weight: What each of those counts for, so that an image's sum to 1.
    """

    rows: slice
    columns: slice
    images: Tensor
    words: Tensor
    scores: Tensor
    positive: tuple[Tensor, Tensor] | Tensor | None
    weight: Tensor | float


class Tiles:
    """The scores of this process's images with all texts, a tile at a time.

    Args:
        image: This process's images (B, D).
        text: All texts (N, D).
        scale: Factor on similarities.
        bias: What is added to them.
        names: Of all pairs (N,), or None.
        spread: Whether pairs of the same name belong together; else they are left out.
        first: Number of this process's first pair among all.
        size: Rows and columns of a tile.
    """

    def __init__(
        self,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        names: Tensor | None,
        *,
        spread: bool,
        first: int,
        size: int | None,
    ) -> None:
        self.image, self.text, self.scale, self.bias = image, text, scale, bias
        self.names, self.spread, self.first = names, spread, first
        self.size = size or TILE.get(image.device.type, TILE["cuda"])
        self.dtype = wide(image)
        self._counts: Tensor | None = None
        if names is not None and spread:
            _, place, counts = torch.unique(names, return_inverse=True, return_counts=True)
            self._counts = counts[place].to(self.dtype)

    def __iter__(self) -> Iterator[Tile]:
        for i in range(0, len(self.image), self.size):
            rows = slice(i, min(i + self.size, len(self.image)))
            images = self.image[rows].to(self.dtype)
            for j in range(0, len(self.text), self.size):
                columns = slice(j, min(j + self.size, len(self.text)))
                yield self._tile(rows, columns, images, self.text[columns].to(self.dtype))

    def _tile(self, rows: slice, columns: slice, images: Tensor, words: Tensor) -> Tile:
        scores = (images * self.scale) @ words.T
        if self.bias is not None:
            scores.add_(self.bias)
        positive: tuple[Tensor, Tensor] | Tensor | None = self._own(rows, columns)
        weight: Tensor | float = 1.0
        if self.names is not None:
            whole = slice(rows.start + self.first, rows.stop + self.first)
            same = self.names[whole, None] == self.names[columns]
            if self._counts is not None:
                positive = same
                weight = (1 / self._counts[whole, None]).expand_as(same)[same]
            else:
                if positive is not None:
                    same[positive] = False
                scores.masked_fill_(same, -torch.inf)
        return Tile(rows, columns, images, words, scores, positive, weight)

    def _own(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor] | None:
        """Places in a tile, (rows, columns), of images and their own texts; None without any."""
        start = max(rows.start + self.first, columns.start)
        stop = min(rows.stop + self.first, columns.stop)
        if start >= stop:
            return None
        each = torch.arange(start, stop, device=self.image.device)
        return each - self.first - rows.start, each - columns.start


# --- Processes -----------------------------------------------------------------------------------


def gathered(
    text: Tensor, names: Tensor | None, group: dist.ProcessGroup | None
) -> tuple[list[int], Tensor, Tensor | None]:
    """How many pairs each process holds; texts and names of all, in the order of ranks."""
    if group is None or dist.get_world_size(group) == 1:
        return [len(text)], text, names
    count = dist.get_world_size(group)
    told = [torch.empty(1, dtype=torch.long, device=text.device) for _ in range(count)]
    dist.all_gather(told, told[0].new_tensor([len(text)]), group=group)
    sizes = [int(size) for size in told]
    words = _all(text, sizes, group)
    return sizes, words, None if names is None else _all(names, sizes, group)


def _all(tensor: Tensor, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
    """Rows of all processes, which are sent as if all held as many as the fullest."""
    most = max(sizes)
    padded = tensor.new_zeros(most, *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    found = tensor.new_empty(most * len(sizes), *tensor.shape[1:])
    dist.all_gather([found[i * most :][:most] for i in range(len(sizes))], padded, group=group)
    if min(sizes) == most:
        return found
    return torch.cat([found[i * most : i * most + n] for i, n in enumerate(sizes)])


def put_together(sums: Tensor, group: dist.ProcessGroup | None) -> None:
    """Log-sum-exps over each process's rows, (N,), as those over all rows; in place."""
    if group is None or dist.get_world_size(group) == 1:
        return
    peak = sums.clone()
    dist.all_reduce(peak, dist.ReduceOp.MAX, group=group)
    sums.sub_(peak).exp_()
    dist.all_reduce(sums, group=group)
    sums.log_().add_(peak)


def summed_home(gradient: Tensor, sizes: list[int], group: dist.ProcessGroup | None) -> Tensor:
    """The sum over processes of a gradient (N, D), the rows of this process's own texts."""
    if group is None or len(sizes) == 1:
        return gradient
    rank = dist.get_rank(group)
    if min(sizes) == max(sizes):
        home = gradient.new_empty(sizes[rank], *gradient.shape[1:])
        parts = [gradient[i * len(home) :][: len(home)] for i in range(len(sizes))]
        dist.reduce_scatter(home, parts, group=group)
        return home
    dist.all_reduce(gradient, group=group)
    return gradient.split(sizes)[rank].clone()  # type: ignore[no-untyped-call]


def first_of(sizes: list[int], group: dist.ProcessGroup | None) -> int:
    """Number of this process's first pair among all."""
    return 0 if group is None or len(sizes) == 1 else sum(sizes[: dist.get_rank(group)])
