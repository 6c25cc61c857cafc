"""What an export says of itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Exported:
    """A model that was written and found to be the same.

    Attributes:
        folder: Where it is.
        architecture: Its class in the other library.
        bytes: Size of its weights.
        difference: Largest difference of two logits, in fp32.
        pixels: Largest difference of two values of a pixel; 0 where both resample alike.
        notes: What whoever runs it should know.
        rounded: Size that weights were rounded to, whence the difference comes; "" for none.
    """

    folder: Path
    architecture: str
    bytes: int
    difference: float
    pixels: float
    notes: tuple[str, ...] = ()
    rounded: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "folder": str(self.folder)}
