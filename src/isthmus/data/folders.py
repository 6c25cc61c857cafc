"""Folders of images, whatever says what is in them. Pure: no torch.

What an image is paired with, the first of these that there is:

1. `metadata.jsonl`, `metadata.csv`, `captions.jsonl` or `captions.csv` in its folder or one above:
   rows with `file_name` (Hugging Face's imagefolder) or `image`, relative to that file;
2. `cat.txt`, `cat.json` or `cat.caption` beside `cat.jpg`, in this order;
3. the name of its folder, underscores made spaces: what is in the image. Names such as `train`
   and `images` name nothing.

Endings are the same in capitals. Hidden files and folders are left out, and so is what systems put
beside people's files, such as Synology's `@eaDir`, which is full of thumbnails.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from isthmus.data.interleaved import plain
from isthmus.data.records import Record, as_records, entries_of, frames
from isthmus.data.rows import is_attachment, is_image, to_record
from isthmus.errors import ConfigError, InputError
from isthmus.media.file_ref import FileRef
from isthmus.media.image import ENDINGS, Source
from isthmus.media.kinds import kinds, reference

log = logging.getLogger(__name__)

LISTS = ("metadata.jsonl", "metadata.csv", "captions.jsonl", "captions.csv")
SYSTEM = frozenset(
    (
        "@eadir",
        "@tmp",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "__macosx",
        "$recycle.bin",
        "system volume information",
        "lost+found",
    )
)
"""Folders of NAS systems, archives and file systems, in small letters."""
BESIDE = (".txt", ".json", ".caption")
"""Endings of a text beside an image: the first that is found is taken."""
NO_NAMES = frozenset(
    ("train", "training", "val", "valid", "validation", "dev", "test", "images", "pictures", "data")
)
"""Folders that say which images, and not what is in them."""


def is_left_out(name: str) -> bool:
    """Whether a file or folder is no data by its name.

    Example:
        >>> [is_left_out(name) for name in (".git", "._a.jpg", "@eaDir", "cats")]
        [True, True, True, False]
    """
    return name.startswith(".") or name.lower() in SYSTEM


def read_folder(folder: Path, read_list: Callable[[Path], Sequence[Record]]) -> Sequence[Record]:
    """The records of a tree of images, in the order of their paths.

    Args:
        folder: The tree's root.
        read_list: Reads a JSONL or CSV file whose images are relative to it.

    Returns:
        The records. What is wrong with one, or that nothing says what is in an image, is raised
        when it is asked for.

    Raises:
        ConfigError: If there is no image, or a list as a whole cannot be read.
    """
    records: list[Record | str] = []
    listed: set[Path] = set()
    images: list[tuple[Path, Path | None]] = []
    texts: dict[Path, Path] = {}
    for inside, files, list_file in walk(folder):
        if list_file is not None and list_file.parent == inside:
            rows = list(entries_of(read_list(list_file)))
            records.extend(rows)
            found = [r for r in rows if isinstance(r, Record)]
            listed.update(_normal(p.path) for r in found for m in r.images for p in frames(m))
        own = [file for file in files if is_attachment(file)]
        texts |= _beside(own, files)
        images.extend((file, list_file) for file in own)
    if not images and not records:
        raise ConfigError(f"no images in {folder}: expected a folder tree of images")

    with_texts = {p.parent for p in texts}
    left_out: list[Path] = []
    for image, list_file in images:
        if _normal(image) in listed:
            continue
        if image in texts:
            records.append(_tried(_captioned, image, texts[image]))
        elif list_file is not None or image.parent in with_texts:
            # Its neighbours have texts of their own: the folder's name is not meant as one
            left_out.append(image)
        else:
            records.append(_tried(_named, image, folder))
    if left_out:
        first = ", ".join(str(p) for p in left_out[:3])
        log.warning("%s: %d images have no text, left out: %s", folder, len(left_out), first)
    return as_records(records)


def _tried(make: Callable[[Path, Path], Record], image: Path, other: Path) -> Record | str:
    """A record, or what is wrong with it."""
    try:
        return make(image, other)
    except ConfigError as error:
        return str(error)


def walk(
    root: Path, *, but: Path | None = None, links: bool = True
) -> Iterator[tuple[Path, list[Path], Path | None]]:
    """Each folder of a tree, its files, and the list that holds for it, without `is_left_out`.

    Args:
        root: The tree's root.
        but: A folder in it that is left out too.
        links: Whether links to folders are followed; each folder is seen once.
    """
    left_out = None if but is None else os.path.abspath(but)
    seen: set[str] = set()
    lists: dict[Path, Path | None] = {}
    for name, folders, files in os.walk(root, followlinks=links):
        inside = Path(name)
        real = os.path.realpath(inside)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(
            f
            for f in folders
            if not is_left_out(f) and os.path.abspath(os.path.join(name, f)) != left_out
        )
        kept = [inside / f for f in sorted(files) if not is_left_out(f)]
        called = {file.name.lower(): file for file in reversed(kept)}
        own = next((called[name] for name in LISTS if name in called), None)
        lists[inside] = own or lists.get(inside.parent)
        yield inside, kept, lists[inside]


def images_in(folder: Path, *, but: Path | None = None, links: bool = True) -> Iterator[Path]:
    """The images of a tree, folder by folder, by name.

    Args:
        folder: The tree's root.
        but: As for `walk`.
        links: As for `walk`.
    """
    for _, files, _ in walk(folder, but=but, links=links):
        yield from filter(is_image, files)


def images_of(sources: Iterable[Source]) -> list[Source]:
    """Images as they are, and those in folders in the order of their paths.

    Args:
        sources: Images and folders of them. Hidden files and folders in a folder are passed over.

    Raises:
        InputError: If there is no image in a folder.
    """
    found: list[Source] = []
    for source in sources:
        if not isinstance(source, (str, Path)) or not Path(source).is_dir():
            found.append(source)
            continue
        inside = list(images_in(Path(source)))
        if not inside:
            raise InputError(f"no images in {source}: expected {', '.join(ENDINGS)}")
        found += sorted(inside)
    return found


def _normal(path: Path) -> Path:
    """The path without `..`, so that the same file has the same one."""
    return Path(os.path.normpath(path))


def _beside(images: Sequence[Path], files: Sequence[Path]) -> dict[Path, Path]:
    """The text beside each image of a folder that has one, given the folder's files."""
    texts: dict[tuple[str, str], Path] = {}
    for file in files:
        texts.setdefault((file.stem, file.suffix.lower()), file)
    found = {}
    for image in images:
        own = (texts.get((image.stem, ending)) for ending in BESIDE)
        if (text := next(filter(None, own), None)) is not None:
            found[image] = text
    return found


def _captioned(image: Path, text: Path) -> Record:
    """The record of an image with a text beside it."""
    try:
        content = text.read_text(encoding="utf-8-sig")
        row: Any = (
            json.loads(content) if text.suffix.lower() == ".json" else {"text": content.strip()}
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"{text} is not a record: {error}") from error
    if isinstance(row, str):
        row = {"text": row}
    if isinstance(row, dict):
        row = {k: v for k, v in row.items() if k not in ("images", "file_name")}
        row[kinds()[reference(image).kind].keys[0]] = image.name
    return to_record(row, lambda name: FileRef(image.parent / name), str(text))


def _named(image: Path, root: Path) -> Record:
    """The record of an image that its folder names."""
    folder = image.parent
    name = folder.name.replace("_", " ").strip()
    if folder == root or name.lower() in NO_NAMES:
        endings = (".jsonl", ".json", ".csv", ".tsv")
        tables = [p.name for p in sorted(root.iterdir()) if p.suffix.lower() in endings]
        hint = f"; if {tables[0]} tells of them, name it and not the folder" if tables else ""
        raise ConfigError(
            f"nothing says what is in {image}: expected {image.stem}.txt, .json or .caption "
            f"beside it, a metadata.jsonl or captions.csv, or a folder for each class{hint}"
        )
    try:
        return Record.of(reference(image), "", plain(name, "its folder's name"), origin=str(image))
    except ValueError as error:
        raise ConfigError(f"{image} is not a record ({error}): rename the folder") from error
