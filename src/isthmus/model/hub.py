"""Models on the hub, as users of it expect: `save_pretrained`, `from_pretrained`, `push_to_hub`.

A repository holds what a folder of `save` holds, and a model card. The frozen parts stay where they
are and are named, so that a strip of a few megabytes is all that is uploaded.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from isthmus.config.model import SHIPPED
from isthmus.errors import ConfigError
from isthmus.files import write_text
from isthmus.model.card import MARK, Origin, checkpoint_card
from isthmus.model.checkpoint import DESCRIPTION, WEIGHTS, describe, locate
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.saving import load, save
from isthmus.model.snapshots import snapshot, told
from isthmus.model.vlm import VisionLanguageModel

CARD = "README.md"


def save_pretrained(
    model: VisionLanguageModel | DualEncoder,
    folder: str | Path,
    *,
    repository: str = "",
    dtype: torch.dtype | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Saves a model as `save` does, with a model card.

    A `README.md` that somebody wrote is left as it is.

    Args:
        model: A vision-language model or a dual encoder.
        folder: Where to; made if missing.
        repository: "USER/REPO" that the card tells readers to load; the folder's name by default.
        dtype: Precision of the file; None keeps the model's.
        extra: More entries for `isthmus.json`.

    Returns:
        The folder.

    Raises:
        CheckpointError: If a saved copy could not be loaded again.
        OutputError: If it cannot be written.

    Example:
        >>> import isthmus as im, tempfile
        >>> model = im.compose("tiny-vit", "tiny-lm", im.MLP())
        >>> sorted(path.name for path in im.save_pretrained(model, tempfile.mkdtemp()).iterdir())
        ['README.md', 'isthmus.json', 'model.safetensors']
    """
    target = save(model, folder, dtype=dtype, extra=extra)
    write_card(target, repository or target.absolute().name)
    return target


def from_pretrained(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = "auto",
    **parts: Any,
) -> Any:
    """Loads a model from a repository of the hub or from a folder.

    Args:
        source: "USER/REPO", "hf:USER/REPO", a folder, or a shipped model's name.
        revision: A branch, a tag or a commit of a repository.
        token: Of the hub; None takes the one that is logged in.
        device: As for `load`.
        dtype: As for `load`.
        **parts: As for `load`.

    Returns:
        A `VisionLanguageModel` or a `DualEncoder`, whichever it is.

    Raises:
        CheckpointError: If there is no such model, or it cannot be fetched.
        ConfigError: If a revision is asked for of something that is not a repository of ours.

    Example:
        >>> import isthmus as im, tempfile
        >>> folder = im.save_pretrained(
        ...     im.compose("tiny-vit", "tiny-lm", im.MLP()), tempfile.mkdtemp()
        ... )
        >>> im.from_pretrained(folder).config.connector
        MLP(depth=2, bias=True)
    """
    options: dict[str, Any] = {"device": device, "dtype": dtype, **parts}
    name = str(source).removeprefix("hf:")
    here = name in SHIPPED or Path(name).is_dir()
    if not here and name.count("/") == 1 and ":" not in name:
        if folder := snapshot(name, revision=revision, token=token):
            return load(folder, **options)
        source = f"hf:{name}"
    if revision is not None:
        raise ConfigError(
            f'revision = "{revision}" of "{source}": expected a repository of the hub that holds '
            f"{DESCRIPTION} at that revision, and can be reached"
        )
    return load(source, **options)


def push_to_hub(
    model: VisionLanguageModel | DualEncoder | str | Path,
    repository: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a model of Isthmus",
) -> str:
    """Uploads a model to a repository of the hub, which is made if there is none.

    A model card that somebody wrote there is left as it is.

    Args:
        model: A model, or a folder that `save` or `save_pretrained` wrote.
        repository: "USER/REPO".
        token: Of the hub, one that may write; None takes the one that is logged in.
        private: Whether a repository that is made is private.
        revision: A branch, made if there is none; None is the main branch.
        commit_message: Of the commit.

    Returns:
        The commit's address.

    Raises:
        CheckpointError: If the folder is no saved model, or the hub refuses.
        ConfigError: If a part of the model lies on this machine alone.
    """
    with tempfile.TemporaryDirectory() as place:
        if isinstance(model, str | Path):
            folder = locate(model)
        else:
            folder = save_pretrained(model, place, repository=repository)
        _refuse_local_parts(describe(folder))
        return _upload(folder, repository, token, private, revision, commit_message)


def write_card(folder: Path, name: str) -> None:
    """Writes the card of a saved model, unless somebody wrote one."""
    card = folder / CARD
    if not card.is_file() or MARK in card.read_text(encoding="utf-8", errors="replace"):
        write_text(card, checkpoint_card(Origin.of(describe(folder)), name))


def _refuse_local_parts(description: Mapping[str, Any]) -> None:
    """Refuses a model whose parts nobody else can load, and whose paths are nobody's business."""
    for name in Origin.of(description).parts:
        scheme, _, rest = name.partition(":")
        if scheme == "hf" and (Path(rest).is_dir() or Path(rest).is_absolute()):
            raise ConfigError(
                f'the model was made of "{name}", a folder of this machine: expected parts that '
                "others can fetch; upload that part and compose the model of hf:USER/REPO"
            )


def _upload(
    folder: Path,
    repository: str,
    token: str | None,
    private: bool | None,
    revision: str | None,
    message: str,
) -> str:
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with told(f"cannot upload to {repository}"):
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        files = [DESCRIPTION, WEIGHTS, *([] if _has_card(api, repository, revision) else [CARD])]
        made = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=files,
            commit_message=message,
            revision=revision,
        )
    return str(made.commit_url)


def _has_card(api: Any, repository: str, revision: str | None) -> bool:
    """Whether somebody wrote a card there."""
    if not api.file_exists(repository, CARD, revision=revision):
        return False
    with tempfile.TemporaryDirectory() as place:
        found = api.hf_hub_download(repository, CARD, revision=revision, local_dir=place)
        return MARK not in Path(found).read_text(encoding="utf-8", errors="replace")
