"""Scores of pictures with texts, a tile at a time, and what processes tell each other of them.

Letters: B pairs of this process, N pairs of all processes, D width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch import distributed as dist

TILE = {"cpu": 1024, "cuda": 4096}
"""Rows and columns of a tile: enough for a matrix product to run at full speed."""


def wide(features: Tensor) -> torch.dtype:
    """The precision that sums are taken in."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


class Tiles:
    """The scores of this process's pictures with all texts, a tile at a time.

    Args:
        image: This process's pictures (B, D).
        text: All texts (N, D).
        scale: Factor on similarities.
        bias: What is added to them.
        names: Of all pairs (N,), or None.
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
        first: int,
        size: int | None,
    ) -> None:
        self.image, self.text, self.scale, self.bias = image, text, scale, bias
        self.names, self.first = names, first
        self.size = size or TILE.get(image.device.type, TILE["cuda"])
        self.dtype = wide(image)

    def rows(self) -> Iterator[tuple[slice, Tensor]]:
        """Runs of pictures, and their vectors (r, D) in full precision."""
        for i in range(0, len(self.image), self.size):
            rows = slice(i, min(i + self.size, len(self.image)))
            yield rows, self.image[rows].to(self.dtype)

    def columns(self) -> Iterator[tuple[slice, Tensor]]:
        """Runs of texts, and their vectors (c, D) in full precision."""
        for j in range(0, len(self.text), self.size):
            columns = slice(j, min(j + self.size, len(self.text)))
            yield columns, self.text[columns].to(self.dtype)

    def scores(self, image: Tensor, text: Tensor) -> Tensor:
        """Scores (r, c) of vectors."""
        found = (image * self.scale) @ text.T
        return found if self.bias is None else found.add_(self.bias)

    def own(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor] | None:
        """Places in a tile, (rows, columns), of pictures and their own texts; None without any."""
        start = max(rows.start + self.first, columns.start)
        stop = min(rows.stop + self.first, columns.stop)
        if start >= stop:
            return None
        each = torch.arange(start, stop, device=self.image.device)
        return each - self.first - rows.start, each - columns.start

    def same(self, rows: slice, columns: slice) -> Tensor | None:
        """Where picture and text (r, c) have the same name, their own included; None if unnamed."""
        if self.names is None:
            return None
        mine = self.names[rows.start + self.first : rows.stop + self.first]
        return mine[:, None] == self.names[columns]

    def crossed(self, rows: slice, columns: slice) -> Tensor | None:
        """As `same`, without their own."""
        same = self.same(rows, columns)
        if same is not None and (own := self.own(rows, columns)) is not None:
            same[own] = False
        return same


# --- Processes -----------------------------------------------------------------------------------


def gathered(
    text: Tensor, names: Tensor | None, group: dist.ProcessGroup | None
) -> tuple[list[int], Tensor, Tensor | None]:
    """How many pairs each process holds; texts and names of all, in the order of ranks."""
    if group is None or dist.get_world_size(group) == 1:
        return [len(text)], text, names
    count = dist.get_world_size(group)
    told = torch.empty(count, dtype=torch.long, device=text.device)
    dist.all_gather_into_tensor(told, told.new_tensor([len(text)]), group=group)
    sizes: list[int] = told.tolist()
    words = _all(text, sizes, group)
    return sizes, words, None if names is None else _all(names, sizes, group)


def _all(tensor: Tensor, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
    """Rows of all processes, which are sent as if all held as many as the fullest."""
    most = max(sizes)
    padded = tensor.new_zeros(most, *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    found = tensor.new_empty(most * len(sizes), *tensor.shape[1:])
    dist.all_gather_into_tensor(found, padded, group=group)
    if min(sizes) == most:
        return found
    return torch.cat([part[:n] for part, n in zip(found.split(most), sizes, strict=True)])


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
        dist.reduce_scatter_tensor(home, gradient, group=group)
        return home
    dist.all_reduce(gradient, group=group)
    return gradient.split(sizes)[rank].clone()


def first_of(sizes: list[int], group: dist.ProcessGroup | None) -> int:
    """Number of this process's first pair among all."""
    return 0 if group is None or len(sizes) == 1 else sum(sizes[: dist.get_rank(group)])
