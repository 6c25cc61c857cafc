"""What a report of a problem needs: versions, the machine, the cached weights. Nothing private.

No model is loaded, and whatever is broken is a line of the result rather than an error: this is
what one runs when nothing else does.
"""

from __future__ import annotations

import getpass
import os
import platform
import re
import shutil
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from isthmus.assets.registry import asset_status, home
from isthmus.machine import probe

PACKAGES = (
    "torch",
    "transformers",
    "timm",
    "open_clip_torch",
    "peft",
    "accelerate",
    "safetensors",
    "tokenizers",
    "numpy",
    "pillow",
    "gradio",
    "fastapi",
    "llama_cpp_python",
)
"""Distributions whose versions are told; those of extras may be missing."""
SWITCHES = (
    "HF_HUB_OFFLINE",
    "ISTHMUS_INT8",
    "ISTHMUS_PACKED",
    "ISTHMUS_TRACED",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
)
"""Environment variables that are told where they are set. None of them holds a secret."""


@dataclass(frozen=True)
class Diagnosis:
    """What is installed, what the machine has, and what is cached.

    Attributes:
        isthmus: Version of this package.
        python: Implementation and version.
        system: Operating system and kind of processor.
        packages: Versions by distribution; empty for one that is not installed.
        machine: What `probe` found, with what "auto" chooses; without PyTorch only an "error".
        switches: Environment variables that are set and change what is computed.
        cache: Folder of the cached weights, without a user's name.
        free_gb: Free space there, in billions of bytes; None if the disk cannot be asked.
        assets: Whether each asset is cached.
    """

    isthmus: str
    python: str
    system: str
    packages: dict[str, str]
    machine: dict[str, Any]
    switches: dict[str, str]
    cache: str
    free_gb: float | None
    assets: dict[str, bool]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        installed = [f"{name} {version}" for name, version in self.packages.items() if version]
        missing = [name for name, version in self.packages.items() if not version]
        cached = [name for name, there in self.assets.items() if there]
        uncached = [name for name, there in self.assets.items() if not there]
        free = "unknown" if self.free_gb is None else f"{self.free_gb:.1f} GB free"
        rows = {
            "isthmus": self.isthmus,
            "python": f"{self.python}, {self.system}",
            "packages": ", ".join(installed) or "none",
            "not installed": ", ".join(missing),
            "PyTorch": self.machine.get("build", ""),
            "PyTorch does not load": self.machine.get("error", ""),
            "switches": ", ".join(f"{name}={value}" for name, value in self.switches.items()),
            "cache": f"{self.cache}, {free}",
            "cached": ", ".join(cached) or "none",
            "not cached": ", ".join(uncached),
        }
        lines = [f"{name}: {told}" for name, told in rows.items() if told]
        return "\n".join(lines if "error" in self.machine else [*lines, str(probe())])


def diagnose() -> Diagnosis:
    """Looks at the installation, the machine and the cache. Loads no model, asks no network.

    Example:
        >>> diagnose().packages["torch"] != ""
        True
    """
    folder = home()
    return Diagnosis(
        isthmus=_version("isthmus"),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=f"{platform.system()} {platform.machine()}",
        packages={name: _version(name) for name in PACKAGES},
        machine=_machine(),
        switches={name: os.environ[name] for name in SWITCHES if name in os.environ},
        cache=without_user(str(folder)),
        free_gb=_free_gb(folder),
        assets={row.asset.name: row.cached for row in asset_status()},
    )


def without_user(text: str) -> str:
    """The text with `~` for the home folder, and `USER` for the user's name in other paths.

    Example:
        >>> without_user(str(Path.home() / ".cache"))
        '~/.cache'
    """
    own = Path.home()
    text = re.sub(rf"{re.escape(str(own))}(?![^/\\\s:\"'])", "~", text) if own.name else text
    for name in {own.name, _user()} - {""}:
        text = re.sub(rf"(?<=[/\\]){re.escape(name)}(?=[/\\\s:\"']|$)", "USER", text)
    return text


def _user() -> str:
    """The user's name; empty where the system knows none, as in some containers."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""


def _version(name: str) -> str:
    """The version of a distribution; empty if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _machine() -> dict[str, Any]:
    """What the machine has, and PyTorch's build; or why PyTorch does not load."""
    try:
        import torch

        return {"build": str(torch.__version__), **probe().as_dict()}
    except Exception as error:  # a broken installation raises whatever it likes
        return {"error": without_user(f"{type(error).__name__}: {' '.join(str(error).split())}")}


def _free_gb(folder: Path) -> float | None:
    """Free space on the disk where a folder is, or will be."""
    there = next((p for p in (folder, *folder.parents) if p.exists()), None)
    try:
        return None if there is None else round(shutil.disk_usage(there).free / 1e9, 1)
    except OSError:
        return None
