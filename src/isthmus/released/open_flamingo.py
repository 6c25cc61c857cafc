"""`checkpoint.pt`: released weights of OpenFlamingo, read into parts of our own.

Such a file holds what was trained and nothing of the two frozen parts: the Perceiver Resampler, the
gated cross-attention blocks, and the word embedding with the rows of two tokens that were added
(Awadalla et al. 2023, arXiv 2308.01390). Everything but the names of the frozen parts is read off
the file: its latents and layers, and before which decoder layers a block stands.

The two tokens get our added rows: `<image>` and `<|endofchunk|>` as the language model sees them,
and the head's row of `<|endofchunk|>`. The other rows were not trained, so they must be those of
the language model that is named; so must whatever else the file holds of a frozen part.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from isthmus.config.base import from_mapping
from isthmus.config.model import LanguageConfig, VisionConfig
from isthmus.config.registry import CHECKPOINTS
from isthmus.errors import ConfigError, loading
from isthmus.model.backbones.language import LanguageModel, load_language
from isthmus.model.backbones.pickled import read_pickled
from isthmus.model.backbones.vision import VisionEncoder, load_vision
from isthmus.model.join import compose
from isthmus.model.vlm import VisionLanguageModel
from isthmus.released.open_flamingo_tensors import Found

FILE = "checkpoint.pt"
OTHERS = ("config.json", "isthmus.json")
"""Of folders that hold another kind of model."""
PARTS = "model.toml"
"""Names the frozen parts of a local file, and stands beside it."""
VISION = "open_clip:ViT-L-14/openai"
OWNER = "openflamingo/"
LANGUAGE = {
    "openflamingo/OpenFlamingo-4B-vitl-rpj3b": "hf:togethercomputer/RedPajama-INCITE-Base-3B-v1",
    "openflamingo/OpenFlamingo-4B-vitl-rpj3b-langinstruct": (
        "hf:togethercomputer/RedPajama-INCITE-Instruct-3B-v1"
    ),
    "openflamingo/OpenFlamingo-9B-vitl-mpt7b": "hf:anas-awadalla/mpt-7b",
}
"""The language model of each released repository, by the repository."""
NO_QK_NORM = "normalises queries and keys, which Transformers' class for MPT leaves out"


@CHECKPOINTS.register("open_flamingo")
class OpenFlamingo:
    """OpenFlamingo's `checkpoint.pt`; see `isthmus.model.join.Reader`."""

    @staticmethod
    def takes(source: str) -> bool:
        """A repository of OpenFlamingo's, a folder that has the file, or a file of its kind.

        Example:
            >>> OpenFlamingo.takes("hf:openflamingo/OpenFlamingo-9B-vitl-mpt7b")
            True
        """
        place = source.removeprefix("hf:")
        return (source != place and place.startswith(OWNER)) or _local(place) is not None

    @staticmethod
    def load(
        source: str, *, vision: Any = None, language: Any = None, tokenizer: Any = None
    ) -> VisionLanguageModel:
        """The model, its frozen parts fetched by name or as they are handed in.

        Args:
            source: "hf:openflamingo/...", a folder or a file.
            vision: The vision encoder, in place of the one that is known or named beside the file.
            language: The language model likewise.
            tokenizer: The tokenizer of a `language` that is an object.

        Raises:
            ConfigError: If no language model is known, or the file beside it is wrong.
            CheckpointError: If the file cannot be read, or does not fit the parts.
        """
        place = source.removeprefix("hf:")
        path = _local(place)
        named = _known(place) if path is None else _named(path.parent / PARTS)
        words = language if language is not None else named.get("language")
        if words is None:
            raise ConfigError(
                f'"{source}" does not say which language model it is joined to: pass language=, or '
                f'write a file {PARTS} beside it with the table [language] and its name = "hf:REPO"'
            )
        path = checkpoint_of(source)
        state = read_pickled(path)
        encoder = load_vision(vision if vision is not None else named.get("vision", VISION))
        return join(path, state, encoder, load_language(words, tokenizer=tokenizer))


def checkpoint_of(source: str) -> Path:
    """The file of a repository, which is fetched, of a folder, or itself.

    Raises:
        CheckpointError: If it cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    place = source.removeprefix("hf:")
    path = _local(place)
    if path is not None:
        return path
    with loading(source, f"a folder that has {FILE}"):
        return Path(hf_hub_download(place, FILE))


def _local(place: str) -> Path | None:
    """The file of a local place; None if there is none."""
    path = Path(place)
    if path.is_file():
        return path if path.suffix == ".pt" else None
    file = path / FILE
    return file if file.is_file() and not any((path / own).is_file() for own in OTHERS) else None


def _known(place: str) -> dict[str, Any]:
    """The frozen parts that a released repository was joined to, where they are known."""
    if place.startswith(f"{OWNER}OpenFlamingo-3B"):
        raise ConfigError(
            f'"{place}" is joined to MPT-1B, which {NO_QK_NORM}: take the 4B or the 9B one'
        )
    return {"language": LANGUAGE[place]} if place in LANGUAGE else {}


def _named(beside: Path) -> dict[str, Any]:
    """The frozen parts that a file beside the checkpoint names."""
    if not beside.is_file():
        return {}
    try:
        told = tomllib.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{beside} cannot be read: {error}") from error
    kinds: dict[str, Any] = {"vision": VisionConfig, "language": LanguageConfig}
    if unknown := sorted(told.keys() - kinds.keys()):
        raise ConfigError(
            f"{beside} has {unknown[0]}: expected only the tables [vision] and [language]; the "
            "rest is read off the checkpoint"
        )
    return {name: from_mapping(kinds[name], values, name) for name, values in told.items()}


def join(
    path: Path, state: Mapping[str, Tensor], encoder: VisionEncoder, language: LanguageModel
) -> VisionLanguageModel:
    """The model of a checkpoint's tensors and two frozen parts.

    Args:
        path: Where the tensors are from, for messages.
        state: The tensors by name.
        encoder: The vision encoder.
        language: The language model, whose tokenizer has none of the two tokens yet.

    Raises:
        ConfigError: If the language model normalises queries and keys, which its class leaves out.
        CheckpointError: If tensors are missing, unexpected or of another shape, or those of a
            frozen part are others than its own.
    """
    if getattr(getattr(language.model.config, "attn_config", None), "qk_ln", False):
        raise ConfigError(
            f'"{language.config.name}" {NO_QK_NORM} (qk_ln): expected another language model'
        )
    found = Found(path, state, language.layers_path)
    model = compose(
        encoder,
        language,
        found.resampler(),
        found.cross_attention(len(language.layers)),
        template="openflamingo",
        device="cpu",
    )
    found.fill({"": model.connector, "block ": model.fusion.blocks})  # type: ignore[dict-item]
    found.fill_rows(model.special_tokens, language)  # type: ignore[arg-type]
    found.refuse_changed("lang_encoder", found.language, language.model)
    found.refuse_changed("vision_encoder", found.vision, encoder.model)
    return model
