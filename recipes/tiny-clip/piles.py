"""Drawings made to look a little like photographs: cut out, piled up, shaded, on real ground.

A drawing stands alone on white; in a photograph there are often many of a thing, under some light,
on something, and everything is a little blurred. The ground comes from ten photographs in the
scikit-image wheel, all CC0 or in the public domain (its `data/_fetchers.py` says so of each).
"""

from __future__ import annotations

import io
import random
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

sys.path.insert(0, str(Path(__file__).parents[1] / "tiny"))
import packages

GROUNDS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "rocket.jpg",
)
MANY = (1, 1, 2, 3, 6, 12, 20, 30, 40)
"""How many of a thing are in a picture."""
TILTS = (15, 30, 180)
"""Degrees that things may be turned by, one for a picture."""
PAPER = 236
"""From this value on, in all channels, a pixel may be paper."""


def grounds(root: Path) -> list[Image.Image]:
    """The photographs that are laid under the things."""
    folder = packages.fetch("scikit-image", root) / "skimage/data"
    return [Image.open(folder / name).convert("RGB") for name in GROUNDS]


def _paper(white: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The white pixels (H, W) that are joined to the border."""
    reached = np.zeros_like(white)
    reached[[0, -1]], reached[:, [0, -1]] = white[[0, -1]], white[:, [0, -1]]
    before = -1
    while (now := int(reached.sum())) != before:
        before = now
        for seen, open_ in ((reached, white), (reached.T, white.T)):
            for one, other in zip(range(1, len(seen)), range(len(seen) - 2, -1, -1), strict=True):
                seen[one] |= seen[one - 1] & open_[one]
                seen[other] |= seen[other + 1] & open_[other]
    return reached


def cut_out(picture: Image.Image) -> Image.Image:
    """A drawing without the paper around it, RGBA."""
    picture = picture.convert("RGB")
    paper = _paper((np.asarray(picture) >= PAPER).all(axis=-1))
    mask = Image.fromarray((~paper * 255).astype(np.uint8))
    mask = mask.filter(ImageFilter.MinFilter(3)).filter(ImageFilter.GaussianBlur(0.7))
    picture.putalpha(mask)
    return picture.crop(mask.getbbox() or (0, 0, *picture.size))


def _lit(thing: Image.Image, rng: random.Random) -> Image.Image:
    """A thing with light from above."""
    values = np.asarray(thing).astype(float)
    light = np.linspace(rng.uniform(1.0, 1.3), rng.uniform(0.45, 0.9), thing.height)
    values[..., :3] *= light[:, None, None] * rng.uniform(0.8, 1.1)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8), "RGBA")


def _photographed(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Uneven light of some colour, blur, noise and JPEG."""
    values = np.asarray(picture).astype(float)
    values *= np.linspace(rng.uniform(0.7, 1.1), rng.uniform(0.7, 1.1), picture.width)[:, None]
    values *= [rng.uniform(0.85, 1.1), rng.uniform(0.92, 1.05), rng.uniform(0.8, 1.1)]
    picture = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    picture = ImageEnhance.Contrast(picture).enhance(rng.uniform(0.7, 1.2))
    picture = ImageEnhance.Color(picture).enhance(rng.uniform(0.6, 1.1))
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.6)))
    noise = np.random.default_rng(rng.getrandbits(32))
    values = np.asarray(picture) + noise.normal(0, rng.uniform(1, 9), (*picture.size[::-1], 3))
    file = io.BytesIO()
    grainy = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    grainy.save(file, "JPEG", quality=rng.randint(40, 90))
    return Image.open(file).convert("RGB")


def piled(
    drawing: Image.Image, under: list[Image.Image], rng: random.Random, side: int = 260
) -> Image.Image:
    """A picture (side x side) of one or many of what is drawn.

    Args:
        drawing: A thing on white paper.
        under: Photographs to lay it on.
        rng: What decides everything.
        side: Width and height, in pixels.
    """
    thing = cut_out(drawing)
    ground = rng.choice(under)
    short = rng.uniform(0.25, 1) * min(ground.size)
    left, top = (rng.uniform(0, length - short) for length in ground.size)
    box = (int(left), int(top), int(left + short), int(top + short))
    picture = ground.crop(box).resize((side, side), Image.Resampling.BICUBIC)
    picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.3, 1.1))
    picture = ImageEnhance.Color(picture).enhance(rng.uniform(0.2, 1))
    many, tilt = rng.choice(MANY), rng.choice(TILTS)
    size = side * rng.uniform(0.55, 0.95) / many**0.5 * (1 if many == 1 else rng.uniform(1, 1.8))
    for _ in range(many):
        scale = size * rng.uniform(0.85, 1.15) / max(thing.size)
        wide, high = (max(8, int(length * scale)) for length in thing.size)
        one = thing.resize((wide, high), Image.Resampling.BICUBIC)
        angle = rng.uniform(-tilt, tilt)
        one = one.rotate(angle, expand=True, resample=Image.Resampling.BICUBIC)
        one = _lit(ImageOps.mirror(one) if rng.random() < 0.5 else one, rng)
        if many == 1:
            x, y = (
                (side - length) // 2 + int(rng.uniform(-0.08, 0.08) * side) for length in one.size
            )
        else:
            x, y = (rng.randint(-n // 3, side - 2 * n // 3) for n in one.size)
        shadow = one.getchannel("A").point(lambda value: value // 2)
        shadow = shadow.filter(ImageFilter.GaussianBlur(3))
        picture.paste((0, 0, 0), (x + 3, y + 4), shadow)
        picture.paste(one, (x, y), one)
    return _photographed(picture, rng)
