"""Rendering and saving pictures, and writing records."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import resvg_py
from PIL import Image

SIDE = 260
"""The vision encoder's own input size in pixels."""


def render(svg: str, side: int = SIDE) -> Image.Image:
    """An SVG over white, its longer side as long as asked for."""
    # sizes in pt or mm, of which some old files have one, are read as pixels
    svg = re.sub(r'(<svg[^>]*?\s(?:width|height)="[\d.]+)(?:pt|mm|cm|in)"', r'\1"', svg)
    data = resvg_py.svg_to_bytes(svg_string=svg, width=side)
    return over_white(Image.open(io.BytesIO(bytes(data))), side)


def over_white(picture: Image.Image, side: int = SIDE) -> Image.Image:
    """RGB over white, no side longer than asked for."""
    layer = picture.convert("RGBA")
    layer.thumbnail((side, side), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer).convert("RGB")


def is_blank(picture: Image.Image) -> bool:
    """Whether a picture is of one colour."""
    return all(low == high for low, high in picture.getextrema())  # type: ignore[misc]


def save(picture: Image.Image, root: Path, name: str) -> str:
    """Saves a picture as `pictures/NAME.png`; returns that path."""
    path = f"pictures/{name}.png"
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    picture.save(root / path)
    return path


def write_records(records: Iterable[dict[str, Any]], path: Path) -> int:
    """Writes records as JSONL, atomically; returns their number."""
    lines = [json.dumps(r, ensure_ascii=False) for r in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return len(lines)
