"""The shape of an image's features: patches, and what may follow them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FeatureShape:
    """Shape of one image's features.

    Attributes:
        width: Width D.
        tokens: Number of vectors N.
        grid: (rows, columns) if the vectors are an image's patches row by row, else None.
        regions: What follows the patches, where `VisionConfig.regions` asks for it; the grid is
            then that of the patches alone.
    """

    width: int
    tokens: int
    grid: tuple[int, int] | None
    regions: RegionShape | None = None

    @property
    def patches(self) -> int:
        """How many of the vectors stand before what is seen of regions."""
        return self.tokens if self.regions is None else self.regions.patches


@dataclass(frozen=True)
class RegionShape:
    """How what is seen of regions is written behind the patches: row by row, filled up with zeros.

    Attributes:
        patches: Vectors before them.
        count: Regions R, the whole image first.
        stages: Numbers W that the stages say of each.
        classes: Scores C of the classifier for each, behind those.
        rows: Vectors that each region takes.
    """

    patches: int
    count: int
    stages: int
    classes: int
    rows: int

    def split(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Patches (B, N, D), stages (B, R, W) and scores (B, R, C) of features (B, N + R rows, D).

        Example:
            >>> import torch
            >>> shape = RegionShape(patches=4, count=2, stages=3, classes=2, rows=1)
            >>> [t.shape[1:] for t in shape.split(torch.zeros(1, 6, 8))]
            [torch.Size([4, 8]), torch.Size([2, 3]), torch.Size([2, 2])]
        """
        behind = features[..., self.patches :, :]
        told = behind.reshape(*behind.shape[:-2], self.count, -1)[..., : self.stages + self.classes]
        return features[..., : self.patches, :], told[..., : self.stages], told[..., self.stages :]
