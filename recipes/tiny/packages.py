"""Downloading and unpacking the packages that the data comes in, by their ordinary clients."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

PYTHON = {"easy-vqa": "1.0"}
NPM = {
    "@iconify-json/openmoji": "1.2.29",
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@lobehub/fluent-emoji-3d": "1.1.0",
    "@iconify-json/emojione": "1.2.3",
    "@iconify-json/twemoji": "1.2.5",
    "@iconify-json/fxemoji": "1.2.2",
    "emojibase-data": "17.0.0",
}
DEBIAN = {
    "tuxpaint-stamps-default": "2022.06.04-1",
    "openclipart-svg": "1:0.18+dfsg-19",
    "gcompris-qt-data": "3.1-2",
    "wordnet-base": "1:3.0-37",
    "fonts-anonymous-pro": "1.003-4",
    "fonts-arapey": "0+git20200408-2",
    "fonts-averia-serif-gwf": "1.00-2.1",
    "fonts-b612": "1.008-3",
    "fonts-cabin": "1.5-3",
    "fonts-cantarell": "0.303.1-1",
    "fonts-clear-sans": "1.00-2",
    "fonts-comfortaa": "3.001-3",
    "fonts-comic-neue": "2.51-4",
    "fonts-courier-prime": "0+git20190115-3",
    "fonts-crosextra-caladea": "20200211-1",
    "fonts-dejavu-core": "2.37-6",
    "fonts-dkg-handwriting": "0.17-1",
    "fonts-dosis": "1.7-3",
    "fonts-ebgaramond": "0.016+git20210310.42d4f9f2-1",
    "fonts-freefont-otf": "20120503-10",
    "fonts-goudybookletter": "2010.07.03-6",
    "fonts-jetbrains-mono": "2.242+ds-3",
    "fonts-karla": "20201218-1",
    "fonts-lato": "2.0-2.1",
    "fonts-league-spartan": "2.210-1",
    "fonts-liberation2": "2.1.5-1",
    "fonts-linuxlibertine": "5.3.0-6",
    "fonts-national-park": "0.0~20220205-2",
    "fonts-noto-core": "20201225-1",
    "fonts-open-sans": "1.11-2",
    "fonts-opendyslexic": "20160623-4",
    "fonts-play": "1.002+20150307.1-0.1",
    "fonts-quattrocento": "1.1-2.1",
    "fonts-quicksand": "0.2016-2.1",
    "fonts-roboto-slab": "1.100263+20170512-2",
    "fonts-roboto-unhinted": "2:0~20170802-3",
    "fonts-sil-andika": "6.101-2",
    "fonts-sora": "0+git20201221+ds-2",
    "fonts-vollkorn": "4.105-2",
    "fonts-yanone-kaffeesatz": "2.0+git20211102+ds-1",
}


def _run(*command: str, folder: Path) -> None:
    """Runs a package client in a folder; its own message is the best one if it fails."""
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def _download(name: str, folder: Path) -> None:
    """Brings one package's archive into a folder."""
    if name in PYTHON:
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
        _run(*pip, f"{name}=={PYTHON[name]}", folder=folder)
    elif name in NPM:
        _run("npm", "pack", "--silent", f"{name}@{NPM[name]}", folder=folder)
    else:
        _run("apt-get", "download", "--quiet", f"{name}={DEBIAN[name]}", folder=folder)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpacks a wheel, an npm tarball or a Debian package."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)
    elif archive.suffix == ".tgz":
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
    else:
        _run("dpkg-deb", "-x", str(archive), str(folder), folder=folder)


def fetch(name: str, root: Path) -> Path:
    """The unpacked folder of a package, downloaded on first use.

    What was downloaded is written down in `downloads/MANIFEST.json` with its SHA-256.

    Args:
        name: A key of `PYTHON`, `NPM` or `DEBIAN`.
        root: The data folder.
    """
    safe = name.strip("@").replace("/", "-")
    target = root / "unpacked" / safe
    if target.is_dir():
        return target
    downloads = root / "downloads" / safe
    shutil.rmtree(downloads, ignore_errors=True)  # what an interrupted download left
    downloads.mkdir(parents=True)
    _download(name, downloads)
    (archive,) = downloads.iterdir()
    manifest_path = root / "downloads" / "MANIFEST.json"
    manifest = json.loads(manifest_path.read_text()) if manifest_path.is_file() else {}
    manifest[archive.name] = hashlib.sha256(archive.read_bytes()).hexdigest()
    manifest_path.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    partial = target.with_name(f".{safe}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _unpack(archive, partial)
    return partial.rename(target)
