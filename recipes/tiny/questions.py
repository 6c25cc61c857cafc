"""easy-VQA's questions, and the Grocery Store photographs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import packages
import words

COLOURS = ("black", "gray", "red", "green", "blue", "teal", "brown", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
TURNS = 3
"""Questions about an image in one record: two thirds of a record of one were the image."""


def _easy_vqa(root: Path, split: str) -> list[list[Any]]:
    """Question, answer and image of each row of a split; its images are copied."""
    base = packages.fetch("easy-vqa", root) / "easy_vqa/data" / split
    target = root / "pictures/easy-vqa" / split
    if not target.is_dir():
        shutil.copytree(base / "images", target.with_suffix(".partial"), dirs_exist_ok=True)
        target.with_suffix(".partial").rename(target)
    rows = json.loads((base / "questions.json").read_text())
    return [[q, a, f"pictures/easy-vqa/{split}/{number}.png"] for q, a, number in rows]


def easy_vqa(root: Path, split: str) -> Iterator[dict[str, Any]]:
    """Questions and answers of the official train or test split."""
    for question, answer, image in _easy_vqa(root, split):
        yield {
            "image": image,
            "question": question[0].upper() + question[1:],
            "answer": answer,
            "source": "easy-vqa",
        }


def easy_vqa_conversations(root: Path) -> Iterator[dict[str, Any]]:
    """The training questions in an order drawn at random, `TURNS` about one image at a time."""
    asked: dict[str, list[tuple[str, str]]] = {}
    for record in easy_vqa(root, "train"):
        asked.setdefault(record["image"], []).append((record["question"], record["answer"]))
    rng = np.random.default_rng(0)
    for image, own in sorted(asked.items()):
        mixed = [own[i] for i in rng.permutation(len(own))]
        for start in range(0, len(mixed), TURNS):
            yield conversation(image, mixed[start : start + TURNS]) | {"source": "easy-vqa"}


def conversation(image: str, turns: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The record of questions about one image, each with its answer."""
    said = [
        {"from": who, "value": text}
        for turn in turns
        for who, text in zip(("human", "gpt"), turn, strict=True)
    ]
    return {"image": image, "conversations": said}


def easy_vqa_names(root: Path) -> Iterator[dict[str, Any]]:
    """Colour and shape of each training image, where its training questions give them away.

    A question with a colour or a shape for an answer says all it names ("what color is the
    circle?", "teal"); of the others a "yes" confirms, or of three shapes (eight colours) all others
    are denied. "Is no circle present?" is denied by "no". Pixels and test questions are not looked
    at.
    """
    left: dict[str, list[set[str]]] = {}
    for question, answer, image in _easy_vqa(root, "train"):
        kinds = left.setdefault(image, [set(COLOURS), set(SHAPES)])
        asked = set(question.rstrip("?").split())
        is_so = answer not in ("yes", "no") or (answer == "yes") == asked.isdisjoint(("no", "not"))
        for kind in kinds:
            if named := kind & (asked | {answer}):
                kind &= named if is_so else kind - named
    for image, (colours, shapes) in sorted(left.items()):
        if len(colours) == len(shapes) == 1:
            name = f"{colours.pop()} {shapes.pop()}"
            yield {"image": image, "name": name, "names": [name], "source": "easy-vqa"}


def grocery(root: Path, folder: Path | None, split: str) -> Iterator[dict[str, Any]]:
    """Grocery Store photographs with their coarse names."""
    if folder is None:
        return
    net = words.wordnet(packages.fetch("wordnet-base", root))
    for line in (folder / "labels.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["split"] != split:
            continue
        image = Path("pictures/grocery") / row["image"]
        if not (root / image).is_file():
            (root / image).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / row["image"], root / image)
        name = words.clean(row["coarse"])
        yield {
            "image": str(image),
            "name": name,
            "names": net.numbers(name),
            "source": "grocery",
            "fine": words.clean(row["fine"]),
        }
