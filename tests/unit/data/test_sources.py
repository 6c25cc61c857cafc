from __future__ import annotations

import base64
import importlib.util
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from isthmus.data.records import Record
from isthmus.data.rows import png
from isthmus.data.sources import read_data, read_records
from isthmus.errors import ConfigError, MissingExtraError
from isthmus.media.file_ref import FileRef

RED = Image.new("RGB", (3, 2), "red")


def write(path: Path, *lines: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(text), encoding="utf-8")
    return path


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def one(tmp_path: Path, row: Any) -> Record:
    (record,) = read_data(write(tmp_path / "r.jsonl", row))
    return record


def shown(record: Record) -> list[list[str]]:
    """Names of the images of each turn."""
    return [[Path(str(p)).name for p in turn.images] for turn in record.turns]


# --- JSONL ---------------------------------------------------------------------------------------


def test_each_kind_of_line(tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.jsonl",
        '{"image": "a.jpg", "text": "a dog"}',
        "",
        '{"image": "b.jpg", "name": "dog", "names": ["dog", "puppy"], "source": "s"}',
        '{"features": "c.npy", "question": "How many?", "answer": "2"}',
    )
    caption, name, question = read_records(path)
    assert (caption.answer, caption.question, caption.names) == ("a dog", "", ("a dog",))
    assert (name.answer, name.names, name.extra) == ("dog", ("dog", "puppy"), {"source": "s"})
    assert (question.question, question.answer) == ("How many?", "2")
    assert question.images == (FileRef(tmp_path / "c.npy"),)
    assert caption.images == (FileRef(tmp_path / "a.jpg"),)
    assert name.origin == f"{path}, line 3"


@pytest.mark.parametrize(
    "line",
    [
        "{",
        '{"image": "a.jpg"}',
        "3",
        '{"image": 1, "text": "a"}',
        '{"caption": "no image"}',
        '{"image": "a.jpg", "text": 3}',
        '{"image": "a.jpg", "text": "a <image>"}',
        '{"image": "a.jpg", "question": "<|endofchunk|>?", "answer": "a"}',
        '{"image": "a.jpg", "question": "?", "answer": "<image>"}',
        '{"image": "a.jpg", "question": "<image><image>?", "answer": "a"}',
        '{"image": "https://example.org/a.jpg", "text": "a"}',
        '{"images": ["a.jpg"], "text": "<image> and <image>"}',
        '{"text": "<image> of nothing"}',
        '{"video": "clip.mp4", "text": "a"}',
        '{"video": [], "text": "a"}',
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=r"r\.jsonl, line 2 is not a record"):
        list(read_data(write(tmp_path / "r.jsonl", '{"image": "a.jpg", "text": "a"}', line)))


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no records at"):
        read_records(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="no records at"):
        read_data("none.jsonl", root=tmp_path)
    with pytest.raises(ConfigError, match="is empty"):
        read_records(write(tmp_path / "r.jsonl", ""))
    (tmp_path / "latin.jsonl").write_bytes('{"text": "\xe9"}'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"line 1 is not a record \(not UTF-8 text"):
        read_data(tmp_path / "latin.jsonl")


def test_source_and_images_are_relative_to_the_root(tmp_path: Path) -> None:
    write(tmp_path / "lists" / "r.jsonl", {"image": "a.jpg", "text": "a"})
    (record,) = read_data("lists/r.jsonl", root=tmp_path)
    assert record.images == (FileRef(tmp_path / "a.jpg"),)
    (record,) = read_data(tmp_path / "lists" / "r.jsonl")
    assert record.images == (FileRef(tmp_path / "lists" / "a.jpg"),)


def test_several_images_of_one_question(tmp_path: Path) -> None:
    row = {"images": ["a.jpg", "b.jpg"], "question": "<image>\n<image> Same?", "answer": "no"}
    record = one(tmp_path, row)
    assert shown(record) == [["a.jpg", "b.jpg"]]
    assert record.question == "Same?"


def test_no_answer_is_kept_for_check_and_text_alone_is_a_document(tmp_path: Path) -> None:
    assert one(tmp_path, {"image": "a.jpg", "answer": ""}).answer == ""
    plain = one(tmp_path, {"text": "Only words.", "url": "u"})
    assert (plain.text, plain.turns, plain.extra) == ("Only words.", (), {"url": "u"})
    assert one(tmp_path, {"question": "Why?", "answer": "So."}).images == ()


LLAVA = [
    {"from": "human", "value": "Hello"},
    {"from": "gpt", "value": "Hi"},
    {"from": "human", "value": "What is this?\n<image>"},
    {"from": "gpt", "value": "A cat"},
]


def test_llava_shows_the_image_where_its_tag_is(tmp_path: Path) -> None:
    record = one(tmp_path, {"id": "1", "image": "cat.jpg", "conversations": LLAVA})
    assert shown(record) == [[], ["cat.jpg"]]
    assert [(t.question, t.answer) for t in record.turns] == [
        ("Hello", "Hi"),
        ("What is this?", "A cat"),
    ]
    assert (record.names, record.extra) == (("Hi",), {"id": "1"})


def test_without_a_tag_images_go_to_the_first_turn(tmp_path: Path) -> None:
    rows = [{"from": "system", "value": "Be brief."}, *LLAVA[:2], *LLAVA[:2]]
    record = one(tmp_path, {"image": "cat.jpg", "conversations": rows})
    assert shown(record) == [["cat.jpg"], []]
    assert [t.question for t in record.turns] == ["Be brief.\nHello", "Hello"]


def test_a_list_in_one_json_file_as_llava_has_it(tmp_path: Path) -> None:
    path = tmp_path / "llava.json"
    path.write_text(json.dumps([{"image": "cat.jpg", "conversations": LLAVA}] * 2))
    assert len(read_data(path)) == 2
    path.write_text(json.dumps([{"image": "cat.jpg", "text": "a"}, {"conversations": LLAVA}]))
    with pytest.raises(ConfigError, match=r"llava\.json, entry 2 is not a record \(<image> stands"):
        list(read_data(path))


def test_typed_parts(tmp_path: Path) -> None:
    coded = "data:image/png;base64," + base64.b64encode(b"bytes").decode()
    parts = [
        {"type": "image_url", "image_url": {"url": "a.jpg"}},
        {"type": "image", "image": None, "text": None},
        {"type": "text", "text": "Which?"},
    ]
    chat = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "The first"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": coded}}]},
        {"role": "assistant", "content": "A third"},
    ]
    record = one(tmp_path, {"messages": chat, "images": ["b.jpg"]})
    assert shown(record)[0] == ["a.jpg", "b.jpg"]
    assert record.turns[1].images[0].read() == b"bytes"
    assert [(t.question, t.answer) for t in record.turns] == [
        ("Which?", "The first"),
        ("", "A third"),
    ]


@pytest.mark.parametrize(
    ("chat", "images", "message"),
    [
        (LLAVA[:1], [], "1 messages"),
        (LLAVA[1:3], [], "stands 1 times, with 0"),
        ([LLAVA[1], LLAVA[0]], [], "got a assistant, then a user"),
        (LLAVA, ["a.jpg", "b.jpg"], "1 <image> tags and 2 images"),
        ([LLAVA[0], {"from": "gpt", "value": "<image>"}], ["a.jpg"], "turn of the assistant"),
        ([{"from": "tool", "value": "x"}], [], 'the role "tool"'),
        ([{"role": "user", "content": [{"type": "audio"}]}], [], 'type "audio"'),
        ([{"role": "user", "content": [{"type": "image"}]}], [], "says no path"),
        ([{"role": "user", "content": "<|endofchunk|>"}], [], "endofchunk"),
    ],
)
def test_chats_that_do_not_fit(
    tmp_path: Path, chat: list[Any], images: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"line 1 is not a record.*{message}"):
        one(tmp_path, {"conversations": chat, "images": images})


def test_documents_of_every_kind(tmp_path: Path) -> None:
    tagged = one(tmp_path, {"text": "A cat. <image>A dog.", "images": ["dog.jpg"]})
    assert (tagged.text, tagged.images) == (
        "A cat. <image>A dog.",
        (FileRef(tmp_path / "dog.jpg"),),
    )
    obelics = one(tmp_path, {"texts": ["A cat.", None], "images": [None, "dog.jpg"], "id": 1})
    assert (obelics.text, obelics.extra) == ("A cat. <image>", {"id": 1})
    info = [{"image_name": "b.jpg", "matched_text_index": 1}]
    info.append({"image_name": "a.jpg", "matched_text_index": 0})
    mmc4 = one(tmp_path, {"text_list": ["A.", "B."], "image_info": info, "url": "u"})
    assert mmc4.text == "<image>A. <image>B."
    assert mmc4.images == (FileRef(tmp_path / "a.jpg"), FileRef(tmp_path / "b.jpg"))
    assert mmc4.extra == {"url": "u"}


def test_clips(tmp_path: Path) -> None:
    touch(tmp_path / "clip", "f10.jpg", "f9.jpg", "f1.jpg", "notes.txt", ".hidden.jpg")
    frames = tuple(FileRef(tmp_path / "clip" / f"f{n}.jpg") for n in (1, 9, 10))
    assert one(tmp_path, {"video": "clip", "text": "a walk"}).images == (frames,)
    listed = one(tmp_path, {"frames": ["clip/f9.jpg", "clip/f1.jpg"], "text": "a walk"})
    assert listed.images == ((frames[1], frames[0]),)
    chat = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "A walk"}]
    record = one(tmp_path, {"video": "clip", "conversations": chat})
    assert (record.question, record.images) == ("What?", (frames,))


# --- CSV -----------------------------------------------------------------------------------------


def test_csv_and_tsv(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text('\ufeffimage,text\na.jpg,"a dog,\nasleep"\nb.jpg,\n', encoding="utf-8")
    dog, empty = read_data(table)
    assert (dog.answer, dog.images) == ("a dog,\nasleep", (FileRef(tmp_path / "a.jpg"),))
    assert empty.answer == ""
    table = tmp_path / "t.tsv"
    table.write_text("file_name\tquestion\tanswer\tsource\na.jpg\tHow many?\t2\tx\n")
    (record,) = read_data(table)
    assert (record.question, record.answer, record.extra) == ("How many?", "2", {"source": "x"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,text\na.jpg,a,b\n", "line 2 is not a record .expected 2 columns, image, text"),
        ("image,text\na.jpg\n", "line 2 is not a record .expected 2 columns"),
        (
            "image,words\na.jpg,b\n",
            r"columns image, words: expected .*\(answer, name, text",
        ),
        ("image,text\n", "is empty"),
        ('image,text\na.jpg,"never closed', "unexpected end"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ConfigError, match=rf"t\.csv.*{message}"):
        read_data(tmp_path / "t.csv")


# --- Tables and objects --------------------------------------------------------------------------


class Features(dict[str, Any]):
    class Label:
        names = ("no", "great_owl")


class Dataset:
    """What `datasets.Dataset` has that is used here; counts the rows that were read."""

    column_names = ("image", "label")
    features = Features(label=Features.Label())

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read.append(index)
        inside = {"bytes": None, "path": "a.jpg"}, {"bytes": b"b", "path": "b.jpg"}, RED
        return {"image": inside[index], "label": 1, "note": None}


def test_a_dataset_is_read_row_by_row(tmp_path: Path) -> None:
    dataset = Dataset()
    records = read_data(dataset, root=tmp_path)
    assert dataset.read == []
    assert (records[-1].answer, records[-1].extra) == ("great owl", {})
    assert dataset.read == [2, 2]
    path, data, pil = (r.images[0] for r in records)
    assert path == FileRef(tmp_path / "a.jpg")
    assert isinstance(data, FileRef)
    assert (data.read(), data.member) == (b"b", "b.jpg")
    assert isinstance(pil, FileRef)
    with Image.open(io.BytesIO(pil.read())) as decoded:
        assert (decoded.format, decoded.size, decoded.getpixel((0, 0))) == (
            "PNG",
            (3, 2),
            (255, 0, 0),
        )


def test_splits_and_strangers_are_refused() -> None:
    class Splits(dict[str, Any]):
        column_names = ()

    with pytest.raises(ConfigError, match="has the splits train, test: choose one"):
        read_data(Splits(train=1, test=2))
    with pytest.raises(ConfigError, match="got int as a data set"):
        read_data(3)
    records = [Record(text="a")]
    assert read_data(records) is records


def test_an_unknown_form_says_what_is_known(tmp_path: Path) -> None:
    touch(tmp_path, "a.zip")
    with pytest.raises(ConfigError, match=r'a\.zip is "\.zip": expected a folder of images, tar'):
        read_data(tmp_path / "a.zip")


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is there")
def test_parquet_without_pyarrow(tmp_path: Path) -> None:
    touch(tmp_path, "a.parquet")
    with pytest.raises(MissingExtraError, match=r"isthmus\[train\]"):
        read_data(tmp_path / "a.parquet")


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"image": {"bytes": b"x", "path": None}, "text": "a"}]
    rows.append({"image": {"bytes": None, "path": "b.jpg"}, "text": "b"})
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    records = pickle.loads(pickle.dumps(read_data(tmp_path / "t.parquet")))
    assert [r.answer for r in records] == ["a", "b"]
    assert records[0].images[0].read() == b"x"
    assert records[1].images == (FileRef(tmp_path / "b.jpg"),)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match="is not a Parquet file"):
        read_data(tmp_path / "t.parquet")


@pytest.mark.filterwarnings("ignore")  # the package's own, of its dependencies
def test_a_saved_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    arrow = pytest.importorskip("pyarrow")
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "red_fox"])}
    features = datasets.Features(kinds)
    rows = [{"image": {"bytes": png(RED), "path": None}, "label": label} for label in (0, 1)]
    table = arrow.Table.from_pylist(rows, schema=features.arrow_schema)
    # With a fingerprint of ours: not every release of dill can pickle every release's tables
    info = datasets.DatasetInfo(features=features)
    made = datasets.Dataset(table, info=info, fingerprint="made")
    made.save_to_disk(tmp_path / "saved")
    cat, fox = read_data("saved", root=tmp_path)
    assert (cat.answer, fox.answer) == ("cat", "red fox")
    with Image.open(io.BytesIO(fox.images[0].read())) as decoded:
        assert decoded.size == (3, 2)
    datasets.DatasetDict(train=made).save_to_disk(tmp_path / "splits")
    with pytest.raises(ConfigError, match="has the splits train"):
        read_data(tmp_path / "splits")
