"""Images that strangers made, in full: exact pixels, damage, bombs, hostile addresses."""

from __future__ import annotations

import hashlib
import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from isthmus.errors import ImageError
from isthmus.media import image as images
from isthmus.media.image import content_hash, open_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def stored(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image's file."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def row(*colours: Any, mode: str = "RGB") -> Image.Image:
    """An image one pixel high."""
    image = Image.new(mode, (len(colours), 1))
    image.putdata(colours)
    return image


def pixels(image: Image.Image) -> list[Any]:
    """All pixels of an image, row by row."""
    assert image.mode == "RGB"
    return [image.getpixel((x, y)) for y in range(image.height) for x in range(image.width)]


def noise() -> Image.Image:
    generator = random.Random(0)
    return Image.frombytes("RGB", (40, 30), generator.randbytes(3600))


# --- What is opened ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP"])
def test_a_lossless_file_gives_its_pixels_from_every_kind_of_source(
    form: str, tmp_path: Path
) -> None:
    data = stored(noise(), form, **({"lossless": True} if form == "WEBP" else {}))
    path = tmp_path / "noise"
    path.write_bytes(data)
    with path.open("rb") as file:
        opened = [open_image(s) for s in (path, str(path), data, bytearray(data), file)]
    opened.append(open_image(Image.open(path)))
    assert {p.tobytes() for p in opened} == {noise().tobytes()}


def test_a_jpeg_is_what_pillow_makes_of_it() -> None:
    data = stored(noise(), "JPEG")
    assert open_image(data).tobytes() == Image.open(io.BytesIO(data)).tobytes()


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (3, 2), colour) for colour in (RED, BLUE)]
    data = stored(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(open_image(data)) == [RED] * 6


def test_a_phones_photograph_with_a_second_image_inside_gives_the_first() -> None:
    data = stored(
        Image.new("RGB", (8, 8), RED), "MPO", save_all=True, append_images=[noise()], quality=100
    )
    assert open_image(data).getpixel((4, 4)) == (254, 0, 0)


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the top is on the left
    data = stored(row(RED, GREEN, BLUE), exif=exif)
    upright = open_image(data)
    assert upright.size == (1, 3)
    assert pixels(upright) == [RED, GREEN, BLUE]
    assert pixels(open_image(Image.open(io.BytesIO(data)))) == [RED, GREEN, BLUE]


def test_damaged_metadata_do_not_hide_a_sound_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = stored(noise(), "JPEG", exif=exif)
    start = data.index(b"Exif\0\0") + 6
    entry = data.index(struct.pack(">H", 0x0112), start)
    # the orientation's type and count say text of 60,000 letters
    broken = data[: entry + 2] + struct.pack(">HI", 2, 60_000) + data[entry + 8 :]
    assert open_image(broken).size == (40, 30)


def test_transparency_is_laid_over_white() -> None:
    image = row((255, 0, 0, 255), (255, 0, 0, 128), (10, 20, 30, 0), mode="RGBA")
    # (255 * 128 + 0 * 127) / 255 of white comes through where alpha is 128
    assert pixels(open_image(stored(image))) == [RED, (255, 127, 127), WHITE]
    assert pixels(open_image(image)) == [RED, (255, 127, 127), WHITE]


def test_grey_with_transparency_is_laid_over_white() -> None:
    image = row((0, 255), (0, 128), (0, 0), (100, 255), mode="LA")
    assert pixels(open_image(stored(image))) == [(0,) * 3, (127,) * 3, WHITE, (100,) * 3]


def palette(*indices: int) -> Image.Image:
    image = row(*indices, mode="P")
    image.putpalette([*RED, *GREEN, *BLUE])
    return image


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_a_palette_gives_its_colours_and_its_transparent_one_is_white(form: str) -> None:
    assert pixels(open_image(stored(palette(0, 1, 2), form))) == [RED, GREEN, BLUE]
    seen = open_image(stored(palette(0, 1, 2), form, transparency=1))
    assert pixels(seen) == [RED, WHITE, BLUE]


def test_a_palette_with_half_transparent_colours() -> None:
    data = stored(palette(0, 1, 2), transparency=bytes([128, 255, 0]))
    assert pixels(open_image(data)) == [(255, 127, 127), GREEN, WHITE]


def test_a_transparent_colour_key_is_white() -> None:
    data = stored(row(RED, GREEN, BLUE), transparency=GREEN)
    assert pixels(open_image(data)) == [RED, WHITE, BLUE]


def test_sixteen_bits_are_scaled_and_not_cut_off() -> None:
    image = Image.frombytes("I;16", (4, 1), struct.pack("<4H", 0, 257, 32896, 65535))
    expected = [(0,) * 3, (1,) * 3, (128,) * 3, WHITE]
    assert pixels(open_image(stored(image))) == expected
    assert pixels(open_image(image)) == expected


def test_print_colours_and_other_modes() -> None:
    cyan_only = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert set(pixels(open_image(cyan_only))) == {(0, 255, 255)}
    from_file = open_image(stored(cyan_only, "JPEG", quality=100))
    assert from_file.getpixel((4, 4)) == pytest.approx((0, 255, 255), abs=2)
    assert pixels(open_image(row(0.0, 0.5, 1.0, mode="F"))) == [(0,) * 3, (128,) * 3, WHITE]
    assert pixels(open_image(row(0, 255, mode="1"))) == [(0,) * 3, WHITE]


# --- What is refused -----------------------------------------------------------------------------


def refused(source: Any) -> str:
    """The message of the error, which is one line."""
    with pytest.raises(ImageError) as caught:
        open_image(source)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert len(message) < 400
    return message


def png(width: int, height: int) -> bytes:
    """A PNG file whose header claims a size, with hardly any pixels behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def claiming(form: str, width: int, height: int) -> bytes:
    """A file of a format whose header claims a size."""
    if form == "PNG":
        return png(width, height)
    data = bytearray(stored(Image.new("RGB", (16, 16)), form))
    if form == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif form == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif form == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.fixture
def nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image's pixels must not be asked for."""

    def load(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)


@pytest.mark.usefixtures("nothing_is_decoded")
@pytest.mark.parametrize(
    ("form", "width", "height"),
    [
        ("PNG", 100_000, 100_000),
        ("PNG", 8_000, 5_001),
        ("BMP", 30_000, 20_000),
        ("GIF", 60_000, 60_000),
        ("JPEG", 60_000, 60_000),
    ],
)
def test_a_bomb_is_refused_by_its_header(form: str, width: int, height: int) -> None:
    message = refused(claiming(form, width, height))
    # beyond its own limit Pillow refuses before we do, and counts the pixels
    assert f"{width} x {height}" in message or str(width * height) in message


@pytest.mark.usefixtures("nothing_is_decoded")
def test_a_bomb_is_refused_when_somebody_else_opened_it() -> None:
    assert "8000 x 5001" in refused(Image.open(io.BytesIO(png(8_000, 5_001))))


def test_forty_megapixels_are_not_too_many() -> None:
    message = refused(png(8_000, 5_000))  # the header passes; the pixels are not there
    assert "truncated" in message


@pytest.mark.usefixtures("nothing_is_decoded")
def test_no_side_may_be_too_long_nor_too_long_for_the_other() -> None:
    assert "30000 a side" in refused(png(30_001, 160))
    assert "200 times" in refused(png(2_001, 10))


def test_two_hundred_to_one_is_still_a_image() -> None:
    assert open_image(Image.new("RGB", (200, 1))).size == (200, 1)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_file_is_refused(form: str, share: float) -> None:
    data = stored(noise(), form)
    assert open_image(data).size == (40, 30)
    refused(data[: int(len(data) * share)])


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_random_damage_ends_in_a_image_or_a_image_error(form: str) -> None:
    data = stored(noise(), form, **({"exif": Image.Exif()} if form == "JPEG" else {}))
    generator = random.Random(0)
    messages = []
    for _ in range(300):
        broken = bytearray(data)
        for _ in range(generator.choice([1, 2, 5])):
            broken[generator.randrange(min(len(broken), 400))] = generator.randrange(256)
        try:
            assert open_image(bytes(broken)).mode == "RGB"
        except ImageError as error:
            messages.append(str(error))
    assert messages
    assert not any("\n" in message for message in messages)


def test_what_is_not_there_or_not_a_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "words.png").write_text("an image of a cat")
    assert "no file at" in refused(tmp_path / "none.png")
    assert refused(tmp_path).startswith(f"{tmp_path} is a folder")
    assert "empty.png is empty (0 bytes)" in refused(tmp_path / "empty.png")
    assert "words.png is not an image" in refused(tmp_path / "words.png")
    assert "the 0 bytes given is empty" in refused(b"")
    assert "JPEG" in refused(b"an image of a cat")
    assert "cannot read" in refused("zero\0byte.png")
    assert "cannot read" in refused("long" * 5_000)
    assert "is an address" in refused("https://example.com/cat.jpg")
    assert "got int" in refused(3)
    assert "got NoneType" in refused(None)
    assert 'open it with "rb"' in refused(io.StringIO("text"))


def test_a_closed_file_is_refused() -> None:
    stream = io.BytesIO(stored(noise()))
    stream.close()
    assert "cannot read the file given" in refused(stream)


def test_a_name_with_line_breaks_stays_on_one_line(tmp_path: Path) -> None:
    assert "two lines.png" in refused(tmp_path / "two\nlines.png")


@pytest.mark.parametrize("form", ["TIFF", "ICO", "PPM", "TGA"])
def test_formats_that_are_not_listed_are_not_even_tried(form: str) -> None:
    assert "expected one of PNG, JPEG, WEBP, GIF, BMP" in refused(stored(noise(), form))


def test_an_endless_file_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            assert size >= 0
            return bytes(size)

    monkeypatch.setattr(images, "MOST_FILE_BYTES", 1_000_000)
    assert "more than 1 MB" in refused(Endless())


# --- Hashes --------------------------------------------------------------------------------------


def test_the_hash_is_of_size_and_pixels() -> None:
    image = row(RED, GREEN)
    expected = hashlib.sha256(b"2 1 \xff\x00\x00\x00\xff\x00").hexdigest()[:32]
    assert content_hash(image) == expected
    assert content_hash(stored(image)) == expected == content_hash(stored(image, "BMP"))
    assert content_hash(image.transpose(Image.Transpose.ROTATE_90)) != expected
    assert content_hash(row(GREEN, RED)) != expected


def test_the_same_pixels_in_another_shape_have_another_hash() -> None:
    assert content_hash(Image.new("RGB", (2, 3))) != content_hash(Image.new("RGB", (3, 2)))
