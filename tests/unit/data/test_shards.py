from __future__ import annotations

import base64
import io
import json
import logging
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest

from isthmus.data.shards import Shards, expand, find_files
from isthmus.data.sources import read_data
from isthmus.errors import ConfigError
from isthmus.media.file_ref import FileRef


def shard(path: Path, members: dict[str, Any], mode: str = "w") -> Path:
    """A tar of bytes, texts and JSON objects."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, value in members.items():
            data = value if isinstance(value, bytes) else None
            if data is None:
                data = (value if isinstance(value, str) else json.dumps(value)).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pair(key: str, **metadata: Any) -> dict[str, Any]:
    """A sample as img2dataset writes it."""
    image = f"image {key}".encode() * 100
    return {
        f"{key}.jpg": image,
        f"{key}.txt": f"caption {key}\n",
        f"{key}.json": {"caption": f"crawled {key}", "url": "u", **metadata},
    }


def test_pairs_of_img2dataset(tmp_path: Path) -> None:
    path = shard(tmp_path / "0.tar", pair("000") | pair("001", width=7))
    records = read_data(path)
    assert [(r.question, r.answer) for r in records] == [("", "caption 000"), ("", "caption 001")]
    assert records[1].extra == {"caption": "crawled 001", "url": "u", "width": 7}
    (image,) = records[1].images
    assert isinstance(image, FileRef)
    assert (image.path, image.member, image.data) == (path, "001.jpg", None)
    assert image.read() == b"image 001" * 100
    assert records[1].origin == f"{path}, sample 001"


def test_the_reader_reads_texts_on_demand_and_images_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shard(tmp_path / "0.tar", pair("000") | pair("001"))
    records = read_data(path)
    spans: list[tuple[int, int]] = []
    real = Path.open

    class Watched:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Watched:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def read(self, size: int) -> bytes:
            spans.append((self.file.tell(), size))
            return self.file.read(size)

    monkeypatch.setattr(Path, "open", lambda self, *a: Watched(real(self, *a)))
    (image,) = records[1].images
    assert isinstance(image, FileRef)
    assert [size for _, size in spans] == [
        len("caption 001\n"),
        len('{"caption": "crawled 001", "url": "u"}'),
    ]
    assert all(start >= image.start + (image.size or 0) for start, _ in spans)


def test_many_shards_are_one_sequence(tmp_path: Path) -> None:
    for number in range(3):
        shard(tmp_path / f"{number:03}.tar", pair(f"{number}0") | pair(f"{number}1"))
    wanted = [f"caption {k}" for k in ("00", "01", "10", "11", "20", "21")]
    for source in ("{000..002}.tar", "*.tar", "00{0,1,2}.tar", "."):
        records = read_data(source, root=tmp_path)
        assert [r.answer for r in records] == wanted
    assert [r.answer for r in records[2:4]] == wanted[2:4]
    assert records[-1].answer == wanted[-1]
    assert [r.answer for r in pickle.loads(pickle.dumps(records))] == wanted
    with pytest.raises(IndexError):
        records[6]


def test_braces() -> None:
    assert expand("s-{8..11}.tar") == ["s-8.tar", "s-9.tar", "s-10.tar", "s-11.tar"]
    assert expand("{a,b}/{01..02}") == ["a/01", "a/02", "b/01", "b/02"]
    assert expand("plain") == ["plain"]
    with pytest.raises(ConfigError, match=r"in braces, got \{x\}"):
        expand("{x}.tar")


def test_missing_shards_are_named(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", pair("000"))
    with pytest.raises(ConfigError, match=r"no records at .*/1\.tar and 1 more"):
        read_data("{0..2}.tar", root=tmp_path)
    with pytest.raises(ConfigError, match=r"no records at .*x\*\.tar"):
        read_data("x*.tar", root=tmp_path)
    (tmp_path / "[odd].tar").touch()
    assert find_files(tmp_path / "[odd].tar") == [tmp_path / "[odd].tar"]


def document(*matches: tuple[str, int]) -> dict[str, Any]:
    info = [{"image_name": name, "matched_text_index": index} for name, index in matches]
    return {"text_list": ["A.", "B."], "image_info": info, "url": "u"}


def test_documents_with_base64_as_openflamingo_s_converter_writes_them(tmp_path: Path) -> None:
    row = document(("b.jpg", 1), ("never-downloaded.jpg", 0), ("a.jpg", 0))
    for info, data in ((row["image_info"][0], b"bb"), (row["image_info"][2], b"aa")):
        info["image_base64"] = str(base64.b64encode(data))
    (record,) = read_data(shard(tmp_path / "0.tar", {"f00.json": row}))
    assert record.text == "<image>A. <image>B."
    assert [p.read() for p in record.images if isinstance(p, FileRef)] == [b"aa", b"bb"]
    assert record.extra == {"url": "u"}


def test_documents_with_images_beside_them(tmp_path: Path) -> None:
    members = {
        "x/b.jpg": b"bb of x",
        "x/doc.json": document(("b.jpg", 1), ("a.jpg", 0)),
        "x/a.jpg": b"aa of x",
        "./y/doc.json": document(("a.jpg", 1), ("gone.jpg", 0)),
        "./y/a.jpg": b"aa of y",
        "./z.json": document(("y/a.jpg", 0), ("only-here.png", 1)),
        "a.jpg": b"aa of the top",
        "w/doc.json": document(("x.jpg", 0), ("b.jpg", 1)),
        "v1/x.jpg": b"one x",
        "v2/x.jpg": b"another x",
        "elsewhere/only-here.png": b"png",
    }
    x, y, z, w = read_data(shard(tmp_path / "0.tar", members))
    contents = [[p.read() for p in r.images if isinstance(p, FileRef)] for r in (x, y, z, w)]
    assert contents == [[b"aa of x", b"bb of x"], [b"aa of y"], [b"aa of y", b"png"], [b"bb of x"]]
    # Two images are called x.jpg, and neither is beside w: none is better than the wrong one
    assert [r.text for r in (x, y, w)] == ["<image>A. <image>B.", "A. <image>B.", "A. <image>B."]


def test_other_rows_in_json(tmp_path: Path) -> None:
    chat = [{"from": "human", "value": "Who?\n<image>"}, {"from": "gpt", "value": "A cat"}]
    members = {
        "0.json": {"image": "old/path.jpg", "conversations": chat},
        "0.JPG": b"cat",
        "1.json": {"text": "<image>One. <image>Two."},
        "1.0.png": b"one",
        "1.1.png": b"two",
        "2.json": {"text_list": ["only words"], "image_info": []},
        "3.caption.txt": "as WebDataset groups it",
        "3.image.webp": b"3",
        "4.v1.txt": "version 1",
        "4.v1.jpg": b"v1",
        "4.v2.txt": "version 2",
        "4.v2.jpg": b"v2",
    }
    records = list(read_data(shard(tmp_path / "0.tar", members)))
    assert [(r.question, r.answer) for r in records] == [
        ("Who?", "A cat"),
        ("", "<image>One. <image>Two."),
        ("", "only words"),
        ("", "as WebDataset groups it"),
        ("", "version 1"),
        ("", "version 2"),
    ]
    assert [[p.read() for p in r.images if isinstance(p, FileRef)] for r in records] == [
        [b"cat"],
        [b"one", b"two"],
        [],
        [b"3"],
        [b"v1"],
        [b"v2"],
    ]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.jpg": b"", "0.txt": "a <image>"}, "holds <image>"),
        ({"0.json": "{"}, "Expecting property name"),
        ({"0.json": [1]}, "expected an object"),
        ({"0.txt": b"\xff"}, "utf-8"),
        ({"0.json": {"image": "none.jpg", "text": "a"}}, "none.jpg"),
    ],
)
def test_a_bad_sample_is_named_when_it_is_read(
    tmp_path: Path, members: dict[str, Any], message: str
) -> None:
    records = read_data(shard(tmp_path / "0.tar", members))
    with pytest.raises(ConfigError, match=rf"0\.tar, sample 0 is not a record.*{message}"):
        records[0]


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_compressed_shards_are_refused(tmp_path: Path, mode: str) -> None:
    for name in ("0.tar", f"0.tar.{mode}"):  # whatever it is called
        path = shard(tmp_path / name, pair("000"), f"w:{mode}")
        with pytest.raises(ConfigError, match=r"is compressed .*unpack it first"):
            read_data(path)


def test_what_is_no_tar(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(ConfigError, match=r"0\.tar is not a tar file"):
        read_data(tmp_path / "0.tar")
    shard(tmp_path / "0.tar", {"a.jpg": b"", "b.cls": b"1"})
    with pytest.raises(ConfigError, match="no samples in"):
        read_data(tmp_path / "0.tar")


def test_a_shard_cut_anywhere_keeps_its_whole_samples(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = shard(tmp_path / "whole.tar", pair("000") | pair("001") | pair("002"))
    data = whole.read_bytes()
    with tarfile.open(whole) as tar:
        ends = [m.offset_data + m.size for m in tar if m.name.endswith(".json")]
    path = tmp_path / "cut.tar"
    for length in range(ends[0], len(data), 211):
        path.write_bytes(data[:length])
        caplog.clear()
        kept = [r.answer for r in Shards([path])]
        assert kept == [f"caption 00{i}" for i, end in enumerate(ends) if end <= length]
        # From the first block of zeros on nothing is missing
        if length >= ends[-1] + 512 + 512:
            assert not caplog.text
        else:
            assert f"{path} is cut short or damaged" in caplog.text
    path.write_bytes(data[: ends[1] + 2000])
    caplog.clear()
    assert len(Shards([path])) == 2
    assert "sample 002 is not whole" in caplog.text or "within 002" in caplog.text


def test_damage_in_the_middle_is_no_quiet_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = shard(tmp_path / "0.tar", pair("000") | pair("001"))
    with tarfile.open(path) as tar:
        header = tar.getmember("001.jpg").offset
    data = bytearray(path.read_bytes())
    data[header : header + 512] = b"x" * 512
    path.write_bytes(data)
    assert [r.answer for r in Shards([path])] == ["caption 000"]
    assert f"damaged at byte {header}: 1 whole samples" in caplog.text


def test_images_without_a_text_beside_pairs_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    path = shard(tmp_path / "0.tar", pair("000") | {"001.jpg": b"x"})
    assert len(Shards([path])) == 1
    assert "1 images without a text of the same name" in caplog.text
    assert "001.jpg" in caplog.text


def test_long_names_and_folders(tmp_path: Path) -> None:
    key = "/".join(["folder.with.dots"] * 10) + "/" + "n" * 120
    path = tmp_path / "0.tar"
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(path, "w", format=form) as tar:
            for name, data in ((f"{key}.jpg", b"far"), (f"{key}.txt", b"away")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        (record,) = read_data(path)
        (image,) = record.images
        assert isinstance(image, FileRef)
        assert (record.answer, image.read(), image.member) == ("away", b"far", f"{key}.jpg")


def test_a_text_that_lost_its_image_is_left_out_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lost = pair("001")
    del lost["001.jpg"]
    path = shard(tmp_path / "0.tar", pair("000") | lost | pair("002"))
    assert [r.answer for r in read_data(path)] == ["caption 000", "caption 002"]
    assert "1 texts without an image of the same name, left out: 001" in caplog.text
    words = shard(tmp_path / "1.tar", {"0.txt": "words", "1.txt": "alone"})
    assert [r.text for r in read_data(words)] == ["words", "alone"]


def test_json_that_lost_its_image_is_no_record(tmp_path: Path) -> None:
    chat = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "I"}]
    members = {
        "0.jpg": b"x",
        "0.json": {"text": "a cat"},
        "1.json": {"text": "a dog"},
        "2.json": {"conversations": chat},
        "3.json": {"text_list": ["Only words."], "image_info": []},
    }
    records = read_data(shard(tmp_path / "0.tar", members))
    assert (len(records), records[0].answer, records[2].answer) == (4, "a cat", "I")
    assert records[3].text == "Only words."
    with pytest.raises(ConfigError, match=r"0\.tar, sample 1 is not a record \(no image\)"):
        records[1]
