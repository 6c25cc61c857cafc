"""Searching a folder of images in one call: its index is made, kept and brought up to date."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isthmus.assets.registry import home
from isthmus.errors import InputError
from isthmus.media.image import Source, open_image
from isthmus.search.file_table import DATABASE
from isthmus.search.index import Hit, ImageIndex, IndexReport
from isthmus.search.segments import usearch_index


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        hits: The images, nearest first.
        report: What was new in the folder; None where it was not looked at.
    """

    hits: tuple[Hit, ...]
    report: IndexReport | None


def search_images(
    folder: str | Path,
    query: str = "",
    *,
    like: Source | None = None,
    k: int = 10,
    index: str | Path | None = None,
    update: bool = True,
    model: Any = "tiny-clip",
    batch_size: int = 32,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = "auto",
    filling: Callable[[ImageIndex], IndexReport] | None = None,
) -> Found:
    """Finds images of a folder by words, or by an image that they are like.

    The first call encodes every image; later ones only what is new or changed.

    Args:
        folder: The folder.
        query: What to look for: "a red car".
        like: An image to look for the like of, in place of words.
        k: How many at most.
        index: The index's folder; None is one in Isthmus's cache for this folder and model.
        update: Whether to look for new and changed images first.
        model: A dual encoder, or what `load_clip` takes.
        batch_size: Images in one pass.
        device: Where a model that is named is loaded to.
        dtype: Its data type.
        filling: Fills the index in place of `index.add(folder)`, for example with a progress bar.

    Raises:
        InputError: If there is no such folder, neither words nor an image or both, or no index
            though `update` is false.
        ImageError: If `like` is no image.
        MissingExtraError: If usearch is not installed.

    Example:
        >>> search_images("photos", "a red car", k=3).hits[0].path  # doctest: +SKIP
        PosixPath('/home/ada/photos/2019/beetle.jpg')
    """
    root = Path(folder)
    if bool(query.strip()) == (like is not None):
        raise InputError('say what to look for: either words, such as "a red car", or an image')
    if not root.is_dir():
        raise InputError(f"no folder at {root}: expected a folder of images")
    shown = None if like is None else open_image(like)  # said before the model is loaded
    usearch_index()
    place = default_place(root, str(model)) if index is None else Path(index)
    if not update and not (place / DATABASE).is_file():
        raise InputError(f"there is no index in {place} yet: let it be made first")
    with ImageIndex(place, model, batch_size=batch_size, device=device, dtype=dtype) as opened:
        report = None
        if update:
            report = opened.add(root) if filling is None else filling(opened)
        if shown is not None:
            hits = opened.search_like(shown, k, within=root)
        else:
            hits = opened.search(query, k, within=root)
    return Found(tuple(hits), report)


def default_place(folder: Path, model: str) -> Path:
    """Where a folder's index under a model is kept."""
    told = f"{folder.absolute().resolve()}\n{model}".encode(errors="surrogateescape")
    return home() / "indexes" / hashlib.sha256(told).hexdigest()[:16]
