"""Images per second into the encoder's pixels, beside a bare loop of PIL.

    python benchmarks/loader.py [--quick] [--vision asset:efficientnet-lite2] [--workers 2]

Ours: `prefetch` with threads, `open_image` (header checked, formats allow-listed, orientation,
transparency) and the encoder's own preprocessing, normalised. The peer: `Image.open`, `convert`,
`resize` to the encoder's size, in a loop, without normalisation. JPEG and PNG files of camera
size are made from `examples/*.jpg`, and both sides read the same files, taking turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

import isthmus as im
from isthmus.config.model import VisionConfig
from isthmus.media.prefetch import prefetch
from isthmus.model.backbones.vision import load_vision

EXAMPLES = Path(__file__).parent.parent / "examples"
SIZES = ((640, 480), (1024, 768))


def paint(folder: Path, copies: int) -> dict[str, list[Path]]:
    """Files of each format, in two sizes."""
    files: dict[str, list[Path]] = {"JPEG": [], "PNG": []}
    for source in sorted(EXAMPLES.glob("*.jpg")):
        image = im.open_image(source)
        for size in SIZES:
            resized = image.resize(size)
            for copy in range(copies):
                stem = folder / f"{source.stem}-{size[0]}-{copy}"
                resized.save(stem.with_suffix(".jpg"), quality=90)
                resized.save(stem.with_suffix(".png"), compress_level=6)
                files["JPEG"].append(stem.with_suffix(".jpg"))
                files["PNG"].append(stem.with_suffix(".png"))
    return files


def rates(
    sides: Mapping[str, Callable[[Sequence[Path]], int]], files: Sequence[Path], repeats: int
) -> dict[str, list[float]]:
    """Images per second of each side's runs, one after the other, after one that warms up."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(repeats + 1):
        for name, work in sides.items():
            started = time.perf_counter()
            done = work(files)
            if i:
                found[name].append(done / (time.perf_counter() - started))
    return found


def main() -> None:
    """Prints the table and the `ratio` line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--vision", default="asset:efficientnet-lite2")
    parser.add_argument("--resize", default="pad", choices=("own", "pad", "squash"))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    encoder = load_vision(VisionConfig(name=options.vision, resize=options.resize))
    height, width = encoder.image_size

    def ours(files: Sequence[Path]) -> int:
        def work(path: Path) -> torch.Tensor:
            return encoder.preprocess(im.open_image(path))

        opened = prefetch(files, work, workers=options.workers, ahead=32)
        return sum(pixels.shape[0] == 3 for pixels in opened)

    def bare(files: Sequence[Path]) -> int:
        for path in files:
            with Image.open(path) as image:
                image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        return len(files)

    sides = {"isthmus": ours, "PIL loop": bare}
    ratios = []
    print(f"{'files':<7}{'side':<12}{'median images/s':>18}{'min':>8}{'max':>8}")
    with tempfile.TemporaryDirectory() as folder:
        files = paint(Path(folder), 1 if options.quick else 8)
        for kind, paths in files.items():
            found = rates(sides, paths, 5 if options.quick else 20)
            for name, values in found.items():
                low, high = min(values), max(values)
                middle = statistics.median(values)
                print(f"{kind:<7}{name:<12}{middle:>18.1f}{low:>8.1f}{high:>8.1f}")
            own, peer = (statistics.median(found[name]) for name in sides)
            ratios.append(own / peer)
            print(f"ratio loader_{kind.lower()} {ratios[-1]:.2f}")
    print(f"ratio loader {statistics.geometric_mean(ratios):.2f}")


if __name__ == "__main__":
    main()
