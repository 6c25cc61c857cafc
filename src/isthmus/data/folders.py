"""Folders of images, whatever says what is in them. Pure: no torch.

What an image is paired with, the first of these that there is:

1. `metadata.jsonl`, `metadata.csv`, `captions.jsonl` or `captions.csv` in its folder or one above:
   rows with `file_name` (Hugging Face's imagefolder) or `image`, relative to that file;
2. `cat.txt`, `cat.json` or `cat.caption` beside `cat.jpg`, in this order;
3. the name of its folder, underscores made spaces: what is in the image. Names such as `train`
   and `images` name nothing.

Hidden files and folders are ignored.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from isthmus.data.records import ImageRef, Record, frames
from isthmus.data.rows import is_image, to_record
from isthmus.errors import ConfigError, InputError
from isthmus.media.image import ENDINGS, Source

log = logging.getLogger(__name__)

LISTS = ("metadata.jsonl", "metadata.csv", "captions.jsonl", "captions.csv")
BESIDE = (".txt", ".json", ".caption")
"""Endings of a text beside an image: the first that is found is taken."""
NO_NAMES = frozenset(
    ("train", "training", "val", "valid", "validation", "dev", "test", "images", "pictures", "data")
)
"""Folders that say which images, and not what is in them."""


def read_folder(folder: Path, read_list: Callable[[Path], list[Record]]) -> list[Record]:
    """The records of a tree of images, in the order of their paths.

    Args:
        folder: The tree's root.
        read_list: Reads a JSONL or CSV file whose images are relative to it.

    Raises:
        ConfigError: If there is no image, or nothing says what is in one.
    """
    records: list[Record] = []
    listed: set[Path] = set()
    images: list[tuple[Path, Path | None]] = []
    for inside, files, list_file in walk(folder):
        if list_file is not None and list_file.parent == inside:
            rows = read_list(list_file)
            records.extend(rows)
            listed.update(_plain(p.path) for r in rows for m in r.images for p in frames(m))
        images.extend((file, list_file) for file in files if is_image(file))
    if not images and not records:
        raise ConfigError(f"no images in {folder}: expected a folder tree of images")

    texts = {p: text for p, _ in images if (text := _beside(p)) is not None}
    with_texts = {p.parent for p in texts}
    left_out: list[Path] = []
    for image, list_file in images:
        if _plain(image) in listed:
            continue
        if image in texts:
            records.append(_captioned(image, texts[image]))
        elif list_file is not None or image.parent in with_texts:
            # Its neighbours have texts of their own: the folder's name is not meant as one
            left_out.append(image)
        else:
            records.append(_named(image, folder))
    if left_out:
        first = ", ".join(str(p) for p in left_out[:3])
        log.warning("%s: %d images have no text, left out: %s", folder, len(left_out), first)
    return records


def walk(root: Path) -> Iterator[tuple[Path, list[Path], Path | None]]:
    """Each folder of a tree, its files, and the list that holds for it; links are followed once."""
    seen: set[str] = set()
    lists: dict[Path, Path | None] = {}
    for name, folders, files in os.walk(root, followlinks=True):
        inside = Path(name)
        real = os.path.realpath(inside)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        own = next((inside / name for name in LISTS if name in files), None)
        lists[inside] = own or lists.get(inside.parent)
        yield inside, [inside / f for f in sorted(files) if not f.startswith(".")], lists[inside]


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
        inside = [f for _, files, _ in walk(Path(source)) for f in files if is_image(f)]
        if not inside:
            raise InputError(f"no images in {source}: expected {', '.join(ENDINGS)}")
        found += sorted(inside)
    return found


def _plain(path: Path) -> Path:
    """The path without `..`, so that the same file has the same one."""
    return Path(os.path.normpath(path))


def _beside(image: Path) -> Path | None:
    """The text beside an image."""
    return next((t for end in BESIDE if (t := image.with_suffix(end)).is_file()), None)


def _captioned(image: Path, text: Path) -> Record:
    """The record of an image with a text beside it."""
    try:
        content = text.read_text(encoding="utf-8-sig")
        row: Any = json.loads(content) if text.suffix == ".json" else {"text": content.strip()}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{text} is no record: {error}") from error
    if isinstance(row, str):
        row = {"text": row}
    if isinstance(row, dict):
        row = {k: v for k, v in row.items() if k not in ("images", "file_name")}
        row["image"] = image.name
    return to_record(row, lambda name: ImageRef(image.parent / name), str(text))


def _named(image: Path, root: Path) -> Record:
    """The record of an image that its folder names."""
    folder = image.parent
    name = folder.name.replace("_", " ").strip()
    if folder == root or name.lower() in NO_NAMES:
        tables = [p.name for p in sorted(root.iterdir()) if p.suffix in (".jsonl", ".json", ".csv")]
        hint = f"; if {tables[0]} tells of them, name it and not the folder" if tables else ""
        raise ConfigError(
            f"nothing says what is in {image}: expected {image.stem}.txt, .json or .caption "
            f"beside it, a metadata.jsonl or captions.csv, or a folder for each class{hint}"
        )
    return Record.of(ImageRef(image), "", name, origin=str(image))
