from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isthmus.demonstrations.support import Support, identity, pixel_keys
from isthmus.errors import ImageError, InputError
from isthmus.media.file_ref import FileRef
from isthmus.prompts.prompt import Example


def noise(seed: int, size: int = 12) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def saved(image: Image.Image, name: str) -> bytes:
    data = io.BytesIO()
    image.save(data, name)
    return data.getvalue()


SHOTS = [
    Example(noise(0), "What is it?", "a"),
    Example(noise(0), "How many?", "b"),
    Example(noise(1), "What is it?", "c"),
    Example((), "What is it?", "d"),
]


def answers(support: Support, query: Example, query_id: object = None) -> str:
    chosen = support.allowed(range(len(support)), [query], len(support), [query_id])
    return "".join(str(support.examples[i].answer) for i in chosen)


def test_the_query_itself_is_never_chosen_and_everything_else_is() -> None:
    support = Support(SHOTS)
    assert answers(support, Example(noise(0), "What is it?")) == "bcd"
    assert answers(support, Example(noise(0), "How many?")) == "acd"
    assert answers(support, Example((), "What is it?")) == "abc"
    assert answers(support, Example(noise(2), "What is it?")) == "abcd"


def test_case_and_white_space_do_not_hide_the_query() -> None:
    assert answers(Support(SHOTS), Example(noise(0), " what is  IT?\n")) == "bcd"


def test_the_same_pixels_in_any_form_are_the_same_image(tmp_path: Path) -> None:
    image = noise(0)
    image.save(tmp_path / "a.png")
    forms = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        saved(image, "BMP"),
        saved(image, "PNG"),
        FileRef(tmp_path / "a.png"),
        FileRef(Path("in memory"), data=saved(image, "BMP")),
    ]
    for form in forms:
        assert answers(Support(SHOTS), Example([form], "What is it?")) == "bcd"


def test_ids_guard_where_contents_differ() -> None:
    support = Support(SHOTS, ids=["w", "x", "y", "z"])
    assert answers(support, Example(noise(5), "Else?"), "y") == "abd"
    assert answers(support, Example(noise(5), "Else?"), "v") == "abcd"


def test_demonstrations_without_an_id_are_no_leak_of_queries_without_one() -> None:
    support = Support(SHOTS, ids=["w", None, "y", None])
    assert answers(support, Example(noise(5), "Else?"), None) == "abcd"


def test_other_questions_about_the_same_image_can_be_refused() -> None:
    query = Example([noise(7), noise(0)], "Compare?")
    assert answers(Support(SHOTS), query) == "abcd"
    assert answers(Support(SHOTS, other_images=True), query) == "cd"


def test_images_in_another_order_are_another_example() -> None:
    support = Support([Example([noise(0), noise(1)], "Compare?", "a")])
    assert answers(support, Example([noise(1), noise(0)], "Compare?")) == "a"
    assert answers(support, Example([noise(0), noise(1)], "Compare?")) == ""


def test_images_are_opened_only_where_questions_are_equal(tmp_path: Path) -> None:
    missing = Example(tmp_path / "missing.png", "Broken?", "x")
    support = Support([missing, SHOTS[0]])
    assert answers(support, Example(noise(3), "What is it?")) == "xa"
    with pytest.raises(ImageError, match=r"missing\.png"):
        answers(support, Example(noise(3), "Broken?"))


def test_too_few_demonstrations_are_an_error_that_says_how_many() -> None:
    support = Support(SHOTS)
    with pytest.raises(InputError, match="asked for 4 shots, and only 3 of the 4"):
        support.take(range(4), Example(noise(0), "How many?"), 4)
    with pytest.raises(InputError, match="asked for -1 shots"):
        support.take(range(4), Example(noise(0), "How many?"), -1)
    with pytest.raises(InputError, match="empty"):
        Support([])
    with pytest.raises(InputError, match="4 demonstrations came with 1 ids"):
        Support(SHOTS, ids=["a"])


def test_an_open_file_is_refused_before_it_is_used_up() -> None:
    file = io.BytesIO(saved(noise(0), "PNG"))
    with pytest.raises(ImageError, match="only once"):
        pixel_keys(Example([file], "What is it?"))
    assert file.tell() == 0


def test_identity_depends_on_question_images_and_their_order() -> None:
    a, b = noise(0), noise(1)
    different = [Example([a, b], "Q"), Example([b, a], "Q"), Example(a, "Q"), Example([a, b], "R")]
    assert len({identity(e) for e in different}) == 4
    assert identity(Example([a], "Q")) == identity(Example(saved(a, "PNG"), "Q", "an answer"))


def test_a_clip_is_not_its_first_frame() -> None:
    a, b = noise(0), noise(1)
    assert pixel_keys(Example([(a, b)])) != pixel_keys(Example([(a,)])) == pixel_keys(Example(a))
