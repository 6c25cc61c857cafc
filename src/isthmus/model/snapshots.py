"""Models of ours in repositories on the hub: known by `isthmus.json`, fetched, found again offline.

They are looked for only where a repository is not known to hold a model of Transformers, so that
naming one of those costs no request more once it is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isthmus.errors import CheckpointError

DESCRIPTION = "isthmus.json"
FILES = [DESCRIPTION, "model.safetensors", "README.md"]
"""What is fetched of a repository."""


def fetched(source: Any) -> Any:
    """The folder of a model of ours that a source names as "hf:USER/REPO"; else the source itself.

    Args:
        source: What `load` takes.

    Raises:
        CheckpointError: If the repository holds a model of ours that cannot be fetched whole.

    Example:
        >>> fetched("tiny"), fetched("hf:nobody/none")
        ('tiny', 'hf:nobody/none')
    """
    if not isinstance(source, str | Path):
        return source
    scheme, _, place = str(source).partition(":")
    if scheme != "hf" or not place:
        return source
    if Path(place).is_dir():
        return Path(place) if (Path(place) / DESCRIPTION).is_file() else source
    if place.count("/") != 1 or _in_cache(place, "config.json"):
        return source
    return snapshot(place) or source


def snapshot(
    repository: str, *, revision: str | None = None, token: str | bool | None = None
) -> Path | None:
    """The folder of a repository that holds a model of ours, fetched if it is not here.

    Args:
        repository: "USER/REPO".
        revision: A branch, a tag or a commit; None is the main branch.
        token: Of the hub; None takes the one that is logged in.

    Returns:
        None if it holds none, or cannot be asked.

    Raises:
        CheckpointError: If it holds one and not all of it can be fetched.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    options: dict[str, Any] = {"revision": revision, "token": token}
    try:
        hf_hub_download(repository, DESCRIPTION, **options)
    except Exception:  # of many kinds: no such file or repository, no network; loading says which
        return None
    with told(f"cannot fetch hf:{repository}"):
        return Path(snapshot_download(repository, allow_patterns=FILES, **options))


@contextmanager
def told(what: str) -> Iterator[None]:
    """Makes an error of ours of what the hub's library raises.

    Args:
        what: What was tried.

    Raises:
        CheckpointError: In place of its errors, and of those of the network.
    """
    try:
        yield
    except Exception as error:  # its own, httpx's, and those of files
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{what}: {first}") from error


def _in_cache(repository: str, name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(repository, name), str)
    except HFValidationError:
        return False
