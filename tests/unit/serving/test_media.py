"""Images from strangers: strictly read, bounded before they are decoded."""

from __future__ import annotations

import asyncio
import base64
import io
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from isthmus.data.rows import to_record
from isthmus.media.fetch import Fetcher
from isthmus.media.file_ref import FileRef
from isthmus.serving.media import FETCHERS, ImageReader, data_of
from isthmus.serving.refusals import Refusal


def uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def png(width: int, height: int, body: bytes | None = None) -> bytes:
    """A PNG whose header claims a size, whatever is in it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * (width + 1) * height) if body is None else body
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def read(*uris: str, **options: Any) -> list[Any]:
    reader = ImageReader(lambda image: image.size, Fetcher(), **options)
    try:
        return asyncio.run(reader.read([(f"at.{i}", u) for i, u in enumerate(uris)]))
    finally:
        reader.close()


def test_images_come_back_in_their_order() -> None:
    assert read(uri(png(3, 2)), uri(png(5, 4))) == [(3, 2), (5, 4)]


@settings(max_examples=50)
@given(st.binary(min_size=1, max_size=100))
def test_base64_is_read_to_the_letter(data: bytes) -> None:
    assert data_of(uri(data)) == data


@pytest.mark.parametrize(
    ("given_", "code"),
    [
        ("", "invalid_image_url"),
        ("cat.png", "invalid_image_url"),
        ("/etc/passwd", "invalid_image_url"),
        ("../../etc/passwd", "invalid_image_url"),
        ("file:///etc/passwd", "invalid_image_url"),
        ("ftp://example.org/cat.png", "invalid_image_url"),
        ("data:,hello", "invalid_image_url"),
        ("data:text/html;base64,AAAA", "invalid_image_url"),
        ("data:image/svg+xml;base64,AAAA", "invalid_image_url"),
        ("data:image/png,AAAA", "invalid_image_url"),
        ("data:image/png;charset=utf-8,AAAA", "invalid_image_url"),
        ("data:image/png;charset=utf-8;base64;base64,AAAA", "invalid_image_url"),
        ("data:image/png;base64,", "invalid_base64"),
        ("data:image/png;base64,AAA", "invalid_base64"),
        ("data:image/png;base64,AA=A", "invalid_base64"),
        ("data:image/png;base64,AAAA\nAAAA", "invalid_base64"),
        ("data:image/png;base64, AAAA", "invalid_base64"),
        ("data:image/png;base64,AA-_", "invalid_base64"),
        ("data:image/png;base64,AAAA====", "invalid_base64"),
        ("data:image/png;base64,\uff21\uff21\uff21\uff21", "invalid_base64"),
        ("data:image/png;base64,../../etc/passwd", "invalid_base64"),
        ("http://127.0.0.1/cat.png", "invalid_image_url"),
        ("https://example.org/cat.png", "invalid_image_url"),
    ],
)
def test_what_is_no_data_uri_is_refused(given_: str, code: str) -> None:
    with pytest.raises(Refusal) as caught:
        read(given_)
    assert (caught.value.status, caught.value.code) == (400, code)
    assert caught.value.param == "at.0"
    assert given_ == "" or given_ not in caught.value.message


def test_a_header_of_100_000_pixels_a_side_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr(Image.Image, "load", lambda self: decoded.append(self.size))
    with pytest.raises(Refusal, match="megapixels") as caught:
        read(uri(png(100_000, 100_000, zlib.compress(b"\0"))))
    assert caught.value.status == 422
    assert decoded == []


def test_a_bomb_is_not_blown_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """36 megapixels of zeros in some kilobytes: one is an image, four are too many."""
    monkeypatch.setattr("isthmus.serving.media.open_image", lambda data: Image.new("L", (1, 1)))
    bomb = uri(png(6000, 6000, zlib.compress(b"\0" * 6001 * 10)))
    assert len(bomb) < 10_000
    assert read(bomb) == [(1, 1)]
    with pytest.raises(Refusal, match="120 megapixels") as caught:
        read(*[bomb] * 4)
    assert (caught.value.status, caught.value.param) == (422, "at.3")


def test_an_animation_s_bomb_within_is_refused_as_any_truncated_file() -> None:
    with pytest.raises(Refusal) as caught:
        read(uri(png(50, 50, zlib.compress(b"\0" * 9))))
    assert caught.value.status == 422


@pytest.mark.parametrize("data", [b"abc", b"GIF89a", b"<svg/>", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_image_is_422(data: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        read(uri(png(2, 2)), uri(data))
    assert (caught.value.status, caught.value.code, caught.value.param) == (
        422,
        "invalid_image",
        "at.1",
    )


def test_too_many_images() -> None:
    with pytest.raises(Refusal, match="at most 2") as caught:
        read(*[uri(png(2, 2))] * 3, max_images=2)
    assert caught.value.status == 400


def test_decoding_leaves_the_event_loop_free() -> None:
    """While a decoder is held up, the loop goes on."""
    held = threading.Event()

    def prepare(image: Image.Image) -> int:
        assert held.wait(10)
        return 1

    async def both() -> list[int]:
        reader = ImageReader(prepare, Fetcher())
        try:
            reading = asyncio.create_task(reader.read([("at", uri(png(2, 2)))]))
            for _ in range(5):
                await asyncio.sleep(0.01)
            assert not reading.done()
            held.set()
            return await reading
        finally:
            reader.close()

    assert asyncio.run(both()) == [1]


def test_slow_name_servers_hold_up_nobody_else() -> None:
    """More names than there are threads that fetch wait for their servers; another is refused."""
    asked, never = threading.Semaphore(0), threading.Event()

    def resolve(name: str, port: int) -> list[str]:
        asked.release()
        if name == "slow.test":
            never.wait(60)
        return ["10.0.0.1"]

    async def all_of_them() -> None:
        fetcher = Fetcher(("slow.test", "quick.test"), timeout=60, resolve=resolve)
        reader = ImageReader(lambda image: image, fetcher)
        slow = [
            asyncio.create_task(reader.read([("at", "https://slow.test/")]))
            for _ in range(2 * FETCHERS)
        ]
        for _ in slow:
            await asyncio.to_thread(asked.acquire)
        with pytest.raises(Refusal, match="open internet") as caught:
            await reader.read([("at", "https://quick.test/")])
        assert (caught.value.status, caught.value.code) == (400, "invalid_image_url")
        assert not any(task.done() for task in slow)
        never.set()
        await asyncio.gather(*slow, return_exceptions=True)
        reader.close()

    asyncio.run(all_of_them())


def test_every_format_is_read_upright_over_white() -> None:
    for kind, mode in (
        ("PNG", "RGBA"),
        ("JPEG", "RGB"),
        ("WEBP", "RGB"),
        ("GIF", "P"),
        ("BMP", "RGB"),
    ):
        file = io.BytesIO()
        Image.new(mode, (4, 3)).save(file, kind)
        assert read(uri(file.getvalue(), kind.lower())) == [(4, 3)]


@pytest.mark.parametrize(
    "head",
    [
        "data:image/png;charset=utf-8;base64,",
        "data:image/png;name=a.png;charset=utf-8;base64,",
        'data:image/png;name="my cat.png";base64,',
        "DATA:IMAGE/PNG;BASE64,",
    ],
)
def test_parameters_of_a_data_uri_are_read_over(head: str) -> None:
    """RFC 2397, section 3."""
    data = png(3, 2)
    address = head + base64.b64encode(data).decode()
    assert read(address) == [(3, 2)]
    record = to_record({"image": address, "text": "a"}, lambda name: FileRef(Path(name)), "x")
    assert record.images[0].read() == data  # type: ignore[union-attr]
