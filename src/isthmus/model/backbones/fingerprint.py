"""Telling one model from another by its weights."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor, nn

from isthmus.assets import registry as assets
from isthmus.errors import OutputError
from isthmus.files import write_json
from isthmus.model.backbones.placement import held_tensors

PIECE = 1 << 15
"""Values that are hashed at once: so few that torch does not start threads of its own for them."""
SETTLED = 2.0
"""Seconds since a file's last change, before which a second change may leave its times the same."""
READERS = ("isthmus", "torch", "transformers", "timm", "safetensors")
"""The packages that make a model out of files."""


def fingerprint(model: nn.Module, *, exact: bool = False) -> str:
    """A hash of a model's architecture and of all of its weights.

    It covers every tensor's name, shape and values, so a model in which a few rows changed differs
    from the one it came from. Values are rounded to bf16, so that a model loaded in half precision
    is still the same model. LoRA adapters are left out: they are not frozen.

    Args:
        model: Any module.
        exact: Whether values count as they are, and adapters too.

    Returns:
        16 hexadecimal digits. Hashing takes about 0.3 s for 160 M parameters on one core, and is
        spread over up to eight.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> fingerprint(layer) == fingerprint(layer.bfloat16())
        True
    """
    state = sorted(held_tensors(model).items())
    if not exact:
        state = [(name, held) for name, held in state if "lora_" not in name]
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    workers = max(1, min(8, os.cpu_count() or 1, len(state)))
    with ThreadPoolExecutor(workers, "isthmus-hash") as pool:  # hashing lets other threads run
        hashes = list(pool.map(lambda entry: _hash(entry[1](), exact), state))
    digest = hashlib.sha256()
    for (name, _), values in zip(state, hashes, strict=True):
        digest.update(f"{name.replace('.base_layer', '')} {shapes[name]}".encode())
        digest.update(values)
    return digest.hexdigest()[:16]


def _hash(tensor: Tensor, exact: bool) -> bytes:
    digest = hashlib.sha256()
    for piece in torch.split(tensor.detach().reshape(-1), PIECE):
        values = piece if exact else piece.to(torch.bfloat16)
        digest.update(values.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.digest()


class WeightFiles:
    """The files that a model is about to be read from, and the fingerprint that it will have.

    Hashing every weight takes about a quarter of the time in which the shipped model loads. As long
    as the files and the packages that read them stay as they are, the hash is taken from a cache.
    Whatever writes to a file changes its times, even where its size stays, and times of change
    cannot be set back. Use this for a model alone that was read after the object was made and that
    nobody has had in hands since.

    Args:
        folder: The model's files; None if there are none, or none that are known.
        cache: The JSON file that keeps the fingerprint; it may not exist yet.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> files = WeightFiles(folder, folder.parent / f"{folder.name}.json")
        >>> layer = nn.Linear(2, 2)
        >>> files.fingerprint(layer) == fingerprint(layer)
        True
    """

    def __init__(self, folder: Path | None, cache: Path) -> None:
        self.folder = folder
        self.cache = cache
        self.before = _state(folder)

    def fingerprint(self, model: nn.Module) -> str:
        """`fingerprint(model)`, of a model that was read from these files and not changed."""
        state = _state(self.folder)
        if state is None or state != self.before:  # written to while it was read
            return fingerprint(model)
        state = f"{state} {type(model).__module__}.{type(model).__qualname__}"
        try:
            told = json.loads(self.cache.read_text(encoding="utf-8"))
            if told["state"] == state:
                return str(told["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none yet, or damaged
        found = fingerprint(model)
        with contextlib.suppress(OutputError):  # a cache that others own: hashed at each load
            write_json(self.cache, {"state": state, "fingerprint": found})
        return found


def weight_files(name: str) -> WeightFiles:
    """The files behind a part's name: an asset's that is in the cache, none of any other.

    Example:
        >>> weight_files("hf:Qwen/Qwen3-0.6B").folder is None
        True
    """
    scheme, _, asset = name.partition(":")
    folder = assets.cached(asset) if scheme == "asset" and asset in assets.ASSETS else None
    return WeightFiles(folder, assets.home() / "fingerprints" / f"{asset}.json")


def _state(folder: Path | None) -> str | None:
    """A hash of what changes whenever a file of a folder, or a package that reads it, does.

    None where that cannot be told: there is no folder, or it was written to just now.
    """
    if folder is None:
        return None
    told: list[object] = [str(folder.absolute()), [_version(name) for name in READERS]]
    try:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            s = path.stat()
            times = (s.st_mtime_ns, s.st_ctime_ns)
            if time.time_ns() - max(times) < 1e9 * SETTLED:
                return None
            told.append((str(path.relative_to(folder)), s.st_size, s.st_ino, s.st_dev, times))
    except OSError:
        return None
    return hashlib.sha256(repr(told).encode("utf-8", "surrogateescape")).hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
