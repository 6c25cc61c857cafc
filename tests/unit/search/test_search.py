"""Image indexes: what is found is what brute force finds, and nothing is lost or done twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from isthmus.errors import CheckpointError, InputError
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.search import index as search
from isthmus.search import segments
from isthmus.search.index import ImageIndex
from isthmus.search.segments import VectorSegments

pytest.importorskip("usearch")


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return seeded_model(0)


def seeded_model(seed: int) -> DualEncoder:
    torch.manual_seed(seed)
    return DualEncoder.join("tiny-vit", "tiny-text", width=16, image_head=None)


def paint(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(9):
        paint(tmp_path / "photos" / f"{i}.png", i)
    return tmp_path / "photos"


def names(hits: list[search.Hit]) -> list[str]:
    return [hit.path.name for hit in hits]


def test_hits_are_those_of_brute_force(photos: Path, tmp_path: Path, model: DualEncoder) -> None:
    with ImageIndex(tmp_path / "index", model, batch_size=4) as index:
        assert index.add(photos).added == len(index) == 9
        files = sorted(photos.iterdir())
        vectors = model.encode_images(files)
        cosines = vectors @ model.encode_texts(["a red car"])[0]
        order = cosines.argsort(descending=True).tolist()
        found = index.search("a red car", 5)
        assert names(found) == [files[i].name for i in order[:5]]
        assert [hit.score for hit in found] == pytest.approx(cosines[order[:5]].tolist(), abs=2e-3)
        alike = index.search_like(files[3], 9)
        assert alike[0].path == files[3]
        assert alike[0].score == pytest.approx(1, abs=2e-3)
        order = (vectors @ vectors[3]).argsort(descending=True).tolist()
        assert names(alike) == [files[i].name for i in order]
        assert sorted(names(index.search("x", 99))) == sorted(f.name for f in files)


def test_known_files_are_not_read_and_known_contents_not_encoded(
    photos: Path, tmp_path: Path, model: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ImageIndex(tmp_path / "index", model) as index:
        index.add(photos)
        monkeypatch.setattr(
            Path, "read_bytes", lambda path: pytest.fail(f"{path} was read though it is known")
        )
        assert index.add(photos).known == 9
        monkeypatch.undo()
        shutil.copyfile(photos / "2.png", photos / "copy.png")
        monkeypatch.setattr(
            model, "encode_pixels", lambda pixels: pytest.fail("a known content was encoded")
        )
        report = index.add(photos)
        assert (report.added, report.known) == (0, 10)
        monkeypatch.undo()
        (hit,) = index.search_like(photos / "2.png", 1)
        assert (hit.path.name, [c.name for c in hit.copies]) == ("2.png", ["copy.png"])
        assert len(index) == 9


def test_twice_in_one_batch_is_encoded_once(tmp_path: Path, model: DualEncoder) -> None:
    for name in ("a", "b", "c"):
        paint(tmp_path / "photos" / f"{name}.png", 1)
    with ImageIndex(tmp_path / "index", model) as index:
        report = index.add(tmp_path / "photos")
        assert (report.added, report.known, len(index)) == (1, 2, 1)


def test_changed_and_gone_files(photos: Path, tmp_path: Path, model: DualEncoder) -> None:
    with ImageIndex(tmp_path / "index", model) as index:
        index.add(photos)
        old = (photos / "4.png").read_bytes()
        paint(photos / "4.png", 400)
        os.utime(photos / "4.png", ns=(1, 1))
        (photos / "5.png").unlink()
        report = index.add(photos)
        assert (report.added, report.known, report.forgotten) == (1, 7, 1)
        assert len(index) == 8
        (hit,) = index.search_like(photos / "4.png", 1)
        assert hit.path.name == "4.png"
        assert hit.score == pytest.approx(1, abs=2e-3)
        assert max(h.score for h in index.search_like(old, 9)) < 0.999  # the old one is not found
        for i in range(4):
            (photos / f"{i}.png").unlink()
        index.add(photos)
        assert sorted(names(index.search("x", 99))) == ["4.png", "6.png", "7.png", "8.png"]
        assert len(index._segments) == len(index) == 4  # rewritten without the dead
    with ImageIndex(tmp_path / "index", model) as again:
        assert sorted(names(again.search("x", 99))) == ["4.png", "6.png", "7.png", "8.png"]


def test_what_is_no_image_is_named_and_not_tried_again(
    photos: Path, tmp_path: Path, model: DualEncoder
) -> None:
    (photos / "bad.JPG").write_bytes(b"no image")
    paint(photos / ".hidden" / "h.png", 50)
    paint(photos / "index" / "own.png", 51)
    (photos / "notes.txt").write_text("text")
    os.symlink(photos, photos / "loop")
    os.symlink(photos / "nowhere", photos / "dangling.png")
    with ImageIndex(photos / "index", model) as index:
        report = index.add(photos)
        assert report.added == 9
        ((path, why),) = report.broken
        assert path == photos / "bad.JPG"
        assert "not an image" in why
        assert index.add(photos).broken == []
        paint(photos / "bad.png", 60).rename(photos / "bad.JPG")
        assert index.add(photos).added == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_text(tmp_path: Path, model: DualEncoder) -> None:
    odd = os.path.join(os.fsencode(tmp_path), b"photos", b"caf\xe9.png")
    paint(tmp_path / "photos" / "x.png", 1).rename(os.fsdecode(odd))
    with ImageIndex(tmp_path / "index", model) as index:
        index.add(tmp_path / "photos")
        assert os.fsencode(index.search("x", 1)[0].path) == odd


def test_within_a_folder(photos: Path, tmp_path: Path, model: DualEncoder) -> None:
    paint(tmp_path / "photos2" / "other.png", 70)
    with ImageIndex(tmp_path / "index", model) as index:
        index.add([photos, tmp_path / "photos2"])
        assert names(index.search("x", 3, within=tmp_path / "photos2")) == ["other.png"]
        assert len(index.search("x", 99, within=photos)) == 9


def test_another_model_is_refused(photos: Path, tmp_path: Path, model: DualEncoder) -> None:
    with ImageIndex(tmp_path / "index", model) as index:
        index.add(photos)
    other = seeded_model(1)
    with pytest.raises(CheckpointError, match="another image tower") as error:
        ImageIndex(tmp_path / "index", other)
    assert model.name in str(error.value)
    longer = DualEncoder(model.image, other.text, logit_scale=1.0)  # texts may be read better
    with ImageIndex(tmp_path / "index", longer) as index:
        assert len(index.search("x", 9)) == 9


def test_stopped_by_the_keyboard_nothing_is_lost(
    photos: Path, tmp_path: Path, model: DualEncoder
) -> None:
    def stop(some: int) -> None:
        raise KeyboardInterrupt

    index = ImageIndex(tmp_path / "index", model, batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        index.add(photos, progress=stop)
    index.close()
    with ImageIndex(tmp_path / "index", model) as index:
        assert len(index) == 2
        report = index.add(photos)
        assert (report.added, report.known) == (7, 2)


KILLED = """
import os, signal, sys, torch
from isthmus.search import index as search
from isthmus.model.clip.dual_encoder import DualEncoder
search.SAVE_EVERY = 0.0
torch.manual_seed(0)
model = DualEncoder.join("tiny-vit", "tiny-text", width=16, image_head=None)
index = search.ImageIndex(sys.argv[2], model, batch_size=2)
left = 3
def progress(some):
    global left
    left -= 1
    if left == 0:  # two batches are saved, the third is known to the table and not committed
        os.kill(os.getpid(), signal.SIGKILL)
index.add(sys.argv[1], progress=progress)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_while_filling(photos: Path, tmp_path: Path, model: DualEncoder) -> None:
    place = tmp_path / "index"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(photos), str(place)], check=False)
    assert ended.returncode == -signal.SIGKILL
    (place / "vectors-000099.usearch").write_bytes(b"half of a file that does not count")
    with ImageIndex(place, model) as index:
        assert 2 <= len(index) < 9
        before = len(index)
        assert index.add(photos).added == 9 - before
        assert [path.name for path in place.glob(segments.PATTERN)] == index._segments.files
        for file in photos.iterdir():
            assert index.search_like(file, 1)[0].path == file


def test_two_at_once(photos: Path, tmp_path: Path, model: DualEncoder) -> None:
    one = ImageIndex(tmp_path / "index", model)
    with FileLock(tmp_path / "index" / "lock"), pytest.raises(InputError, match="another process"):
        one.add(photos)
    with ImageIndex(tmp_path / "index", model) as two:
        two.add(photos)
    paint(photos / "late.png", 80)
    assert one.add(photos).added == 1  # opened before the other filled it
    assert len(one.search("x", 99)) == 10
    one.close()


def test_bad_input(tmp_path: Path, model: DualEncoder) -> None:
    with ImageIndex(tmp_path / "index", model) as index:
        assert index.search("x") == []
        with pytest.raises(InputError, match="no file or folder"):
            index.add(tmp_path / "nowhere")
        with pytest.raises(InputError, match="empty query"):
            index.search("  ")
        with pytest.raises(InputError, match="at least 1"):
            index.search("x", 0)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "files.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(CheckpointError, match="damaged"):
        ImageIndex(tmp_path / "broken", model)


def test_a_damaged_file_of_vectors(photos: Path, tmp_path: Path, model: DualEncoder) -> None:
    with ImageIndex(tmp_path / "index", model) as index:
        index.add(photos)
    (file,) = (tmp_path / "index").glob(segments.PATTERN)
    file.write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="damaged"):
        ImageIndex(tmp_path / "index", model)
    file.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        ImageIndex(tmp_path / "index", model)


def clustered(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(50, 32))
    found = centres[rng.integers(50, size=n)] + 0.6 * rng.normal(size=(n, 32))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def test_graphs_of_several_segments_find_what_brute_force_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "EXACT", 0)
    vectors, queries = clustered(5000, 0), clustered(100, 1)
    made = VectorSegments(tmp_path, 32, [], segment=1500)
    for start in range(0, 5000, 700):
        part = slice(start, min(5000, start + 700))
        made.add(range(5000)[part], vectors[part])
        made.write()
    opened = VectorSegments(tmp_path, 32, made.files, segment=1500)
    assert len(opened) == 5000
    assert len(opened.files) == 4  # three full ones and the rest
    truth = (-queries @ vectors.T).argsort(axis=1)[:, :10]
    right = 0
    for query, expected in zip(queries, truth, strict=True):
        keys, cosines = opened.nearest(query, 10)
        right += len(set(keys.tolist()) & set(expected.tolist()))
        assert cosines == pytest.approx(vectors[keys.astype(int)] @ query, abs=2e-3)
    assert right / 1000 > 0.95
    kept = opened.rewritten(np.arange(0, 5000, 5, dtype=np.uint64))
    assert len(kept) == 1000
    assert set(kept.files).isdisjoint(made.files)
    monkeypatch.setattr(segments, "EXACT", 10**9)
    for query in queries[:10]:
        expected = 5 * (-vectors[::5] @ query).argsort()[:3]
        assert len(set(kept.nearest(query, 3)[0].tolist()) & set(expected.tolist())) >= 2
