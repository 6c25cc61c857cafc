"""Labelled images from folders and files: what is read, left out and refused."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from isthmus.auditing.data import labelled_images, read_labelled
from isthmus.errors import InputError
from isthmus.media.image import open_image


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (number, 0, 0))


def write(folder: Path, name: str, number: int) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number).save(path)
    return path


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for number, name in enumerate(("dog/a.png", "cat/a.png", "cat/b.png", "ice_cream/a.png")):
        write(root, name, number)
    return root


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Rows with a camera in three of four, one image that is none, and a line that is no JSON."""
    told: list[Any] = []
    for number, name in enumerate(("cat", "dog", "cat", "dog")):
        write(tmp_path, f"{number}.png", number)
        told.append({"image": f"{number}.png", "name": name, "camera": number % 2})
    del told[1]["camera"]
    told[3]["camera"] = ""
    (tmp_path / "broken.png").write_bytes(b"no image")
    told.append({"image": "broken.png", "name": "dog", "camera": 1})
    told.append({"image": "missing.png", "name": "dog"})
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*(json.dumps(row) for row in told), "{no json"]))
    return path


def test_class_folders(classes: Path) -> None:
    data = read_labelled(classes)
    assert data.labels == ("cat", "dog", "ice cream")
    found = [(Path(str(f)).parent.name, t) for f, t in zip(data.files, data.targets, strict=True)]
    assert found == [("cat", 0), ("cat", 0), ("dog", 1), ("ice_cream", 2)]
    assert data.left_out == ()
    assert len(data) == 4


def test_the_users_labels_give_the_numbers_and_must_cover(classes: Path) -> None:
    data = read_labelled(classes, labels=["ice cream", "tree", "dog", "cat"])
    assert data.labels == ("ice cream", "tree", "dog", "cat")
    assert data.targets == (3, 3, 2, 0)
    with pytest.raises(InputError, match='the labels lack "dog", "ice cream", of which'):
        read_labelled(classes, labels=["cat", "tree"])
    with pytest.raises(InputError, match="more than once"):
        read_labelled(classes, labels=["cat", "cat", "dog", "ice cream"])


def test_rows_with_groups_and_what_is_left_out(rows: Path) -> None:
    data = read_labelled(rows, groups=["camera"])
    assert [open_image(f).getpixel((0, 0))[0] for f in data.files] == [0, 1, 2, 3]  # type: ignore[index]
    assert data.targets == (0, 1, 0, 1)
    assert data.groups == {"camera": ("0", None, "0", None)}
    assert len(data.left_out) == 3
    for part in ("rows.jsonl, line 7", "broken.png", "missing.png"):
        assert sum(part in why for why in data.left_out) == 1
    with pytest.raises(InputError, match=r'no row of .* has a "lens": its rows have camera'):
        read_labelled(rows, groups=["camera", "lens"])
    assert read_labelled(rows).groups == {}


def test_select_keeps_rows_together(rows: Path) -> None:
    data = read_labelled(rows, groups=["camera"])
    part = data.select([3, 0])
    assert part.files == (data.files[3], data.files[0])
    assert (part.targets, part.labels) == ((1, 0), data.labels)
    assert part.groups == {"camera": (None, "0")}
    assert part.contents == (data.contents[3], data.contents[0])


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv"])
def test_a_column_of_classes_and_a_split(tmp_path: Path, ending: str) -> None:
    told = [
        {"image": f"{i}.png", "split": s, "fine": f, "answer": "not this"}
        for i, (s, f) in enumerate([("train", "a"), ("val", "b"), ("val", "a"), ("val", "")])
    ]
    for number in range(4):
        write(tmp_path, f"{number}.png", number)
    path = tmp_path / f"rows.{ending}"
    if ending == "jsonl":
        path.write_text("\n".join(map(json.dumps, told)))
    else:
        with path.open("w", newline="") as file:
            sheet = csv.DictWriter(file, told[0], delimiter="\t" if ending == "tsv" else ",")
            sheet.writeheader()
            sheet.writerows(told)
    data = read_labelled(path, label="fine", split="val", groups=["split"])
    assert [Path(str(f)).name for f in data.files] == ["1.png", "2.png"]
    assert (data.labels, data.targets) == (("a", "b"), (1, 0))
    assert data.groups == {"split": ("val", "val")}
    assert [why for why in data.left_out if 'a class in "fine"' in why] == list(data.left_out)
    assert len(data.left_out) == 1
    with pytest.raises(InputError, match='no images of the split "vall": did you mean "val"'):
        read_labelled(path, label="fine", split="vall")
    with pytest.raises(InputError, match=r'in the column "coarse": .*fine'):
        read_labelled(path, label="coarse")
    with pytest.raises(InputError, match="is not a JSONL or CSV file"):
        read_labelled(tmp_path, label="fine")


def test_the_fingerprint_is_of_contents_and_labels(classes: Path, tmp_path: Path) -> None:
    told = read_labelled(classes).fingerprint()
    moved = shutil.copytree(classes, tmp_path / "elsewhere")
    (moved / "cat" / "a.png").rename(moved / "cat" / "aa.png")
    assert read_labelled(moved).fingerprint() == told
    write(moved, "dog/a.png", 99)
    changed = read_labelled(moved).fingerprint()
    write(classes, "dog/b.png", 0)
    more = read_labelled(classes).fingerprint()
    (classes / "dog" / "b.png").rename(classes / "cat" / "c.png")
    other_class = read_labelled(classes).fingerprint()
    relabelled = read_labelled(classes, labels=["cat", "dog", "ice cream", "x"]).fingerprint()
    assert len({told, changed, more, other_class, relabelled}) == 5


def test_what_cannot_be_audited(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no images in"):
        read_labelled(tmp_path)
    write(tmp_path, "one/cat/a.png", 0)
    with pytest.raises(InputError, match='has one label, "cat": expected at least two'):
        read_labelled(tmp_path / "one")
    for name in ("cat", "dog"):
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="no image that can be used, 2 left out; the first:"):
        read_labelled(tmp_path / "bad")
    with pytest.raises(InputError, match="nowhere"):
        read_labelled(tmp_path / "nowhere")


def test_images_from_memory() -> None:
    buffer = io.BytesIO()
    picture(3).save(buffer, "PNG")
    buffer.seek(0)
    images = [picture(1), buffer, b"no image", picture(2)]
    data = labelled_images(
        images,  # type: ignore[arg-type]
        ["cat", "dog", "dog", "cat"],
        groups={"camera": ["x", None, "y", 2]},
    )
    assert data.targets == (0, 1, 0)
    assert data.groups == {"camera": ("x", None, "2")}
    assert len(data.left_out) == 1
    assert [open_image(f).getpixel((0, 0))[0] for f in data.files * 2] == [1, 3, 2] * 2  # type: ignore[index]
    with pytest.raises(InputError, match="got 1 classes for 2 images"):
        labelled_images([picture(1), picture(2)], ["cat"])
    with pytest.raises(InputError, match='no image has a group "camera"'):
        labelled_images([picture(1), picture(2)], ["a", "b"], groups={"camera": [None, ""]})
