"""The shape of an image's features: patches, and what may follow them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class NativeGrid:
    """How an encoder that reads images at their own resolution cuts them up.

    Attributes:
        patch: Side of a patch in pixels.
        merge: Side of a square in patches; the vectors of a square follow each other, row by row,
            and the squares do.
    """

    patch: int
    merge: int

    @property
    def multiple(self) -> int:
        """Side of a square in pixels, which divides both sides of an image."""
        return self.patch * self.merge


@dataclass(frozen=True)
class FeatureShape:
    """Shape of one image's features.

    Attributes:
        width: Width D.
        tokens: Number of vectors N, of a typical image where it varies.
        grid: (rows, columns) if the vectors are an image's patches row by row, else None.
        regions: What follows the patches, where `VisionConfig.regions` asks for it; the grid is
            then that of the patches alone.
        native: How an image is cut up where the number of vectors varies with it; there is no grid
            of all images then.
    """

    width: int
    tokens: int
    grid: tuple[int, int] | None
    regions: RegionShape | None = None
    native: NativeGrid | None = field(default=None, repr=False)

    @property
    def patches(self) -> int:
        """How many of the vectors stand before what is seen of regions."""
        return self.tokens if self.regions is None else self.regions.patches


@dataclass(frozen=True)
class RegionShape:
    """How what is seen of regions is written behind the patches: row by row, filled up with zeros.

    The map of an early stage may follow, likewise, for whoever reads what is small.

    Attributes:
        patches: Vectors before them.
        count: Regions R, the whole image first.
        stages: Numbers W that the stages say of each.
        classes: Scores C of the classifier for each, behind those.
        rows: Vectors that each region takes.
        fine: (channels, height, width) of the early map, where `VisionConfig.fine` asks for it.
    """

    patches: int
    count: int
    stages: int
    classes: int
    rows: int
    fine: tuple[int, int, int] | None = None

    def split(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Patches (B, N, D), stages (B, R, W) and scores (B, R, C) of features (B, N + R rows, D).

        What follows the regions is left out.

        Example:
            >>> import torch
            >>> shape = RegionShape(patches=4, count=2, stages=3, classes=2, rows=1)
            >>> [t.shape[1:] for t in shape.split(torch.zeros(1, 6, 8))]
            [torch.Size([4, 8]), torch.Size([2, 3]), torch.Size([2, 2])]
        """
        behind = features[..., self.patches : self.patches + self.count * self.rows, :]
        told = behind.reshape(*behind.shape[:-2], self.count, -1)[..., : self.stages + self.classes]
        return features[..., : self.patches, :], told[..., : self.stages], told[..., self.stages :]

    def fine_map(self, features: Tensor) -> Tensor:
        """The early map (B, C, h, w) of features (B, N + R rows + F, D).

        Raises:
            ValueError: If there is none.

        Example:
            >>> import torch
            >>> shape = RegionShape(4, 2, 3, 2, 1, fine=(3, 2, 2))
            >>> shape.fine_map(torch.arange(64.0).view(1, 8, 8))[0, :, 0].tolist()
            [[48.0, 51.0], [49.0, 52.0], [50.0, 53.0]]
        """
        if self.fine is None:
            raise ValueError("these features hold no early map: set vision.fine")
        channels, height, width = self.fine
        behind = features[..., self.patches + self.count * self.rows :, :].flatten(-2)
        places = behind[..., : height * width * channels]
        return places.reshape(*places.shape[:-1], height, width, channels).movedim(-1, -3)
