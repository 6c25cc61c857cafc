"""The printed words of the shipped model's recipe: what is held out never occurs in training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, ImageFont

NOUNS = ("ab", "cat", "dog", "onion", "bank", "ladder", "rockets", "elephant", "hippopotamus")


@pytest.fixture
def printed_words(recipe_path: Path) -> ModuleType:
    import printed_words

    return printed_words


@pytest.fixture
def data(
    tmp_path: Path, printed_words: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A data folder with a small WordNet, and Pillow's own typeface for every face."""
    wordnet = tmp_path / "unpacked" / "wordnet-base" / "usr" / "share" / "wordnet"
    wordnet.mkdir(parents=True)
    synsets = [(n, "06") for n in NOUNS] + [("king", "18")]
    lines = [f"{i:08d} {file} n 01 {n} 0 000 | a gloss" for i, (n, file) in enumerate(synsets)]
    index = [f"{n} n 1 0 1 0 {i:08d}" for i, (n, _) in enumerate(synsets)]
    (wordnet / "data.noun").write_text("\n".join(lines) + "\n")
    (wordnet / "index.noun").write_text("\n".join(index) + "\n")
    (wordnet / "noun.exc").write_text("")
    font = tmp_path / "default.ttf"
    default = ImageFont.load_default(20)
    assert isinstance(default, ImageFont.FreeTypeFont)
    font.write_bytes(default.font_bytes)
    monkeypatch.setattr(printed_words.fonts.Face, "file", lambda face, root: font)
    yield tmp_path
    printed_words.nouns.cache_clear()


def test_no_family_and_no_package_is_in_two_splits(printed_words: ModuleType) -> None:
    fonts = printed_words.fonts
    assert [len(fonts.faces(split)) for split in fonts.SPLITS] == [40, 3, 6]
    for what in ("family", "package"):
        train, dev, test = ({getattr(f, what) for f in fonts.faces(s)} for s in fonts.SPLITS)
        assert train.isdisjoint(dev | test)
        assert dev.isdisjoint(test)


def test_every_face_has_a_version_and_a_licence(
    printed_words: ModuleType, recipe_path: Path
) -> None:
    assert (recipe_path / "FONTS.md").read_text(encoding="utf-8") == printed_words.fonts.table()


def test_no_word_is_in_two_splits(printed_words: ModuleType, data: Path) -> None:
    found = {}
    for split in ("train", "dev", "test"):
        random = np.random.default_rng(0)
        drawn = [printed_words.word_for(split, ["x"], random) for _ in range(2000)]
        texts = {text.lower() for text, kind in drawn if kind != "dictionary"}
        found[split] = texts | set(printed_words.nouns(data, split))
        assert all(2 <= len(text) <= 8 and text.isascii() for text in found[split] - {"x"})
    assert found["train"].isdisjoint(found["dev"] | found["test"])
    assert found["dev"].isdisjoint(found["test"])
    nouns = {noun for split in found for noun in printed_words.nouns(data, split)}
    assert nouns == set(NOUNS) - {"hippopotamus"}, "neither too long a word nor a person"


def test_records_name_a_face_of_their_split_and_repeat(
    printed_words: ModuleType, data: Path
) -> None:
    made = list(printed_words.printed(data, "train", 6))
    again = list(printed_words.printed(data, "train", 3))
    assert again == made[:3]
    own = {face.name for face in printed_words.fonts.faces("train")}
    for record in made:
        assert record["font"] in own
        assert record["question"] in printed_words.QUESTIONS
        with Image.open(data / record["image"]) as image:
            assert image.size == (260, 260)
        assert len(record["boxes"]) == len(record["answer"])


def test_the_boxes_hold_all_the_ink(printed_words: ModuleType, data: Path) -> None:
    font = data / "default.ttf"
    ground = (Image.new("RGB", (520, 520), "white"), [(255, 255, 255)])
    printed_words._ground = lambda random: ground
    printed_words._draw_card = lambda *_: None
    printed_words._ink = lambda *_: (0, 0, 0)
    for seed in range(8):
        ground[0].paste("white", (0, 0, 520, 520))
        image, boxes = printed_words.picture("Ladder", font, np.random.default_rng(seed))
        ink = np.asarray(image).min(axis=-1) < 200
        for left, top, right, bottom in boxes:
            assert ink[top : bottom + 1, left : right + 1].any()
            ink[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2] = False
        assert not ink.any()


def test_ink_can_be_read_on_its_ground(printed_words: ModuleType) -> None:
    assert printed_words.contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    random = np.random.default_rng(0)
    for _ in range(200):
        ground = tuple(int(v) for v in random.integers(0, 256, 3))
        ink = printed_words._ink([ground], random)
        assert printed_words.contrast(ink, ground) >= printed_words.CONTRAST
