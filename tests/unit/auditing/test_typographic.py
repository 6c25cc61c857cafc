"""Words on images: what is written, where, and the control."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from isthmus.auditing.attacks.typographic import random_string, typographic_attack, written
from isthmus.errors import InputError

GREEN = (0, 200, 0)


def box_of(image: Image.Image) -> tuple[int, int, int, int]:
    """Where the image is no longer green: left, top, right, bottom."""
    rows, columns = np.nonzero((np.asarray(image) != GREEN).any(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@pytest.mark.parametrize("size", [(64, 64), (224, 224), (300, 120), (90, 400)])
@pytest.mark.parametrize("text", ["dog", "great white shark"])
def test_a_white_box_with_black_text_in_the_middle_square(size: tuple[int, int], text: str) -> None:
    places = set()
    for seed in range(10):
        image = Image.new("RGB", size, GREEN)
        found = written(image, text, seed=seed)
        assert found.size == size
        assert image.getextrema() == ((0, 0), (200, 200), (0, 0))  # untouched
        left, top, right, bottom = box_of(found)
        side = min(size)
        assert (size[0] - side) // 2 <= left < right <= (size[0] + side + 1) // 2
        assert (size[1] - side) // 2 <= top < bottom <= (size[1] + side + 1) // 2
        inside = np.asarray(found.crop((left, top, right, bottom)).convert("L"))
        edge = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
        assert edge.min() == 255  # the letters do not reach the border of the box
        assert inside.min() < 64
        assert 0.05 < (inside < 128).mean() < 0.6
        places.add((left, top))
        assert written(image, text, seed=seed).tobytes() == found.tobytes()
    assert len(places) > 3


def test_letters_grow_with_the_image() -> None:
    def height(side: int) -> int:
        _, top, _, bottom = box_of(written(Image.new("RGB", (side, side), GREEN), "dog"))
        return bottom - top

    assert 2.5 < height(448) / height(112) < 5
    assert 0.1 < height(224) / 224 < 0.3


def test_the_text_is_what_is_read() -> None:
    """One letter more is wider; another word leaves other ink."""
    image = Image.new("RGB", (224, 224), GREEN)
    short, long = (box_of(written(image, text)) for text in ("dog", "dogs"))
    assert long[2] - long[0] > short[2] - short[0]
    assert written(image, "dog").tobytes() != written(image, "cat").tobytes()


def test_controls_have_as_many_letters_and_another_text() -> None:
    images = [Image.new("RGB", (128, 128), GREEN)] * 3
    words = ["ice cream", "dog", "a"]
    made = typographic_attack(images, words, seed=3)
    assert made == typographic_attack(images, words, seed=3)
    for word, string, attacked, control in zip(
        words, made.strings, made.attacked, made.controls, strict=True
    ):
        assert [len(part) for part in string.split()] == [len(part) for part in word.split()]
        assert string != word
        assert attacked.tobytes() != control.tobytes()
    assert typographic_attack(images, words, seed=4).strings != made.strings
    assert all(random_string("a", seed) != "a" for seed in range(200))


def test_what_cannot_be_written_is_told() -> None:
    image = Image.new("RGB", (224, 224))
    with pytest.raises(InputError, match='no letter "고"'):
        written(image, "고양이")
    with pytest.raises(InputError, match="empty"):
        written(image, "  ")
    with pytest.raises(InputError, match="no room"):
        written(Image.new("RGB", (16, 16)), "great white shark")
    with pytest.raises(InputError, match="a word for each"):
        typographic_attack([image], ["dog", "cat"])
    with pytest.raises(InputError, match="one text"):
        typographic_attack([image], "d")
