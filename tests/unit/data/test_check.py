from __future__ import annotations

import base64
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from isthmus.cli import app
from isthmus.data.check import Spread, check_data, look
from isthmus.data.records import Record
from isthmus.errors import ConfigError, ImageError
from isthmus.media.file_ref import FileRef


def paint(path: Path, colour: str, size: tuple[int, int] = (300, 240)) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A set with something of everything."""
    paint(tmp_path / "red.png", "red")
    paint(tmp_path / "red.bmp", "red")
    paint(tmp_path / "blue.png", "blue", (100, 500))
    (tmp_path / "cut.png").write_bytes(paint(tmp_path / "x.png", "green").read_bytes()[:-40])
    np.save(tmp_path / "f.npy", np.ones((4, 8), np.float16))
    chat = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "It is red"}]
    return write(
        tmp_path / "r.jsonl",
        {"image": "red.png", "text": "all of it is red"},
        {"image": "red.bmp", "text": "all of it is red"},
        {"image": "red.png", "conversations": chat * 2},
        {"images": ["blue.png"], "text": "Sky: <image>blue."},
        {"video": ["red.png", "blue.png"], "question": "Next?", "answer": ""},
        {"image": "cut.png", "text": "green"},
        {"image": "none.png", "text": "nothing"},
        {"features": "f.npy", "text": "features"},
        {"text": "Only words."},
    )


def test_everything_is_counted(mixed: Path) -> None:
    report = check_data(mixed)
    assert (report.records, report.usable) == (9, 6)
    assert (report.turns, report.documents, report.clips) == (8, 2, 1)
    assert (report.images, report.features) == (6, 1)
    assert report.width == Spread(100, 300, 300)
    assert report.height == Spread(240, 240, 500)
    assert report.small == pytest.approx(1 / 3)
    assert report.duplicate_images == 1
    assert report.duplicate_records == 1
    assert report.empty_answers == 1
    named = [Path(t.what).name for t in report.broken_images]
    assert named == ["cut.png", "none.png"]
    assert "truncated" in report.broken_images[0].why
    assert "cut.png" in report.broken_images[0].why
    assert "No such file" in report.broken_images[1].why
    # "Next?" has one word, "all of it is red" five, the chat eight
    assert report.words == Spread(1, 2, 8)
    assert report.characters == Spread(5, 10, 26)
    assert (report.exit_code, report.decoded) == (1, True)


def test_without_decoding_damage_behind_the_header_goes_unseen(mixed: Path) -> None:
    report = check_data(mixed, decode=False)
    assert [Path(t.what).name for t in report.broken_images] == ["none.png"]
    assert report.duplicate_images == 0  # red.png and red.bmp are other bytes
    assert not report.decoded
    assert report.height == Spread(240, 240, 500)


def test_the_same_image_twice_is_no_duplicate(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", "red")
    rows = [{"image": "a.png", "question": q, "answer": "x"} for q in ("One?", "Two?", "One?")]
    report = check_data(write(tmp_path / "r.jsonl", *rows))
    assert (report.images, report.duplicate_images, report.duplicate_records) == (1, 0, 1)


def test_images_in_memory_that_are_called_the_same(tmp_path: Path) -> None:
    coded = [
        "data:image/png;base64,"
        + base64.b64encode(paint(tmp_path / "x.png", c).read_bytes()).decode()
        for c in ("red", "blue")
    ]
    report = check_data(write(tmp_path / "r.jsonl", {"images": coded, "text": "red and blue"}))
    assert (report.images, report.duplicate_images, report.usable) == (2, 0, 1)


def test_records_with_other_images_are_no_duplicates(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", "red")
    paint(tmp_path / "b.png", "blue")
    rows = [{"image": name, "text": "x"} for name in ("a.png", "b.png")]
    assert check_data(write(tmp_path / "r.jsonl", *rows)).duplicate_records == 0


def test_verdicts(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", "red", (20, 20))
    good = check_data(write(tmp_path / "r.jsonl", {"image": "a.png", "text": "x"}))
    assert good.exit_code == 0
    assert good.verdict == (
        "Fit for training: 1 of 1 records are usable. But 100% of the images are below 224 pixels."
    )
    bad = check_data(write(tmp_path / "r.jsonl", {"image": "b.png", "text": "x"}))
    assert bad.exit_code == 2
    assert bad.verdict == ("Not fit for training: none of 1 records is usable: 1 broken image.")
    rows = [{"text": "same"}] * 3 + [{"text": " "}]
    assert check_data(write(tmp_path / "r.jsonl", *rows)).verdict == (
        "Fit for training: 3 of 4 records are usable. But 1 empty answer teach to say nothing; "
        "50% of the records are repeats."
    )


def test_unreadable_samples_of_a_shard_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    image = paint(tmp_path / "a.png", "red").read_bytes()
    members = {"0.png": image, "0.txt": b"red", "1.png": image, "1.json": b"{"}
    members["2.json"] = b'{"text_list": ["w"], "image_info": []}'
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    report = check_data(path)
    assert (report.records, report.usable, report.images) == (3, 2, 1)
    (trouble,) = report.broken_records
    assert trouble.what == "record 2"
    assert "0.tar, sample 1 is not a record" in trouble.why
    assert report.exit_code == 1
    assert "only without 1 unreadable record" in report.verdict


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.npy", b"not an array"),
        ("a.npy", "nan"),
        ("a.npy", "flat"),
        ("a.png", b""),
        ("a.png", b"not an image"),
        ("a.jpg", b"\xff\xd8\xff"),
    ],
)
@pytest.mark.parametrize("decode", [True, False])
def test_what_cannot_be_looked_at(tmp_path: Path, name: str, data: Any, decode: bool) -> None:
    path = tmp_path / name
    if data == "nan":
        np.save(path, np.full((2, 2), np.nan))
    elif data == "flat":
        np.save(path, np.ones(4))
    else:
        path.write_bytes(data)
    with pytest.raises(ImageError, match=name):
        look(FileRef(path), decode=decode)


def test_a_image_whose_shard_ends_within_it(tmp_path: Path) -> None:
    path = paint(tmp_path / "a.png", "red")
    size = path.stat().st_size
    assert look(FileRef(path, size=size))[1] == (300, 240)
    with pytest.raises(ImageError, match=rf"ends after {size} of {size + 9} bytes"):
        look(FileRef(path, size=size + 9))


def test_records_are_taken_as_they_are(tmp_path: Path) -> None:
    record = Record.of(paint(tmp_path / "a.png", "red"), "", "red")
    assert check_data([record, record]).duplicate_records == 1
    with pytest.raises(ConfigError, match="no records at"):
        check_data("none.jsonl", tmp_path)


# --- The command line ----------------------------------------------------------------------------


def test_the_table_names_what_is_broken_and_ends_with_the_verdict(mixed: Path) -> None:
    result = CliRunner().invoke(app, ["data", "check", str(mixed), "--quiet"])
    lines = result.stdout.strip().splitlines()
    assert result.exit_code == 1
    assert lines[-1].startswith("Fit for training only without 2 broken images: 6 of 9")
    assert sum("none.png" in line or "cut.png" in line for line in lines) == 2
    assert any(line.split() == ["images", "6"] for line in lines)
    assert any("300" in line and "width" in line for line in lines)


def test_ten_are_named_on_the_screen_and_all_in_json(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", "red")
    rows = [{"image": f"none{i}.png", "text": "x"} for i in range(12)]
    path = write(tmp_path / "r.jsonl", {"image": "a.png", "text": "x"}, *rows)
    screen = CliRunner().invoke(app, ["data", "check", str(path), "--quiet"])
    assert screen.stdout.count("cannot read") == 10
    assert "and 2 more broken images" in screen.stdout
    result = CliRunner().invoke(
        app, ["data", "check", "r.jsonl", "--root", str(tmp_path), "--json"]
    )
    found = json.loads(result.stdout)
    assert len(found["broken_images"]) == 12
    assert (found["records"], found["usable"], found["exit_code"]) == (13, 1, result.exit_code)
    assert found["width"] == {"min": 300, "median": 300, "max": 300}


@pytest.mark.parametrize(("present", "code"), [([0, 1], 0), ([0], 1), ([], 2)])
def test_exit_codes(tmp_path: Path, present: list[int], code: int) -> None:
    for number in present:
        paint(tmp_path / f"{number}.png", "red")
    path = write(tmp_path / "r.jsonl", *({"image": f"{i}.png", "text": "x"} for i in range(2)))
    assert CliRunner().invoke(app, ["data", "check", str(path), "--quiet"]).exit_code == code


def test_a_source_that_cannot_be_read_is_an_error() -> None:
    result = CliRunner().invoke(app, ["data", "check", "none.jsonl"])
    assert isinstance(result.exception, ConfigError)
