"""Search: images of folders by their content, with words or with an image.

An index is a folder: a table of files (`file_table.py`) and vectors (`segments.py`). The table says
in one transaction which files of vectors count, so that an index is whole whenever the machine
stops.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from isthmus.data.folders import images_in
from isthmus.errors import CheckpointError, ImageError, InputError
from isthmus.media.image import MOST_FILE_BYTES, Source, open_image
from isthmus.media.prefetch import prefetch
from isthmus.model.clip.checkpoint import load_clip
from isthmus.model.clip.dual_encoder import DECODERS, DualEncoder
from isthmus.search.file_table import FileTable
from isthmus.search.segments import PATTERN, VectorSegments

FORMAT = 1
SAVE_EVERY = 30.0
"""Seconds of work that a crash can cost, and more where writing takes long."""


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes:
        path: Where it is.
        score: Cosine with the query, -1 to 1.
        copies: Where the very same file is besides.
    """

    path: Path
    score: float
    copies: tuple[Path, ...] = ()


@dataclass
class IndexReport:
    """What `ImageIndex.add` did.

    Attributes:
        added: Images that were encoded.
        known: Files that were there already, or another copy of which was.
        broken: Files that are no images, and why; they are not tried again until they change.
        forgotten: Files that are gone.
    """

    added: int = 0
    known: int = 0
    broken: list[tuple[Path, str]] = field(default_factory=list)
    forgotten: int = 0


@dataclass(frozen=True)
class _Read:
    """A file that was read: its hash, and pixels unless its content is known."""

    path: bytes
    size: int
    time: int
    hash: bytes = b""
    pixels: Tensor | None = None
    broken: str | None = None


class ImageIndex:
    """An index of images under one dual encoder.

    Args:
        folder: Where it is, or is to be made.
        model: The dual encoder, or what `load_clip` takes; its image tower must be the one
            that the index was made with.
        batch_size: Images in one pass.
        device: Where a model that is named is loaded to; see `load_clip`.
        dtype: Its data type likewise.

    Raises:
        CheckpointError: If the index was made with another model, is damaged, or is of a later
            version of Isthmus.
        MissingExtraError: If usearch is not installed.

    Example:
        >>> index = ImageIndex("index", "tiny-clip")  # doctest: +SKIP
        >>> index.add("photos").added  # doctest: +SKIP
        1204
        >>> index.search("a red car", k=3)[0].path  # doctest: +SKIP
        PosixPath('/home/ada/photos/2019/beetle.jpg')
    """

    def __init__(
        self,
        folder: str | Path,
        model: Any = "tiny-clip",
        *,
        batch_size: int = 32,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = "auto",
    ) -> None:
        self.folder = Path(folder)
        self.model: DualEncoder = load_clip(model, device=device, dtype=dtype)
        self.batch_size = batch_size
        self._next = 1
        self._table = FileTable(self.folder)
        try:
            width = int(self.model.encode_texts(["a"]).shape[1])
            self._check(width)
            self._segments = VectorSegments(self.folder, width, self._table.fact("vectors") or [])
        except BaseException:
            self._table.close()
            raise

    def __len__(self) -> int:
        """How many different images can be found."""
        return self._table.count()

    def __enter__(self) -> ImageIndex:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the database; everything is on disk already."""
        self._table.close()

    # --- Filling ----------------------------------------------------------------------------

    def add(
        self,
        sources: str | Path | Iterable[str | Path],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> IndexReport:
        """Adds what is new in folders, or files; forgets what is gone from those folders.

        A file of the same size and time as before is not read; a content that is known is not
        encoded again. Stopped at any moment, it goes on from the last half minute.

        Args:
            sources: A folder or file, or several. Hidden folders and links to folders are left
                out.
            progress: Is told how many files were looked at since it was last told.

        Raises:
            InputError: If a source does not exist, or another process is filling the index.
        """
        given = [sources] if isinstance(sources, str | Path) else list(sources)
        places = [Path(os.path.abspath(source)) for source in given]
        for place in places:
            if not place.exists():
                raise InputError(f"no file or folder at {place}: check the path")
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"another process is filling the index in {self.folder}: wait for it, or search "
                "what is there (--no-update)"
            ) from None
        report = IndexReport()
        try:
            files = self._table.fact("vectors") or []
            if files != self._segments.files:  # another process filled it meanwhile
                self._segments = VectorSegments(self.folder, self._segments.width, files)
            self._remove_leftovers()
            self._next = self._segments.last_number + 1
            self._fill(places, report, progress or (lambda n: None))
            report.forgotten = self._table.forget_gone(p for p in places if p.is_dir())
            self._compact()
        finally:
            self._save()  # Ctrl-C loses nothing either
            lock.release()
        return report

    def _fill(
        self, places: list[Path], report: IndexReport, progress: Callable[[int], object]
    ) -> None:
        saved, took = time.monotonic(), 0.0
        wanted = self._unknown(places, report, progress)
        ahead = 2 * max(self.batch_size, DECODERS)
        with closing(prefetch(wanted, self._opened, workers=DECODERS, ahead=ahead)) as opened:
            while batch := list(islice(opened, self.batch_size)):
                self._take(batch, report)
                progress(len(batch))
                if time.monotonic() - saved > max(SAVE_EVERY, 10 * took):
                    began = time.monotonic()
                    self._save()
                    saved = time.monotonic()
                    took = saved - began

    def _unknown(
        self, places: list[Path], report: IndexReport, progress: Callable[[int], object]
    ) -> Iterator[tuple[bytes, int, int]]:
        """Files that are new or changed, with their sizes and times."""
        seen: set[bytes] = set()
        for place in places:
            for path in paths_in(place, self.folder):
                name = os.fsencode(path)
                try:
                    told = os.stat(path)
                except OSError:  # gone meanwhile, or a link to nowhere
                    continue
                if len(places) > 1:
                    if name in seen:
                        continue
                    seen.add(name)
                if self._table.unchanged(name, told.st_size, told.st_mtime_ns):
                    report.known += 1
                    progress(1)
                else:
                    yield name, told.st_size, told.st_mtime_ns

    def _opened(self, wanted: tuple[bytes, int, int]) -> _Read:
        """Reads and decodes a file, in a thread."""
        name, size, mtime = wanted
        try:
            if size > MOST_FILE_BYTES:
                raise ImageError(f"it has more than {MOST_FILE_BYTES // 1_000_000} MB")
            data = Path(os.fsdecode(name)).read_bytes()
            digest = hashlib.sha256(data).digest()
            if self._table.number(digest) is not None:
                return _Read(name, size, mtime, digest)
            return _Read(name, size, mtime, digest, self.model.preprocess(open_image(data)))
        except (ImageError, OSError) as error:
            return _Read(name, size, mtime, broken=str(error))

    @torch.no_grad()
    def _take(self, batch: list[_Read], report: IndexReport) -> None:
        """Encodes what is new of a batch, and notes all of it; nothing is committed yet."""
        fresh = {read.hash: read.pixels for read in batch if read.pixels is not None}
        fresh = {
            hash_: pixels for hash_, pixels in fresh.items() if self._table.number(hash_) is None
        }
        if fresh:
            vectors = self.model.encode_pixels(torch.stack(list(fresh.values()))).float().cpu()
            first = self._next
            self._next += len(fresh)
            numbers = dict(zip(fresh, range(first, self._next), strict=True))
            # In this order, Ctrl-C in between leaves a vector that no file has, which is harmless
            self._segments.add(list(numbers.values()), vectors.numpy())
            self._table.add_contents(numbers)
        for read in batch:
            number = self._table.number(read.hash) if read.broken is None else None
            told = (read.path, read.size, read.time)
            self._table.note(*told, content=number, broken=read.broken)
            if read.broken is not None:
                report.broken.append((Path(os.fsdecode(read.path)), read.broken))
        report.added += len(fresh)
        report.known += sum(read.broken is None for read in batch) - len(fresh)

    def _compact(self) -> None:
        """Rewrites the vectors when more than a third are of no file any more."""
        live = self._table.live()
        if len(live) >= len(self._segments) * 2 / 3:
            return
        self._save()
        self._segments = self._segments.rewritten(np.array(sorted(live), dtype=np.uint64))
        self._table.forget_contents()
        self._save()

    # --- Searching --------------------------------------------------------------------------

    def search(self, query: str, k: int = 10, *, within: str | Path | None = None) -> list[Hit]:
        """The images nearest to words, nearest first.

        Args:
            query: What is looked for, as the text tower was trained on: "a red car".
            k: How many at most.
            within: Only images in this folder.

        Raises:
            PromptError: If it has more tokens than the text tower reads.
            InputError: If it is empty.
        """
        if not query.strip():
            raise InputError('got an empty query: say what to look for, such as "a red car"')
        return self.search_vector(self.model.encode_texts([query])[0], k, within=within)

    def search_like(
        self, image: Source, k: int = 10, *, within: str | Path | None = None
    ) -> list[Hit]:
        """The images nearest to an image; it comes first if it is among them.

        Raises:
            ImageError: If it is none.
        """
        return self.search_vector(self.model.encode_images([image])[0], k, within=within)

    def search_vector(
        self, vector: Tensor, k: int = 10, *, within: str | Path | None = None
    ) -> list[Hit]:
        """The images nearest to a vector (D,)."""
        if k < 1:
            raise InputError(f"got k = {k}: expected at least 1")
        start = b"" if within is None else os.fsencode(os.path.join(os.path.abspath(within), ""))
        query = torch.nn.functional.normalize(vector.detach().float().cpu(), dim=0).numpy()
        asked, most = k + 8, len(self._segments)
        while True:
            hits = []
            for number, score in zip(*self._segments.nearest(query, asked), strict=True):
                paths = [p for p in self._table.paths(int(number)) if p.startswith(start)]
                if paths:
                    first, *others = (Path(os.fsdecode(p)) for p in paths)
                    hits.append(Hit(first, float(score), tuple(others)))
                if len(hits) == k:
                    return hits
            if asked >= most:
                return hits
            asked = min(most, 4 * asked)  # the others were of files that are gone, or elsewhere

    # --- On disk ----------------------------------------------------------------------------

    def _check(self, width: int) -> None:
        """Whether the index is this model's; a new one is claimed for it.

        The text tower may be another, such as one trained longer: the vectors are of images.
        """
        own = {"format": FORMAT, "width": width, "image": self.model.image_fingerprint()}
        made = self._table.fact("made")
        if made is None:
            self._table.remember("made", {**own, "model": self.model.name})
            self._table.commit()
            return
        if made["format"] != FORMAT:
            raise CheckpointError(
                f"the index in {self.folder} is of format {made['format']}, expected {FORMAT}: "
                "use the version of Isthmus that made it, or another folder"
            )
        if {name: made[name] for name in own} != own:
            raise CheckpointError(
                f"the index in {self.folder} was made with another image tower "
                f'("{made["model"]}"), got that of "{self.model.name}": use the model that it was '
                "made with, or another folder"
            )

    def _save(self) -> None:
        """Vectors first, then the transaction that makes them count."""
        self._segments.write()
        self._table.remember("vectors", self._segments.files)
        self._table.commit()
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """Files of vectors that do not count, of a crash or replaced by longer ones."""
        for path in self.folder.glob(PATTERN):
            if path.name not in self._segments.files:
                with suppress(OSError):  # elsewhere than on POSIX, somebody may search in it
                    path.unlink()


def paths_in(place: Path, but: Path) -> Iterator[str]:
    """Paths of images in a folder, by name; a file is given back as it is."""
    if not place.is_dir():
        yield str(place)
        return
    yield from map(str, images_in(place, but=but, links=False))
