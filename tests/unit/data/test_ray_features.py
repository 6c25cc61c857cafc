from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus.data.features import FeatureCache, FillReport
from isthmus.data.ray_features import fill_with_ray
from isthmus.errors import MissingExtraError
from isthmus.media.file_ref import FileRef
from isthmus.model.backbones.vision import load_vision
from isthmus.model.features import PatchFeatures


def paint(folder: Path, count: int) -> list[FileRef]:
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04}.png")
    return [FileRef(folder / f"{i:04}.png") for i in range(count)]


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    cache = FeatureCache(tmp_path / "cache", PatchFeatures(load_vision("tiny-vit")))
    with pytest.raises(MissingExtraError, match=r'pip install "isthmus\[ray\]"'):
        fill_with_ray(cache, paint(tmp_path, 1))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own, of many kinds
def test_a_ray_job_fills_as_fill_does(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    images = paint(tmp_path, 40)
    shard = tmp_path / "shard.tar"
    shard.write_bytes(b"head" + images[0].read())
    inside = FileRef(shard, start=4, size=len(images[0].read()), member="a.png")
    rows = [FileRef(Path("rows"), member=str(i), data=images[i].read()) for i in (1, 2)]
    (tmp_path / "text.png").write_text("no image")
    broken = [FileRef(tmp_path / "text.png"), FileRef(tmp_path / "none.png")]
    encoder = load_vision("tiny-vit")
    cache = FeatureCache(tmp_path / "cache", PatchFeatures(encoder))
    cache.fill(images[30:], quiet=True)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        given = [inside, *rows, *images[3:], *broken]
        report = fill_with_ray(cache, given, encoders=2, batch_size=4, quiet=True)
        again = fill_with_ray(cache, given[:-2], quiet=True)
    finally:
        ray.shutdown()
    assert (report.computed, report.present) == (30, 10)
    assert {name for name, _ in report.broken} == {str(p) for p in broken}
    assert again == FillReport(present=40)
    pixels = [encoder.preprocess(im.open_image(p.path)) for p in images]
    torch.testing.assert_close(
        cache.get(images), encoder(torch.stack(pixels)), atol=2e-3, rtol=2e-3
    )
