"""Prepares the data of the shipped default: images and records, from packages.

    pip install pillow numpy resvg-py timm
    python recipes/tiny/prepare.py --out FOLDER [--grocery GROCERY] [--photo-list LIST]
        [--sources emoji openclipart ...] [--scenes COUNT] [--printed COUNT]

Packages come by their ordinary clients (pip, npm, apt-get; call `apt-get update` once first), in
pinned versions, with their SHA-256 in `downloads/MANIFEST.json`. Each record file is written once,
atomically; remove it to make it anew. Only scenes and printed words (COUNT for training) are drawn
at random, from a fixed seed. `train-*` may be trained on, `dev-*` is for choosing, and `test-*` is
for the end. GROCERY is a folder of the Grocery Store Dataset with `labels.jsonl`, LIST a JSON list
of the Tux Paint stamps that are photographs; without them the recipe works with less data.

The rule of the names, the same for train and test, is in `words.py`.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import clipart
import drawings
import emoji
import gcompris
import held_out
import imagenet
import judging
import parts
import printed_words
import questions
import scene_sets
import things

Records = Callable[[], Iterator[dict[str, Any]]]
PUBLISHED = {
    "openmoji": 1949,
    "openmoji-extra": 574,
    "noto": 1699,
    "fluent-emoji-flat": 1594,
    "fluent-3d": 1609,
    "emojione": 1095,
    "emojione-extra": 319,
    "twemoji": 861,
    "fxemoji": 609,
    "train-tuxpaint-drawings": 649,
    "test-tuxpaint-photos": 365,
    "train-gcompris-words": 116,
    "test-gcompris-photos": 222,
    "train-openclipart": 3103,
    "train-grocery": 2640,
    "test-grocery-val": 296,
    "train-easyvqa-names": 4000,
    "test-easyvqa": 9673,
    "imagenet-names": 1000,
}
"""How many records a survey of these packages counted, to print beside ours."""


def named(root: Path) -> list[dict[str, Any]]:
    """Records of all drawings of emoji that may be trained on."""
    return drawings.records_of(root, "train-emoji")


def asked(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Records that an evaluation asks about, all of them: none is set aside to be shown."""
    yield from (record | {"split": "test"} for record in records)


def makers(
    root: Path,
    grocery: Path | None,
    photo_list: Path | None,
    scenes: int = scene_sets.SCENES,
    crowds: int = scene_sets.CROWDS,
    printed: int = printed_words.COUNTS["train"],
) -> dict[str, dict[str, Records]]:
    """Source to its record files and what makes each."""
    return {
        "imagenet": {"imagenet-names": lambda: imagenet.imagenet_names(root)},
        "emoji": {
            "train-emoji": lambda: parts.without_held_out_drawings(emoji.training(root), root),
            "train-episodes": lambda: parts.objects(named(root), root),
            "train-rules": lambda: parts.of_categories(named(root), root),
            "test-twemoji": lambda: asked(emoji.twemoji(root)),
            "test-fxemoji": lambda: asked(emoji.fxemoji(root)),
        },
        "easyvqa": {
            "train-easyvqa": lambda: questions.easy_vqa_conversations(root),
            "train-easyvqa-names": lambda: questions.easy_vqa_names(root),
            "test-easyvqa": lambda: asked(questions.easy_vqa(root, "test")),
        },
        "grocery": {
            "train-grocery": lambda: questions.grocery(root, grocery, "train"),
            "test-grocery-val": lambda: asked(questions.grocery(root, grocery, "val")),
        },
        "tuxpaint": {
            "train-tuxpaint-drawings": lambda: clipart.stamps(root, photo_list, photos=False),
            "test-tuxpaint-photos": lambda: asked(clipart.stamps(root, photo_list, photos=True)),
        },
        "gcompris": {
            "train-gcompris-words": lambda: gcompris.word_drawings(root),
            "test-gcompris-photos": lambda: asked(gcompris.photographs(root)),
        },
        "openclipart": {"train-openclipart": lambda: clipart.openclipart(root)},
        "printed": {
            "train-printed": lambda: printed_words.printed(root, "train", printed),
            "dev-printed": lambda: asked(printed_words.printed(root, "dev")),
            "test-printed": lambda: asked(printed_words.printed(root, "test")),
        },
        "scenes": {
            "scene-things": lambda: things.listing(root),
            "train-scenes": lambda: scene_sets.train_scenes(root, scenes),
            "train-steps": lambda: scene_sets.train_steps(root, scenes),
            "train-judged": lambda: judging.judged_lists(root, scenes),
            "train-steps-ko": lambda: scene_sets.train_steps(root, scenes // 4, korean_share=1.0),
            "train-judged-ko": lambda: judging.judged_lists(root, scenes // 4, korean=True),
            "scene-layouts": lambda: scene_sets.layouts(root, scenes),
            "crowd-layouts": lambda: scene_sets.crowd_layouts(root, named(root), crowds),
            "dev-layouts": lambda: scene_sets.held_out_layouts(root, "dev"),
            "dev-scenes": lambda: scene_sets.held_out_scenes(root, "dev"),
            "dev-steps": lambda: scene_sets.held_out_steps(root, "dev"),
            "dev-steps-ko": lambda: scene_sets.held_out_steps(root, "dev", korean=True),
            "test-scenes": lambda: scene_sets.held_out_scenes(root, "test"),
            "test-steps": lambda: scene_sets.held_out_steps(root, "test"),
            "test-steps-ko": lambda: scene_sets.held_out_steps(root, "test", korean=True),
        },
        "held-out": {
            "dev-drawings": lambda: held_out.views(root, "dev"),
            "dev-styles": lambda: held_out.styles(root, "dev"),
            "dev-kinds": lambda: held_out.kinds(root, "dev"),
            "test-drawings": lambda: held_out.views(root, "test"),
            "test-styles": lambda: held_out.styles(root, "test"),
            "test-kinds": lambda: held_out.kinds(root, "test"),
        },
    }


def print_counts(root: Path, name: str) -> None:
    """A line for each source in a record file, beside the published count."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in drawings.records_of(root, name):
        groups[record.get("source", name)].append(record)
    for source, records in groups.items():
        published = PUBLISHED.get(name, PUBLISHED.get(source, 0))
        images = len({r.get("image") or str(r.get("images", r.get("index"))) for r in records})
        names = len({r.get("name", r.get("result", r.get("answer"))) for r in records})
        print(f"{name:<25}{source:<19}{len(records):>8}{images:>9}{names:>7}{published:>10}")


def main() -> None:
    """Makes the record files that are missing, and prints a table of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--grocery", type=Path)
    parser.add_argument("--photo-list", type=Path)
    parser.add_argument("--sources", nargs="*", default=[])
    words = printed_words.COUNTS["train"]
    parser.add_argument("--printed", type=int, default=words, metavar="COUNT")
    parser.add_argument("--scenes", type=int, default=scene_sets.SCENES, metavar="COUNT")
    parser.add_argument("--crowds", type=int, default=scene_sets.CROWDS, metavar="COUNT")
    options = parser.parse_args()
    root: Path = options.out.resolve()
    counts = options.scenes, options.crowds, options.printed
    sources = makers(root, options.grocery, options.photo_list, *counts)
    if unknown := set(options.sources) - set(sources):
        parser.error(f"no source {', '.join(sorted(unknown))}: choose from {', '.join(sources)}")
    chosen = [
        file
        for source, files in sources.items()
        if source in options.sources or not options.sources
        for file in files.items()
    ]
    for name, make in chosen:
        path = root / "records" / f"{name}.jsonl"
        if not path.is_file():
            started = time.monotonic()
            count = drawings.write_records(make(), path)
            print(f"{name}: {count} records, {time.monotonic() - started:.0f} s", flush=True)
    print(f"\n{'file':<25}{'source':<19}{'records':>8}{'images':>9}{'names':>7}{'published':>10}")
    for name, _ in chosen:
        if (root / "records" / f"{name}.jsonl").is_file():
            print_counts(root, name)


if __name__ == "__main__":
    main()
