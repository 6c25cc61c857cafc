from __future__ import annotations

import base64
import logging
from pathlib import Path
from typing import Any

import pytest

from isthmus.data.interleaved import decode_base64, from_aligned, from_mmc4, from_tagged, join
from isthmus.media.file_ref import FileRef


def find(name: str) -> FileRef:
    if name.startswith("gone"):
        raise KeyError(name)
    return FileRef(Path(name))


def names(media: tuple[Any, ...]) -> list[str]:
    return [str(image) for image in media]


def in_file_order(row: dict[str, Any]) -> list[str]:
    """Images as OpenFlamingo's loader hands them out: tags in the sentences' order, images in
    the file's."""
    return [info["image_name"] for info in row["image_info"]]


def mmc4(*matches: tuple[str, int | None], sentences: int = 3) -> dict[str, Any]:
    info = [{"image_name": name, "matched_text_index": index} for name, index in matches]
    return {"text_list": [f"S{i}." for i in range(sentences)], "image_info": info}


def test_each_image_stands_where_its_sentence_is_whatever_the_file_s_order() -> None:
    row = mmc4(("of-2", 2), ("of-0", 0), ("of-1", 1))
    text, media = from_mmc4(row, find, "x")
    assert text == "<image>S0. <image>S1. <image>S2."
    assert names(media) == ["of-0", "of-1", "of-2"]
    # The k-th tag would get another image if images kept the file's order
    assert in_file_order(row) == ["of-2", "of-0", "of-1"]


def test_images_of_one_sentence_keep_the_file_s_order() -> None:
    text, media = from_mmc4(mmc4(("b", 1), ("c", 2), ("a", 1)), find, "x")
    assert text == "S0. <image><image>S1. <image>S2."
    assert names(media) == ["b", "a", "c"]


def test_images_without_a_sentence_or_a_file_are_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    row = mmc4(("a", None), ("gone.jpg", 0), ("b", 2))
    text, media = from_mmc4(row, find, "shard, sample 3")
    assert (text, names(media)) == ("S0. S1. <image>S2.", ["b"])
    assert "shard, sample 3: no image gone.jpg" in caplog.text
    assert from_mmc4(mmc4(), find, "x") == ("S0. S1. S2.", ())


def test_the_similarity_matrix_stands_in_for_a_missing_index() -> None:
    row = mmc4(("to-1", None), ("to-0", None), ("own", 0), sentences=2)
    row["similarity_matrix"] = [[0.1, 0.3], [0.31, 0.12], [0.0, 0.9]]
    text, media = from_mmc4(row, find, "x")
    assert text == "<image><image>S0. <image>S1."
    assert names(media) == ["to-0", "own", "to-1"]


def test_an_index_beyond_the_sentences_is_refused() -> None:
    with pytest.raises(ValueError, match="image 0 belongs to sentence 3, of 3"):
        from_mmc4(mmc4(("a", 3)), find, "x")


@pytest.mark.parametrize("write", [lambda b: b.decode(), str], ids=["base64", "OpenFlamingo"])
def test_base64_also_as_python_writes_bytes(write: Any) -> None:
    data = bytes(range(256))
    row = mmc4(("gone.jpg", 1))
    row["image_info"][0]["image_base64"] = write(base64.b64encode(data))
    _, (image,) = from_mmc4(row, find, "shard")
    assert isinstance(image, FileRef)
    assert (image.read(), str(image)) == (data, "shard:gone.jpg")


@pytest.mark.parametrize("coded", ["b'abc", "a*bc", "abcde"])
def test_damaged_base64_is_refused(coded: str) -> None:
    with pytest.raises(ValueError, match=r"(?i)base64|character|padding"):
        decode_base64(coded)


def test_aligned_lists() -> None:
    texts = ["Town.", None, "A cat.", None]
    images = [None, "cat", None, "end"]
    text, media = from_aligned(texts, images, find)
    assert (text, names(media)) == ("Town. <image>A cat. <image>", ["cat", "end"])


@pytest.mark.parametrize(
    ("texts", "images", "message"),
    [
        (["a"], [None, "b"], "1 entries"),
        (["a"], ["b"], "got both"),
        ([None], [None], "got neither"),
    ],
)
def test_lists_that_are_not_aligned(texts: list[Any], images: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_aligned(texts, images, find)


@pytest.mark.parametrize("tag", ["<image>", "<|endofchunk|>"])
def test_our_tags_in_somebody_s_sentence_are_refused(tag: str) -> None:
    with pytest.raises(ValueError, match="take it out"):
        join([f"They write {tag} here."])
    row = mmc4(("a", 0))
    row["text_list"][1] = f"They write {tag} here."
    with pytest.raises(ValueError, match="take it out"):
        from_mmc4(row, find, "x")


def test_a_tagged_text_has_as_many_images() -> None:
    cat = FileRef(Path("cat"))
    assert from_tagged("A <image>cat.", [cat]) == ("A <image>cat.", (cat,))
    with pytest.raises(ValueError, match="2 <image> tags and 1 images"):
        from_tagged("<image> <image>", [cat])
    with pytest.raises(ValueError, match="endofchunk"):
        from_tagged("<image>a<|endofchunk|>", [cat])
