"""A million vectors: searching them on disk, beside comparing every one in memory.

    python benchmarks/search.py [--quick] [--vectors 1000000] [--threads 2] [--turns 5]

The vectors are synthetic, 512 wide as the shipped dual encoder's: 5,000 cluster centres, and a
third of each vector's square length is its own. Each way has a process to itself; queries are new
vectors of the same clusters, one at a time.

    ours    `VectorSegments`: files of 65,536, memory-mapped, HNSW, half precision; from opening on
    numpy   what is written at home: one float32 matrix in memory, a product, argpartition
    faiss   the same by faiss's flat index, if faiss-cpu is installed

Asserted: recall of the 10 nearest of at least 0.9 (exact search is the truth).

    ratio search_numpy         seconds a query, numpy's over ours
    ratio search_memory        memory with everything open, numpy's over ours
    ratio search_update        seconds to look at files again, afresh over known ones
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, CLUSTERS, NEAREST, QUERIES = 512, 5000, 10, 100
CHUNK = 16_384


def chunks(count: int, seed: int) -> Iterator[np.ndarray]:
    """Vectors of length 1, a chunk at a time; the same clusters whatever the seed."""
    centres = np.random.default_rng(0).standard_normal((CLUSTERS, WIDTH), dtype=np.float32)
    rng = np.random.default_rng(seed)
    for start in range(0, count, CHUNK):
        some = min(CHUNK, count - start)
        own = rng.standard_normal((some, WIDTH), dtype=np.float32) * 0.7
        found = centres[rng.integers(CLUSTERS, size=some)] + own
        yield found / np.linalg.norm(found, axis=1, keepdims=True)


def resident() -> tuple[float, float]:
    """Megabytes of this process's own, and with mapped files."""
    told = Path("/proc/self/status").read_text()
    lines = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    own = int(lines["RssAnon"].split()[0]) / 1000
    return own, int(lines["VmRSS"].split()[0]) / 1000


def timed(search: Callable[[np.ndarray], Any], queries: np.ndarray, turns: int) -> dict[str, Any]:
    """Seconds a query: medians of turns; and what was found."""
    found = [[int(key) for key in search(query)] for query in queries]  # and caches are warm
    seconds = []
    for _ in range(turns):
        started = time.perf_counter()
        for query in queries:
            search(query)
        seconds.append((time.perf_counter() - started) / len(queries))
    own, everything = resident()
    return {"seconds": seconds, "found": found, "own": own, "rss": everything}


def build(folder: Path, count: int) -> None:
    """Writes ours."""
    from isthmus.search.segments import VectorSegments

    made, first = VectorSegments(folder, WIDTH, []), 0
    started = time.perf_counter()
    for chunk in chunks(count, 1):
        made.add(range(first, first + len(chunk)), chunk)
        first += len(chunk)
        print(f"{first:,} of {count:,}, {resident()[0]:.0f} MB", file=sys.stderr, flush=True)
    made.write()
    size = sum((folder / name).stat().st_size for name in made.files)
    took = time.perf_counter() - started
    print(json.dumps({"files": made.files, "seconds": took, "own": resident()[0], "bytes": size}))


def way(name: str, folder: Path, count: int, turns: int) -> None:
    """One way, in this process."""
    queries = next(chunks(QUERIES, 2))
    before = resident()[0]
    started = time.perf_counter()
    if name == "ours":
        from isthmus.search.segments import VectorSegments

        before = resident()[0]  # the library itself is not counted, nor numpy below
        started = time.perf_counter()
        files = json.loads((folder / "files.json").read_text())
        opened = VectorSegments(folder, WIDTH, files)
        took = time.perf_counter() - started
        told = timed(lambda query: opened.nearest(query, NEAREST)[0], queries, turns)
    else:
        matrix = np.empty((count, WIDTH), dtype=np.float32)
        first = 0
        for chunk in chunks(count, 1):
            matrix[first : first + len(chunk)] = chunk
            first += len(chunk)
        took = time.perf_counter() - started
        if name == "faiss":
            import faiss

            index = faiss.IndexFlatIP(WIDTH)
            index.add(matrix)
            del matrix
            told = timed(lambda q: index.search(q[None], NEAREST)[1][0], queries, turns)
        else:

            def brute(query: np.ndarray) -> np.ndarray:
                scores = matrix @ query
                best = np.argpartition(-scores, NEAREST)[:NEAREST]
                return best[np.argsort(-scores[best])]

            told = timed(brute, queries, turns)
    print(json.dumps({**told, "own": told["own"] - before, "opening": took}))


def update(files: int) -> tuple[float, float]:
    """Seconds to index images, and to look at them again."""
    import torch
    from PIL import Image

    from isthmus.model.clip.dual_encoder import DualEncoder
    from isthmus.search.index import ImageIndex

    torch.manual_seed(0)
    model = DualEncoder.join("tiny-vit", "tiny-text", width=16)
    with tempfile.TemporaryDirectory() as place:
        photos = Path(place) / "photos"
        photos.mkdir()
        rng = np.random.default_rng(0)
        for i in range(files):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(photos / f"{i}.png")
        with ImageIndex(Path(place) / "index", model) as index:
            seconds = []
            for _ in range(2):
                started = time.perf_counter()
                index.add(photos)
                seconds.append(time.perf_counter() - started)
    return seconds[0], seconds[1]


def main() -> None:
    """Builds, times every way, prints ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--way", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    count = 10_000 if options.quick else options.vectors
    if options.way == "build":
        return build(options.folder, count)
    if options.way:
        return way(options.way, options.folder, count, options.turns)

    def run(name: str, folder: Path) -> dict[str, Any]:
        command = [sys.executable, __file__, "--way", name, "--folder", str(folder)]
        command += ["--vectors", str(count), "--turns", str(options.turns)]
        threads = {f"{kind}_NUM_THREADS": str(options.threads) for kind in ("OMP", "OPENBLAS")}
        ended = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, env={**os.environ, **threads}
        )
        told: dict[str, Any] = json.loads(ended.stdout)
        return told

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        made = run("build", folder)
        (folder / "files.json").write_text(json.dumps(made["files"]))
        print(
            f"{count:,} vectors: built in {made['seconds']:.0f} s, {made['own']:.0f} MB of memory, "
            f"{made['bytes'] / 1e9:.2f} GB on disk"
        )
        ways = ["ours", "numpy"]
        try:
            import faiss  # noqa: F401

            ways.append("faiss")
        except ImportError:
            print("faiss is not installed: left out")
        results = {name: run(name, folder) for name in ways}
    for name, told in results.items():
        truth = results["numpy"]["found"]
        pairs = zip(told["found"], truth, strict=True)
        told["recall"] = sum(len(set(a) & set(b)) for a, b in pairs) / (NEAREST * len(truth))
        told["median"] = statistics.median(told["seconds"])
        print(
            f"{name:<6} {1000 * told['median']:8.2f} ms a query "
            f"({1000 * min(told['seconds']):.2f} to {1000 * max(told['seconds']):.2f}), recall "
            f"{told['recall']:.3f}, {told['own']:.0f} MB own, {told['rss']:.0f} MB with mapped "
            f"files, opened in {told['opening']:.2f} s"
        )
    ours, theirs = results["ours"], results["numpy"]
    assert ours["recall"] >= 0.9, ours["recall"]
    print(f"ratio search_numpy {theirs['median'] / ours['median']:.1f}")
    print(f"ratio search_memory {theirs['own'] / max(1.0, ours['own']):.1f}")
    first, again = update(200 if options.quick else 10_000)
    print(f"files: afresh {first:.2f} s, known {again:.3f} s")
    print(f"ratio search_update {first / again:.0f}")


if __name__ == "__main__":
    main()
