from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isthmus.data.rows import png
from isthmus.errors import ImageError
from isthmus.media import image as images
from isthmus.media.image import open_image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_every_way_in_gives_the_same_image(tmp_path: Path) -> None:
    image = Image.effect_noise((9, 7), 80).convert("RGB")
    data = encoded(image)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for source in (path, str(path), data, io.BytesIO(data), image):
        assert open_image(source).tobytes() == image.tobytes()


def test_transparency_is_laid_over_white() -> None:
    rgba = Image.new("RGBA", (2, 1))
    rgba.putpixel((0, 0), (200, 0, 0, 128))
    grey = Image.new("LA", (1, 1), (0, 0))
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([0, 0, 255])
    out = open_image(encoded(rgba))
    assert out.getpixel((0, 0)) == (227, 127, 127)  # 200 * 128/255 + 255 * 127/255
    assert out.getpixel((1, 0)) == (255, 255, 255)
    assert open_image(encoded(grey)).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(encoded(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(encoded(palette)).getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_stands_upright(orientation: int) -> None:
    upright = Image.new("RGB", (3, 2))
    upright.putpixel((0, 0), (255, 0, 0))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert open_image(encoded(stored, exif=exif)).tobytes() == upright.tobytes()


def test_deep_grey_keeps_its_range() -> None:
    deep = Image.new("I;16", (2, 1))
    deep.putpixel((0, 0), 65535)
    out = open_image(encoded(deep))
    assert (out.getpixel((0, 0)), out.getpixel((1, 0))) == ((255,) * 3, (0,) * 3)


def test_cmyk_and_the_first_frame_of_an_animation() -> None:
    red = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    r, g, b = open_image(red).getpixel((4, 4))  # type: ignore[misc]
    assert r > 200
    assert max(g, b) < 60
    frames = [Image.new("RGB", (2, 2), c) for c in ("red", "blue")]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(animation).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_file_is_refused(kind: str) -> None:
    whole = encoded(Image.effect_noise((64, 64), 90).convert("RGB"), kind)
    with pytest.raises(ImageError, match=r"truncated|cannot be opened|not an image"):
        open_image(whole[: len(whole) * 2 // 3])


def test_other_formats_other_things_and_too_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match="not an image of a known format"):
        open_image(encoded(Image.new("RGB", (2, 2)), "TIFF"))
    with pytest.raises(ImageError, match="got int"):
        open_image(3)  # type: ignore[arg-type]
    monkeypatch.setattr(images, "MOST_PIXELS", 3)
    with pytest.raises(ImageError, match="claims 2 x 2 pixels"):
        open_image(encoded(Image.new("RGB", (2, 2))))


def test_the_hash_is_of_what_is_seen() -> None:
    image = Image.effect_noise((5, 4), 80).convert("RGB")
    same = open_image(encoded(image))
    assert images.content_hash(same) == images.content_hash(image)
    assert images.content_hash(image.resize((4, 5))) != images.content_hash(image)


RAMP = np.linspace(0, 255, 256).reshape(16, 16)


@pytest.mark.parametrize(
    ("values", "mode"),
    [
        (RAMP.astype(np.float32), "F"),
        ((RAMP / 255).astype(np.float32), "F"),
        (RAMP.astype(np.int32), "I"),
        ((RAMP * 257).astype(np.int32), "I"),
        ((RAMP * 257).astype(np.uint16), "I;16"),
        ((RAMP * 257).astype(">u2"), "I;16B"),
        (RAMP.astype(np.uint8), "L"),
    ],
)
def test_a_photograph_is_the_same_in_whatever_numbers(values: Any, mode: str) -> None:
    image = Image.fromarray(values)
    assert image.mode == mode
    assert np.array_equal(np.asarray(open_image(image))[..., 0], RAMP.astype(np.uint8))


@pytest.mark.parametrize("grey", ["I", "F"])
def test_what_pillow_makes_of_a_grey_image(grey: str) -> None:
    photograph = Image.effect_noise((9, 7), 80)
    out = open_image(photograph.convert(grey))
    assert out.tobytes() == photograph.convert("RGB").tobytes()
    row = Image.open(io.BytesIO(png(photograph.convert(grey))))
    assert open_image(row).tobytes() == out.tobytes()


def test_a_dark_file_of_16_bits_stays_dark() -> None:
    dark = Image.fromarray(np.full((2, 2), 200, np.uint16))
    assert open_image(encoded(dark)).getpixel((0, 0)) == (1, 1, 1)


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0.0, 300.0]], np.float32),
        np.array([[-1.0, 1.0]], np.float32),
        np.array([[np.nan, 1.0]], np.float32),
        np.array([[np.inf, 1.0]], np.float32),
        np.array([[0, 70_000]], np.int32),
        np.array([[-5, 5]], np.int32),
    ],
)
def test_values_that_say_no_range_are_refused_with_what_to_do(values: Any) -> None:
    with pytest.raises(ImageError, match=r"values from .*scale them to 0 to 255"):
        open_image(Image.fromarray(values))
