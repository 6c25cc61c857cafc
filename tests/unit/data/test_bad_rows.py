"""What is wrong with one row of a file costs that row, and is said with its file and line."""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

import isthmus as im
from isthmus.cli import app
from isthmus.data.check import check_data
from isthmus.data.records import Record
from isthmus.data.sources import read_data
from isthmus.errors import ConfigError, TrainingError
from isthmus.evaluation.tasks.questions import questions
from isthmus.training.log import read_log

GOOD = [{"image": f"{i}.png", "text": f"a dog {i}"} for i in range(10)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for row in GOOD:
        Image.new("RGB", (300, 240), "red").save(tmp_path / row["image"])
    return tmp_path


def write(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines))
    return path


def test_a_file_with_three_bad_lines_has_three_findings(folder: Path) -> None:
    bad = [{"image": "0.png", "text": None}, {"image": "1.png", "text": 7}]
    rows = [*GOOD[:4], bad[0], *GOOD[4:], bad[1], {"image": "gone.png", "text": "a cat"}]
    path = write(folder / "r.jsonl", *rows)
    report = check_data(path)
    assert (report.records, report.usable, report.exit_code) == (13, 10, 1)
    assert [t.why.partition(" is not a record")[0] for t in report.broken_records] == [
        f"{path}, line 5",
        f"{path}, line 12",
    ]
    assert ["gone.png" in t.why for t in report.broken_images] == [True]
    found = CliRunner().invoke(app, ["data", "check", str(path), "--quiet"])
    assert found.exit_code == 1
    for told in ("line 5", "line 12", "gone.png"):
        assert told in found.stdout


@pytest.mark.parametrize("bad", [{"image": "0.png", "text": "a cat \ud83d"}, b"{", b"\xff\xfe{}"])
def test_training_counts_a_bad_line_as_a_broken_record(folder: Path, bad: Any) -> None:
    path = write(folder / "r.jsonl", {"text": "words"}, bad, *GOOD[:6])
    if isinstance(bad, dict):  # the first record is one that cannot be read
        path = write(path, bad, *GOOD[:7])
    model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
    config = im.TrainConfig(steps=2, batch_size=8, broken_share=0.2, evaluate_every=1)
    records = read_data(path)
    aside = [im.DataSet(records, name="aside")]
    im.train(model, records, config, folder / "out", evaluation=aside, quiet=True)
    entries = read_log(folder / "out")
    assert all(e["evaluation"]["aside"] > 0 for e in entries if "evaluation" in e)
    assert any(e.get("answers") for e in entries)
    named = [b["why"] for entry in entries for b in entry.get("broken", [])]
    assert named
    assert all("r.jsonl, line" in why for why in named)
    few = im.TrainConfig(steps=30, batch_size=8, broken_share=0.0)
    with pytest.raises(TrainingError, match=r"samples cannot be used.*r\.jsonl, line"):
        im.train(model, read_data(path), few, folder / "strict", quiet=True)


def test_half_a_character_is_named_wherever_it_stands(folder: Path) -> None:
    """JSON may write it; no tokenizer takes it, and no file can hold it."""
    half = "\ud83d"
    chat = [{"from": "human", "value": f"Who{half}?"}, {"from": "gpt", "value": "A cat"}]
    rows = [
        {"image": "0.png", "text": f"a cat {half}"},
        {"image": "0.png", "name": "cat", "names": ["cat", half]},
        {"image": "0.png", "question": half, "answer": "a"},
        {"image": "0.png", "conversations": chat},
        {"text": f"words {half}"},
        {"texts": [half, None], "images": [None, "0.png"]},
        GOOD[0],
    ]
    report = check_data(write(folder / "r.jsonl", *rows))
    assert [t.what for t in report.broken_records] == [f"record {i}" for i in range(1, 7)]
    assert all("lone surrogate U+D83D" in t.why for t in report.broken_records)
    made = [Record.of(folder / "0.png", "", f"a cat {half}"), Record.of(folder / "0.png", "", "a")]
    assert [t.what for t in check_data(made).broken_records] == ["record 1"]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux alone")
def test_a_class_whose_name_is_no_unicode(tmp_path: Path) -> None:
    for name in (b"cat", b"caf\xe9"):
        inside = os.path.join(os.fsencode(tmp_path), name)
        os.mkdir(inside)
        with open(os.path.join(inside, b"a.png"), "wb") as file:
            Image.new("RGB", (300, 240), name.decode("latin-1")[:0] or "red").save(file, "PNG")
    report = check_data(tmp_path)
    assert (report.usable, len(report.broken_records)) == (1, 1)
    found = CliRunner().invoke(app, ["data", "check", str(tmp_path), "--quiet"])
    assert found.exit_code == 1
    assert "caf\\udce9" in found.stdout


def test_no_line_at_all_is_one_error(folder: Path) -> None:
    path = write(folder / "r.jsonl", {"image": "0.png"}, {"image": "1.png"})
    with pytest.raises(ConfigError, match=r"line 1 is not a record .*None of the other 1 can be"):
        read_data(path)
    assert len(check_data(path).broken_records) == 2
    assert check_data(path).exit_code == 2


def test_what_a_row_has_is_said(folder: Path) -> None:
    path = write(folder / "r.jsonl", {"img_path": "0.png", "sentence": "a dog"})
    with pytest.raises(ConfigError, match=r"it has img_path, sentence; expected"):
        read_data(path)
    path = write(folder / "r.jsonl", {"img_path": "0.png", "text": "a dog"})
    with pytest.raises(ConfigError, match=r'no image, though "img_path" names one'):
        read_data(path)  # and is not read as words alone


@pytest.mark.parametrize("name", ["llava.json", "t.csv", "d/metadata.csv", "d/metadata.jsonl"])
def test_other_files_of_rows(folder: Path, name: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (300, 240), "red").save(path.parent / "0.png")
    rows: list[Any] = [{"image": "0.png", "text": "a"}, {"image": "0.png", "text": "a <image>"}]
    rows.append({"image": "0.png", "text": "c"})
    if name.endswith("json"):
        path.write_text(json.dumps(rows))
    elif name.endswith("csv"):
        path.write_text("image,text\n" + "\n".join(f"{r['image']},{r['text']}" for r in rows))
    else:
        write(path, *rows)
    report = check_data(path if path.parent == folder else path.parent)
    assert (report.records, report.usable, len(report.broken_records)) == (3, 2, 1)
    assert path.name in report.broken_records[0].why


def test_a_text_beside_a_image_that_is_none(tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (300, 240), "red").save(tmp_path / f"{name}.png")
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.txt").write_text("a dog")
    report = check_data(tmp_path)
    assert (report.records, report.usable) == (2, 1)
    assert "a.json is not a record" in report.broken_records[0].why


# --- Text files as people have them --------------------------------------------------------------


def test_the_line_of_a_byte_that_is_no_utf_8(folder: Path) -> None:
    rows: list[Any] = [GOOD[i % 10] for i in range(600)]
    rows[400] = json.dumps({"image": "0.png", "text": "caf\xe9"}, ensure_ascii=False).encode(
        "latin-1"
    )
    path = write(folder / "r.jsonl", *rows)
    (trouble,) = check_data(path, decode=False).broken_records
    assert f"{path}, line 401 is not a record (not UTF-8 text: got the byte 0xE9" in trouble.why
    table = folder / "t.csv"
    table.write_bytes(b"image,text\n0.png,a\n0.png,caf\xe9\n")
    (trouble,) = check_data(table).broken_records
    assert (
        f"{table}, line 3 is not a record (not UTF-8 text: got the byte 0xE9 after 'caf'"
        in trouble.why
    )


def test_utf_16_is_named(folder: Path) -> None:
    for name in ("r.jsonl", "t.csv", "l.json"):
        (folder / name).write_text('{"image": "0.png", "text": "a"}', encoding="utf-16")
        with pytest.raises(ConfigError, match="is UTF-16, and not UTF-8"):
            read_data(folder / name)


def test_byte_order_marks_even_where_files_were_joined(folder: Path) -> None:
    line = b"\xef\xbb\xbf" + json.dumps(GOOD[0]).encode()
    assert len(read_data(write(folder / "r.jsonl", line, line))) == 2
    (folder / "0.txt").write_bytes(b"\xef\xbb\xbfa dog")
    assert next(r for r in read_data(folder) if "0.png" in str(r.images[0])).answer == "a dog"


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\u0085"])
def test_lines_end_at_line_feeds_alone(folder: Path, odd: str) -> None:
    line = json.dumps({"image": "0.png", "text": f"a{odd}b"}, ensure_ascii=False).encode()
    (record,) = read_data(write(folder / "r.jsonl", line))
    assert record.answer == f"a{odd}b"
    question = json.dumps({"question": f"a{odd}b?", "answer": "c"}, ensure_ascii=False).encode()
    path = write(folder / "q.jsonl", question)
    assert questions(path).items[0].example.question == f"a{odd}b?"
    half = {"question": "a \ud83d", "answer": "c"}
    with pytest.raises(ConfigError, match=r'line 2, "question": character 3'):
        questions(write(path, question, half))


# --- Tables --------------------------------------------------------------------------------------


def test_a_image_in_a_field_may_be_large(folder: Path) -> None:
    data = os.urandom(300_000)
    address = "data:image/png;base64," + base64.b64encode(data).decode()
    (folder / "t.tsv").write_text(f"image\ttext\n{address}\ta dog\n")
    (record,) = read_data(folder / "t.tsv")
    assert record.images[0].read() == data  # type: ignore[union-attr]


@pytest.mark.parametrize("between", [";", "\t", ","])
@pytest.mark.parametrize(
    "columns", ["image|text", "filepath|title", "file_name|caption", " image | text"]
)
def test_names_and_separators_of_columns(folder: Path, between: str, columns: str) -> None:
    for ending in ("csv", "tsv"):
        table = folder / f"t.{ending}"
        table.write_text(f"{columns}\n0.png|a dog\n".replace("|", between))
        (record,) = read_data(table)
        assert (record.answer, record.images[0].path) == ("a dog", folder / "0.png")  # type: ignore[union-attr]


@pytest.mark.parametrize("header", ["path,description", "bild;words", "img,text", "a|b"])
def test_columns_that_say_nothing_are_listed(folder: Path, header: str) -> None:
    (folder / "t.csv").write_text(f"{header}\n" + header.replace("img", "0.png") + "\n")
    with pytest.raises(ConfigError) as caught:
        read_data(folder / "t.csv")
    told = str(caught.value)
    if header == "img,text":  # words alone may be what is meant, unless something is an image
        assert "names one" in told
        return
    for name in ("image", "filepath", "text", "caption", *re.split("[,;|]", header)):
        assert name in told


def test_a_row_of_another_length_and_quotes_that_never_end(folder: Path) -> None:
    (folder / "t.csv").write_text('image,text\n0.png,a\n0.png\n1.png,b\n2.png,"never\nclosed\n')
    report = check_data(folder / "t.csv")
    assert (report.records, report.usable) == (4, 2)
    why = [t.why for t in report.broken_records]
    assert "line 3 is not a record (expected 2 columns, image, text; got 1)" in why[0]
    assert "line 5 is not a record (no CSV: unexpected end of data)" in why[1]


def test_features_of_what_can_be_read(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(folder / "r.jsonl", {"image": "0.png"}, *GOOD[:3])
    for data in (path, read_data(path), [path, read_data(path)]):
        done = im.compute_features(data, folder / "features", "tiny-vit")
        assert (done.report.computed + done.report.present > 2, done.report.broken) == (True, ())
        assert "line 1 is not a record" in caplog.text
        caplog.clear()
