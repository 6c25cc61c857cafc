"""Where the bytes of an attachment are. Pure: no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from isthmus.errors import ImageError, MediaError


@dataclass(frozen=True)
class FileRef:
    """Where the bytes of an image, a sound or the like are: a file, a stretch of one, or memory.

    Attributes:
        path: The file; for bytes in memory, a name to call them by.
        start: First byte in the file (a member of a tar shard).
        size: Number of bytes; None reads to the end of the file.
        member: The name inside of the file, for messages.
        data: The bytes themselves, where there is no file.
        kind: What they are, by the name of a `media.kinds.Kind`.

    Example:
        >>> str(FileRef(Path("shard.tar"), start=512, size=9, member="cat.jpg"))
        'shard.tar:cat.jpg'
    """

    path: Path
    start: int = 0
    size: int | None = None
    member: str = ""
    data: bytes | None = field(default=None, repr=False)
    kind: str = "image"

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    @property
    def is_features(self) -> bool:
        """Whether these are features (N, D) in an `.npy` file, computed before."""
        return Path(self.member or self.path).suffix == ".npy"

    def read(self) -> bytes:
        """The bytes.

        Raises:
            MediaError: If the file is missing or cannot be read; for an image an ImageError.
        """
        if self.data is not None:
            return self.data
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                return file.read(-1 if self.size is None else self.size)
        except OSError as error:
            kind = ImageError if self.kind == "image" else MediaError
            raise kind(f"cannot read {self}: {error.strerror or error}") from error
