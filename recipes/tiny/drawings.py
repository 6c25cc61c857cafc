"""Rendering and saving images, and writing records."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isthmus.files import write_text

SIDE = 260
"""The vision encoder's own input size in pixels."""
LEAST_INK = 0.003
"""Images with less than this share of pixels that are not white are blank."""
WHITE = 247
PIXELS = {"pt": 1.25, "mm": 90 / 25.4, "cm": 90 / 2.54, "in": 90.0}
"""Pixels in a unit, at the 90 an inch that drawing programs of the time meant."""
SVG_TAG = re.compile(r"<svg[^>]*>")
SIZE = re.compile(
    r"""(?P<name>\s(?:width|height)\s*=\s*["'])(?P<number>[\d.]+)\s*(?P<unit>pt|mm|cm|in)(?P<quote>["'])"""
)
MARGIN = 0.04


def rasterise(svg: str, width: int = SIDE) -> Image.Image:
    """An SVG as RGBA, as wide as asked for.

    Raises:
        ValueError: If it is no SVG that can be drawn.
    """
    import resvg_py  # only SVG needs it

    data = resvg_py.svg_to_bytes(svg_string=_in_pixels(svg), width=width)
    return Image.open(io.BytesIO(bytes(data))).convert("RGBA")


def _in_pixels(svg: str) -> str:
    """An SVG with its width and height in pixels: the renderer refuses other units."""

    def pixels(size: re.Match[str]) -> str:
        return f"{size['name']}{float(size['number']) * PIXELS[size['unit']]:.2f}{size['quote']}"

    return SVG_TAG.sub(lambda tag: SIZE.sub(pixels, tag[0]), svg, count=1)


def render(svg: str) -> Image.Image:
    """An SVG over white, its longer side at most `SIDE`."""
    return over_white(rasterise(svg))


def render_cropped(svg: str) -> Image.Image:
    """An SVG over white, cut to what is drawn: clip art often fills a corner of its page."""
    layer = rasterise(svg, 2 * SIDE)
    box = _drawn(layer)
    if box is None:
        return over_white(layer)
    longer = max(box[2] - box[0], box[3] - box[1])
    if longer < SIDE:
        finer = rasterise(svg, min(8 * SIDE, 2 * SIDE * SIDE // longer))
        layer, box = finer, _drawn(finer) or (0, 0, *finer.size)
    return cropped(layer, box)


def cropped(layer: Image.Image, box: tuple[int, int, int, int] | None = None) -> Image.Image:
    """An image over white, cut to what is drawn and a margin."""
    left, top, right, bottom = box or _drawn(layer) or (0, 0, *layer.size)
    edge = round(MARGIN * max(right - left, bottom - top))
    # beyond its edges a crop is transparent, and so becomes white
    return over_white(layer.crop((left - edge, top - edge, right + edge, bottom + edge)))


def _drawn(layer: Image.Image) -> tuple[int, int, int, int] | None:
    """The box of what is neither transparent nor white."""
    flat = np.asarray(_flat(layer)).min(axis=-1) < WHITE
    rows, columns = np.flatnonzero(flat.any(axis=1)), np.flatnonzero(flat.any(axis=0))
    if not rows.size:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _flat(layer: Image.Image) -> Image.Image:
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer).convert("RGB")


def over_white(image: Image.Image) -> Image.Image:
    """RGB over white, no side longer than `SIDE`."""
    layer = image.convert("RGBA")
    layer.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return _flat(layer)


def is_blank(image: Image.Image) -> bool:
    """Whether there is next to nothing on the white."""
    return float((np.asarray(image).min(axis=-1) < WHITE).mean()) < LEAST_INK


def signature(image: Image.Image) -> NDArray[np.float32]:
    """An image as 16 x 16 colours, its shape last: near copies are near."""
    small = image.resize((16, 16), Image.Resampling.BOX)
    shape = 1000 * np.log(image.width / image.height)
    return np.append(np.asarray(small, np.float32).ravel(), np.float32(shape))


def save(image: Image.Image, root: Path, name: str) -> str:
    """Saves an image as `pictures/NAME.png`; returns that path."""
    path = f"pictures/{name}.png"
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    image.save(root / path)
    return path


def records_of(root: Path, name: str) -> list[dict[str, Any]]:
    """The records of a file in a data folder."""
    lines = (root / "records" / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def write_records(records: Iterable[dict[str, Any]], path: Path) -> int:
    """Writes records as JSONL, atomically; returns their number. No records, no file."""
    lines = [json.dumps(r, ensure_ascii=False) for r in records]
    if lines:
        write_text(path, "\n".join(lines) + "\n")
    return len(lines)
