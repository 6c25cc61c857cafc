"""easy-VQA's questions, the Grocery Store photographs, and ImageNet's class names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import packages
import words
from timm.data import ImageNetInfo

COLOURS = ("black", "gray", "red", "green", "blue", "teal", "brown", "yellow")
SHAPES = ("circle", "rectangle", "triangle")


def _easy_vqa(root: Path, split: str) -> tuple[Path, list[list[Any]]]:
    base = packages.fetch("easy-vqa", root) / "easy_vqa/data" / split
    return base / "images", json.loads((base / "questions.json").read_text())


def easy_vqa(root: Path, split: str) -> Iterator[dict[str, Any]]:
    """Questions and answers of the official train or test split."""
    images, rows = _easy_vqa(root, split)
    for question, answer, number in rows:
        image = (images / f"{number}.png").relative_to(root)
        yield {
            "image": str(image),
            "question": question[0].upper() + question[1:],
            "answer": answer,
            "source": "easy-vqa",
        }


def easy_vqa_names(root: Path) -> Iterator[dict[str, Any]]:
    """Colour and shape of each training picture, as its training questions give them away."""
    images, rows = _easy_vqa(root, "train")
    colour: dict[int, str] = {}
    shape: dict[int, str] = {}
    for question, answer, number in rows:
        if answer in COLOURS:
            colour[number] = answer
        elif answer in SHAPES:
            shape[number] = answer
        elif (answer == "yes") == set(question.split()).isdisjoint(("no", "not")):
            named = set(question.rstrip("?").split())
            for word in named.intersection(COLOURS):
                colour[number] = word
            for word in named.intersection(SHAPES):
                shape[number] = word
    for number in sorted(colour.keys() & shape.keys()):
        name = f"{colour[number]} {shape[number]}"
        image = (images / f"{number}.png").relative_to(root)
        yield {"image": str(image), "name": name, "names": [name], "source": "easy-vqa"}


def grocery(root: Path, folder: Path | None, split: str) -> Iterator[dict[str, Any]]:
    """Grocery Store photographs with their coarse names."""
    if folder is None:
        return
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
            "names": [name, *words.number_variants(name)[1:]],
            "source": "grocery",
            "fine": words.clean(row["fine"]),
        }


def imagenet_names(root: Path) -> Iterator[dict[str, Any]]:
    """The 1,000 classes in the order of the head's rows: name, synonyms, basic-level names."""
    net = words.wordnet(packages.fetch("wordnet-base", root))
    info = ImageNetInfo()
    for index in range(1000):
        wnid = info.index_to_label_name(index)
        lemmas = [words.clean(w) for w in info.index_to_description(index).split(",")]
        variants = [v for w in lemmas for v in words.number_variants(w)]
        yield {
            "index": index,
            "wnid": wnid,
            "name": lemmas[0],
            "names": list(dict.fromkeys([*lemmas, *variants])),
            "hypernyms": basic_of(wnid, net),
        }


def basic_of(wnid: str, net: words.WordNet) -> list[str]:
    """Basic-level names of a class, at most two."""
    return words.basic_names(wnid[1:], net)[:2]
