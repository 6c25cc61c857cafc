from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus.data.features import FeatureCache, FillReport
from isthmus.errors import ConfigError, ImageError
from isthmus.media.file_ref import FileRef
from isthmus.model.backbones.tiny import tiny_vit_model
from isthmus.model.backbones.vision import VisionEncoder, load_vision
from isthmus.model.features import PatchFeatures, cache_key

TOKENS, WIDTH = 16, 32
ROW = TOKENS * WIDTH * 2
SRC = Path(im.__file__).parent.parent


def paint(folder: Path, count: int, first: int = 0) -> list[FileRef]:
    folder.mkdir(exist_ok=True)
    made = []
    for i in range(first, first + count):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04}.png")
        made.append(FileRef(folder / f"{i:04}.png"))
    return made


@pytest.fixture
def images(tmp_path: Path) -> list[FileRef]:
    return paint(tmp_path / "images", 8)


@pytest.fixture(scope="module")
def encoder() -> VisionEncoder:
    return load_vision("tiny-vit")


def expected(encoder: VisionEncoder, images: list[FileRef]) -> torch.Tensor:
    pixels = [encoder.preprocess(im.open_image(io.BytesIO(p.read()))) for p in images]
    return encoder(torch.stack(pixels))


def encoder_of(cache: FeatureCache) -> VisionEncoder:
    assert isinstance(cache.encoding, PatchFeatures)
    return cache.encoding.encoder


def assert_sound(cache: FeatureCache, images: list[FileRef]) -> None:
    """Every image has its row once, array and index agree, and rows are the encoder's."""
    lines = cache.store.index.read_text("ascii").splitlines()
    assert len(set(lines)) == len(lines) == len({cache.key(p) for p in images})
    assert cache.path.stat().st_size == len(lines) * ROW
    torch.testing.assert_close(
        cache.get(images), expected(encoder_of(cache), images), atol=2e-3, rtol=2e-3
    )


# --- What is kept --------------------------------------------------------------------------------


def test_the_cache_holds_the_encoders_features(
    images: list[FileRef], tmp_path: Path, encoder: VisionEncoder
) -> None:
    cache = FeatureCache(tmp_path / "cache", PatchFeatures(encoder))
    assert cache.fill(images, quiet=True) == FillReport(computed=8)
    assert torch.equal(cache.get(images), expected(encoder, images).half().float())
    again = FeatureCache(tmp_path / "cache", PatchFeatures(encoder))
    assert again.fill(images, quiet=True) == FillReport(present=8)
    assert torch.equal(again.get(images[::-1]), cache.get(images).flip(0))


def test_rows_are_found_by_content(
    images: list[FileRef], tmp_path: Path, encoder: VisionEncoder
) -> None:
    cache = FeatureCache(tmp_path / "cache", PatchFeatures(encoder))
    cache.fill(images, quiet=True)
    shard = tmp_path / "shard.tar"
    shard.write_bytes(b"head" + images[3].read() + images[5].read())
    length = [len(p.read()) for p in images]
    inside = [
        FileRef(shard, start=4, size=length[3], member="a.png"),
        FileRef(shard, start=4 + length[3], size=length[5], member="b.png"),
        FileRef(Path("row 1"), data=images[0].read()),
    ]
    assert all(p in cache for p in inside)
    found = [images[i] for i in (3, 5, 0)]
    assert torch.equal(cache.get(inside), cache.get(found))
    assert cache.fill([*inside, *found], quiet=True) == FillReport(present=6)


def test_a_file_that_changes_is_another_image(
    images: list[FileRef], tmp_path: Path, encoder: VisionEncoder
) -> None:
    cache = FeatureCache(tmp_path / "cache", PatchFeatures(encoder))
    cache.fill(images, quiet=True)
    images[0].path.write_bytes(images[1].read())
    os.utime(images[0].path, ns=(1, 1))
    assert torch.equal(cache.get(images[:1]), cache.get(images[1:2]))
    Image.new("RGB", (5, 5), "red").save(images[0].path)
    os.utime(images[0].path, ns=(2, 2))
    assert images[0] not in cache
    with pytest.raises(ImageError, match=r"no features of .*0000\.png"):
        cache.get(images)


def test_hashes_are_remembered(
    images: list[FileRef], tmp_path: Path, encoder: VisionEncoder, monkeypatch: Any
) -> None:
    cache = FeatureCache(tmp_path / "cache", PatchFeatures(encoder))
    cache.fill(images, quiet=True)
    first = cache.get(images)

    def read(self: FileRef) -> bytes:
        raise AssertionError(f"{self} was read again")

    monkeypatch.setattr(FileRef, "read", read)
    assert torch.equal(cache.get(images), first)


def test_one_reader_sees_what_another_wrote(
    images: list[FileRef], tmp_path: Path, encoder: VisionEncoder
) -> None:
    reader, writer = (FeatureCache(tmp_path / "cache", PatchFeatures(encoder)) for _ in range(2))
    assert images[0] not in reader
    for end in (3, 8):  # the second time its map of the file is too short
        writer.fill(images[:end], quiet=True)
        assert torch.equal(reader.get(images[:end]), writer.get(images[:end]))
    assert images[7] in reader


def test_more_images_than_are_gathered_at_once(tmp_path: Path, encoder: VisionEncoder) -> None:
    count = 1064
    kinds = [FileRef(Path(f"{i}"), data=data) for i in range(count) for data in [_bitmap(i)]]
    cache = FeatureCache(tmp_path / "cache", PatchFeatures(encoder))
    report = cache.fill(iter([*kinds, *kinds]), quiet=True, batch_size=64, workers=0)
    assert report == FillReport(computed=count, present=count)
    assert_sound(cache, kinds)


def _bitmap(i: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (i % 256, i // 256, 77)).save(file, "BMP")
    return file.getvalue()


# --- Arrays of features --------------------------------------------------------------------------


def test_arrays_are_read_as_they_are(
    images: list[FileRef], tmp_path: Path, encoder: VisionEncoder
) -> None:
    array = np.full((TOKENS, WIDTH), 1e5, np.float32)  # beyond half precision: not converted
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "wide.npy", np.zeros((TOKENS, WIDTH + 1), np.float16))
    (tmp_path / "text.npy").write_text("not an array")
    good, wide, text = (FileRef(tmp_path / f"{n}.npy") for n in ("a", "wide", "text"))
    cache = FeatureCache(tmp_path / "cache", PatchFeatures(encoder))
    report = cache.fill([good, wide, text, *images], quiet=True)
    assert (report.computed, report.present) == (8, 1)
    whys = dict(report.broken)
    assert "(16, 33), expected (16, 32)" in whys[str(wide.path)]
    assert "not a NumPy array" in whys[str(text.path)]
    mixed = cache.get([images[0], good])
    assert torch.equal(mixed[1], torch.from_numpy(array))
    assert torch.equal(mixed[:1], cache.get(images[:1]))
    assert good in cache
    assert wide not in cache
    with pytest.raises(ImageError, match=r"wide\.npy is \(16, 33\), expected \(16, 32\)"):
        cache.get([wide])
    with pytest.raises(ImageError, match=r"text\.npy is not a NumPy array"):
        cache.get([text])


# --- Images and features that cannot be kept ---------------------------------------------------


def test_broken_images_are_listed_and_the_rest_computed(
    images: list[FileRef], tmp_path: Path, encoder: VisionEncoder
) -> None:
    (tmp_path / "text.png").write_text("no image")
    cut = tmp_path / "cut.png"
    cut.write_bytes(images[0].read()[:-300])
    missing = tmp_path / "none.png"
    broken = [FileRef(tmp_path / "text.png"), FileRef(cut), FileRef(missing)]
    broken.append(FileRef(Path("rows.parquet"), member="7", data=b""))
    cache = FeatureCache(tmp_path / "cache", PatchFeatures(encoder))
    report = cache.fill([*broken, *images], quiet=True)
    assert report.computed == 8
    assert {name for name, _ in report.broken} == {str(p) for p in broken}
    whys = dict(report.broken)
    assert "cannot read" in whys[str(missing)]
    assert "known format" in whys[str(tmp_path / "text.png")]
    assert "truncated" in whys[str(cut)]
    assert "0 bytes" in whys["rows.parquet:7"]
    assert not any(p in cache for p in broken)
    assert_sound(cache, images)
    with pytest.raises(ImageError, match=r"cannot read .*none\.png"):
        cache.get([FileRef(missing)])


@pytest.mark.parametrize("value", [65504.0, 65505.0, -1e6, float("nan"), float("inf")])
def test_features_beyond_half_precision(
    images: list[FileRef], tmp_path: Path, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_vision("tiny-vit")
    plain = encoder.forward
    seventh = encoder.preprocess(im.open_image(images[6].path))

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        features = plain(pixels).clone()
        features[(pixels == seventh).flatten(1).all(dim=1), 3, 4] = value
        return features

    monkeypatch.setattr(encoder, "forward", forward)
    cache = FeatureCache(tmp_path / "cache", PatchFeatures(encoder))
    if value == 65504.0:
        cache.fill(images, quiet=True)
        assert float(cache.get(images[6:7]).max()) == 65504.0
        return
    with pytest.raises(ImageError, match=r"0006\.png: a feature of size"):
        cache.fill(images, quiet=True, batch_size=1)
    assert images[6] not in cache
    others = [p for p in images if p in cache]
    assert not others or cache.get(others).isfinite().all()
    # No lock is left behind: another encoder run in the same folder goes on
    monkeypatch.undo()
    assert cache.fill(images, quiet=True).computed == 8 - len(others)


# --- What tells one cache from another -----------------------------------------------------------


def test_the_key_tells_encoder_layer_and_preprocessing_apart(tmp_path: Path) -> None:
    def halved(image: Image.Image) -> torch.Tensor:
        return plain.preprocess(image) / 2

    def random(image: Image.Image) -> torch.Tensor:
        return plain.preprocess(image) + torch.rand(1)

    plain = load_vision("tiny-vit")
    encoders = [
        plain,
        load_vision("tiny-vit", resize="pad"),
        load_vision("tiny-vit", resize="squash"),
        load_vision("tiny-vit", feature_layer=-2),
        load_vision("tiny-vit", preprocess=halved),
        load_vision(tiny_vit_model(seed=1), preprocess=plain.preprocess),
    ]
    keys = [cache_key(e) for e in encoders]
    assert len(set(keys)) == len(keys)
    assert cache_key(load_vision("tiny-vit")) == keys[0]
    with pytest.raises(ConfigError, match="preprocessing is random"):
        FeatureCache(tmp_path, PatchFeatures(load_vision("tiny-vit", preprocess=random)))


@pytest.mark.parametrize(
    ("regions", "expected_key"), [(True, "3429f51f6c920df5"), (False, "66a1a30d79a7c962")]
)
def test_options_that_came_later_leave_older_keys_alone(regions: bool, expected_key: str) -> None:
    name = "asset:efficientnet-lite2"
    encoder = load_vision(im.VisionConfig(name=name, resize="pad", regions=regions))
    assert cache_key(encoder) == expected_key


# --- Runs that are killed, and several at once ---------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "lines", "kept"),
    [(2.3, 8, 2), (2, 8, 2), (8, 3.5, 3), (3, 3.5, 3), (2, 3.5, 2), (0, 8, 0), (8, 0, 0)],
)
def test_files_that_do_not_match_are_cut_to_what_both_have(
    images: list[FileRef],
    tmp_path: Path,
    encoder: VisionEncoder,
    rows: float,
    lines: float,
    kept: int,
) -> None:
    cache = FeatureCache(tmp_path / "cache", PatchFeatures(encoder))
    cache.fill(images, quiet=True)
    with cache.path.open("r+b") as file:
        file.truncate(int(rows * ROW))
    with cache.store.index.open("r+b") as file:
        file.truncate(int(lines * 33))
    again = FeatureCache(tmp_path / "cache", PatchFeatures(encoder))
    assert again.fill(images[::-1], quiet=True) == FillReport(8 - kept, kept)
    assert_sound(again, images)
    assert_sound(FeatureCache(tmp_path / "cache", PatchFeatures(encoder)), images)


FILL = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from isthmus.model.backbones.vision import load_vision
from isthmus.data.features import FeatureCache
from isthmus.model.features import PatchFeatures
from isthmus.media.file_ref import FileRef

cache, folder, first, last, delay = Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:6]
encoder = load_vision("tiny-vit")
plain = encoder.forward
def slowly(pixels):
    time.sleep(float(delay))
    return plain(pixels)
encoder.forward = slowly
images = [FileRef(folder / f"{i:04}.png") for i in range(int(first), int(last))]
cache = FeatureCache(cache, PatchFeatures(encoder))
print("ready", flush=True)
sys.stdin.readline()
report = cache.fill(images, quiet=True, batch_size=4)
assert bool(torch.isfinite(cache.get(images)).all())
print(report.computed, report.present, len(report.broken))
"""


def begin(*arguments: object) -> subprocess.Popen[str]:
    """A process that is ready to fill, and waits for a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", FILL, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_two_processes_fill_one_folder(tmp_path: Path, encoder: VisionEncoder) -> None:
    """At once, with pictures that both have: each row is there once, and it is whole."""
    images = paint(tmp_path / "images", 240)
    folder = tmp_path / "cache"
    both = [begin(folder, tmp_path / "images", *s, 0.04) for s in ((0, 180), (60, 240))]
    for process in both:
        go(process)
    counts = []
    for process in both:
        out = process.communicate(timeout=600)[0]
        assert process.returncode == 0
        counts.append([int(n) for n in out.split()])
    assert [sum(c) for c in counts] == [180, 180]
    assert sum(c[0] for c in counts) >= 240
    cache = FeatureCache(folder, PatchFeatures(encoder))
    assert cache.fill(images, quiet=True) == FillReport(present=240)
    assert_sound(cache, images)


def test_a_fill_that_is_killed_goes_on(tmp_path: Path, encoder: VisionEncoder) -> None:
    images = paint(tmp_path / "images", 120)
    cache = FeatureCache(tmp_path / "cache", PatchFeatures(encoder))
    process = begin(tmp_path / "cache", tmp_path / "images", 0, 120, 0.05)
    go(process)
    deadline = time.monotonic() + 60
    while len(cache.store.refresh()) < 20 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    there = len(cache.store.refresh())
    assert 20 <= there < 120
    # As if it had been killed between a row and its line, too
    with cache.path.open("ab") as file:
        file.write(b"\x55" * (ROW + 7))
    report = FeatureCache(tmp_path / "cache", PatchFeatures(encoder)).fill(images, quiet=True)
    assert report == FillReport(computed=120 - there, present=there)
    assert_sound(cache, images)


def test_what_another_process_has_just_written_is_not_computed_again(
    images: list[FileRef], tmp_path: Path, encoder: VisionEncoder
) -> None:
    cache, other = (FeatureCache(tmp_path / "cache", PatchFeatures(encoder)) for _ in range(2))
    row = expected(encoder, [images[2]]).half().numpy()

    def meanwhile() -> Iterator[FileRef]:
        yield from images
        other.store.append([cache.key(images[2])], row)

    assert cache.fill(meanwhile(), quiet=True, workers=0) == FillReport(computed=7, present=1)
    assert_sound(cache, images)
