"""Features of images in tiles are kept on the disk, and are those that are computed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus.config.model import TrainConfig
from isthmus.data.compute import compute_features
from isthmus.data.piece_cache import PieceCache
from isthmus.errors import ConfigError, ImageError
from isthmus.media.file_ref import FileRef
from isthmus.model.backbones.tiny_nanovlm import write_tiny_nanovlm
from isthmus.model.backbones.tiny_tiles import write_tiny_tiles
from isthmus.model.media.base import Features, Opened, layouts_of, visual_of
from isthmus.model.media.tiles import TileFeatures, TileMedium
from isthmus.training.loader import MediaLoader
from isthmus.training.plan import plan
from isthmus.training.vlm import cache_of, cached_media

WRITERS: dict[str, Callable[[Path], Path]] = {
    "idefics3": partial(write_tiny_tiles, family="idefics3"),
    "llava_next": partial(write_tiny_tiles, family="llava_next"),
    "llava_onevision": partial(write_tiny_tiles, family="llava_onevision"),
    "internvl": partial(write_tiny_tiles, family="internvl"),
    "nanovlm": write_tiny_nanovlm,
}
SIZES = [(20, 30), (60, 90), (90, 60), (40, 100)]


@pytest.fixture(scope="module", params=WRITERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WRITERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    for number, size in enumerate(SIZES):
        noise = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(made / f"{number}.png")
        (made / f"{number}.txt").write_text("a dog" if number % 2 else "a cat")
    return made


def files_of(data: Path) -> list[FileRef]:
    return [FileRef(path) for path in sorted(data.glob("*.png"))]


def cache_for(model: im.VisionLanguageModel, place: Path) -> PieceCache:
    encoding = cached_media(model)["tiles"]
    assert isinstance(encoding, TileFeatures)
    made = cache_of(place, encoding)
    assert isinstance(made, PieceCache)
    return made


def medium_of(model: im.VisionLanguageModel) -> TileMedium:
    medium = model.media[0]
    assert isinstance(medium, TileMedium)
    return medium


def test_what_is_kept_is_what_is_computed(folder: Path, data: Path, tmp_path: Path) -> None:
    model = im.load(folder)
    medium, cache = medium_of(model), cache_for(model, tmp_path / "cache")
    files = files_of(data)
    assert cache.fill(files, quiet=True).computed == len(files)
    assert cache.fill(files, quiet=True).present == len(files)
    fresh = cache_for(model, tmp_path / "cache")  # as another process finds it
    told = set()
    for file in files:
        opened = medium.open(model, file)
        values, grid = fresh.get(file)
        computed = medium.features(model, replace(opened, values=opened.values[None]))[0]
        assert torch.equal(values, computed.half().float())  # as a cache of whole images keeps
        assert grid == opened.told
        told.add(grid)
        kept = Features("tiles", values, grid)
        assert layouts_of(model, [kept]) == layouts_of(model, [opened])
        [own] = visual_of(model, [kept])
        rounded = Opened("tiles", computed.half().float()[None], grid)
        assert torch.equal(own, medium.connect(model, rounded)[0])
    assert len(told) >= 2


@torch.no_grad()
def test_logits_are_those_of_opened_images(folder: Path, data: Path, tmp_path: Path) -> None:
    """Apart from the half precision, images of several grids in one batch and a text between."""
    model = im.load(folder)
    files = files_of(data)
    cache = cache_for(model, tmp_path / "cache")
    cache.fill(files, quiet=True)
    loader = MediaLoader(model, {"tiles": cache})
    known = loader.load(files, 0)
    assert {type(own) for own in known} == {Features}
    texts, shown = ["<image>a<image>", "no image", "b<image><image>"], [[0, 1], [], [2, 3]]
    opened = model.prepare(texts, [[files[n].path for n in own] for own in shown])
    batch = replace(opened, pixels=known)
    got, expected = model(batch).logits, model(opened).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-2)
    assert torch.equal(got[1], expected[1])
    with torch.no_grad():  # exactly those of features in half precision
        medium, encode = medium_of(model), medium_of(model).features
        medium.features = lambda *args: encode(*args).half().float()  # type: ignore[method-assign]
        torch.testing.assert_close(got, model(opened).logits, rtol=0, atol=1e-6)


def test_training_reads_them_and_learns_the_same(folder: Path, data: Path, tmp_path: Path) -> None:
    made = {}
    options: dict[str, Any] = {"warmup": 1, "lr": 1e-2, "precision": "fp32", "workers": 0}
    for name, cached in (("cached", True), ("again", True), ("computed", False)):
        model = im.load(folder)
        model.config = replace(model.config, template="plain")
        config = TrainConfig(steps=3, batch_size=4, feature_cache=cached, pack=512, **options)
        im.train(model, data, config, tmp_path / name, quiet=True, cache=tmp_path / "features")
        made[name] = torch.cat([p.flatten() for p in model.trained_parameters().values()])
    assert sorted((tmp_path / "features").glob("tiles-*.told"))
    assert torch.equal(made["cached"], made["again"])
    moved = (made["computed"] - start(folder)).abs().mean()
    assert moved > 1e-3
    assert (made["cached"] - made["computed"]).abs().mean() < 0.02 * moved  # of half precision


def start(folder: Path) -> torch.Tensor:
    model = im.load(folder)
    return torch.cat([p.detach().flatten() for p in model.trained_parameters().values()])


# --- the files ------------------------------------------------------------------------------------


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    return write_tiny_nanovlm(tmp_path / "model")


def test_another_cut_is_another_cache(nano: Path, tmp_path: Path) -> None:
    names = {
        cached_media(im.load(nano, image_options=options))["tiles"].name
        for options in ({}, {"max_tiles": 4}, {"max_tiles": 1}, {"max_tiles": 9})
    }
    assert len(names) == 3  # nine is the most there are
    other = write_tiny_nanovlm(tmp_path / "other", seed=1)
    assert cached_media(im.load(other))["tiles"].name not in names
    filled = write_tiny_nanovlm(tmp_path / "filled", resize_to_max_side_len=True)
    assert cached_media(im.load(filled))["tiles"].name not in names


@pytest.mark.parametrize("cut", [1, 8, 40])
def test_a_run_that_was_killed_loses_what_it_was_writing(
    nano: Path, data: Path, tmp_path: Path, cut: int
) -> None:
    model, files = im.load(nano), files_of(data)
    cache = cache_for(model, tmp_path)
    cache.fill(files, quiet=True)
    expected = [cache.get(file) for file in files]
    [told] = tmp_path.glob("*.told")
    told.write_bytes(told.read_bytes()[:-cut])
    again = cache_for(model, tmp_path)
    assert 1 <= again.fill(files, quiet=True).computed <= 2
    for file, (values, grid) in zip(files, expected, strict=True):
        own, own_grid = cache_for(model, tmp_path).get(file)
        assert torch.equal(own, values)
        assert own_grid == grid


def test_rows_that_are_lost_are_computed_again(nano: Path, data: Path, tmp_path: Path) -> None:
    model, files = im.load(nano), files_of(data)
    cache = cache_for(model, tmp_path)
    cache.fill(files, quiet=True)
    cache.path.write_bytes(cache.path.read_bytes()[:-10])
    assert cache_for(model, tmp_path).fill(files, quiet=True).computed == 1


def test_what_cannot_be_kept_is_said(nano: Path, data: Path, tmp_path: Path) -> None:
    model = im.load(nano)
    cache = cache_for(model, tmp_path / "cache")
    with pytest.raises(ImageError, match="fill the cache first"):
        cache.get(files_of(data)[0])
    broken, array = data / "broken.png", data / "array.npy"
    broken.write_bytes(b"no image")
    np.save(array, np.zeros((4, 32), np.float16))
    report = cache.fill([FileRef(broken), FileRef(array), *files_of(data)[:1]], quiet=True)
    assert report.computed + report.present == 2 or len(report.broken) == 2
    assert any("features" in why for _, why in report.broken)
    with pytest.raises(ImageError, match="holds features"):
        cache.get(FileRef(array))


def test_the_command_line_fills_it_for_a_run(
    run: Any, nano: Path, data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        f"""
template = "plain"
[vision]
name = "hf:{nano}"
final_norm = true
[language]
name = "hf:{nano}"
[connector]
type = "pixel_shuffle"
[[media]]
type = "placed_tiles"
[tokens]
image_id = 261
[train]
steps = 1
[[data]]
path = "{data}"
"""
    )
    out = tmp_path / "features"
    code, told, error = run("features", "--config", file, "--out", out, "--quiet")
    assert (code, error) == (0, "")
    assert told.startswith(f"{len(SIZES)} computed, 0 present, 0 broken")
    model = im.load(nano)
    cache = cache_for(model, out)
    assert cache.fill(files_of(data), quiet=True).present == len(SIZES)
    code, _, error = run("features", "--config", file, "--out", out, "--resize", "pad", "--quiet")
    assert code == 2
    assert "a model's images in tiles are opened by its own image processor" in error
    done = compute_features(data, tmp_path / "more", model)
    assert done.report.computed == len(SIZES)
    with pytest.raises(ConfigError, match="none of which come in pieces"):
        compute_features(data, tmp_path / "none", im.load("tiny"))


def test_a_plan_counts_the_rows_of_all_tiles(data: Path, tmp_path: Path) -> None:
    model = im.load(write_tiny_nanovlm(tmp_path / "model"), dtype=None)
    config = TrainConfig(steps=1, batch_size=len(SIZES), feature_cache=True)
    planned = plan(model, im.read_data(data), config).cache
    cache = cache_for(model, tmp_path / "cache")
    cache.fill(files_of(data), quiet=True)
    assert planned == cache.path.stat().st_size


def test_threads_that_read_at_once_miss_no_line_that_is_written_later(tmp_path: Path) -> None:
    model = im.load(write_tiny_nanovlm(tmp_path / "model"))
    told = cache_for(model, tmp_path).path.with_suffix(".told")
    told.write_text("".join(f"{number:032x} 1 1 1\n" for number in range(2000)))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(20):
            cache, together = cache_for(model, tmp_path), Barrier(4)

            def read(cache: PieceCache = cache, together: Barrier = together) -> None:
                together.wait()
                cache._refresh()

            threads = [Thread(target=read) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert cache._read == told.stat().st_size
    finally:
        sys.setswitchinterval(before)
