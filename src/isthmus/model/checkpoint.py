"""One folder for every saved model: what was trained as safetensors, the rest by name.

A folder holds `model.safetensors` and `isthmus.json`:

    format_version   1
    kind             "vlm", a vision-language model, or "clip", a dual encoder
    config           a `ModelConfig`; or the parts, heads and pooling of a dual encoder
    parts            fingerprints of the frozen parts that the weights were trained between

The named parts are fetched again on loading and compared with their fingerprints: a strip between
two other parts would run, and be wrong. Files are written under a temporary name, synced and
renamed, the JSON last, so a half-written model is never seen.

This file has the folder and vision-language models, whose weights are connector, fusion, special
tokens and LoRA; `clip.checkpoint` has dual encoders, `saving` both.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from isthmus.config.file import model_from_mapping, to_mapping
from isthmus.config.model import SHIPPED, media_with
from isthmus.errors import CheckpointError, ConfigError, suggestion
from isthmus.files import write_atomically, write_json
from isthmus.machine import device_for, dtype_for
from isthmus.model.analysis import fitted_names
from isthmus.model.backbones.fingerprint import fingerprint, weight_files
from isthmus.model.backbones.placement import in_memory
from isthmus.model.backbones.precision import refuse_conversion
from isthmus.model.backbones.refusals import CODE
from isthmus.model.backbones.released import read_together
from isthmus.model.connectors import build_connector
from isthmus.model.fusion import fusion_config
from isthmus.model.join import named_model, reader_of
from isthmus.model.saved_parts import (
    dtype_under,
    frozen_parts,
    int8_beside,
    placed,
    refuse_other_part,
    saved_encoder,
    saved_language,
)
from isthmus.model.snapshots import DESCRIPTION as DESCRIPTION
from isthmus.model.snapshots import fetched
from isthmus.model.vlm import MEDIUM_SUFFIX, VisionLanguageModel

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
KINDS = {
    "vlm": "a vision-language model, for ask, chat, eval and serve",
    "clip": "a dual encoder, for classify, search and serve --dual-encoder",
}
"""What a saved model can be."""
STRIP = ("connector.", "fusion.", "special_tokens.")


def strip_state(model: VisionLanguageModel) -> dict[str, Tensor]:
    """The tensors of a model that are its own, by name.

    The strip, any LoRA adapters, and what media of other kinds have besides a frozen `encoder`.
    """
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(STRIP) or "lora_" in name or _of_medium(name, model.saved_media)
    }


def _of_medium(name: str, media: Collection[str]) -> bool:
    first, *rest = name.split(".")
    return first.removesuffix(MEDIUM_SUFFIX) in media and rest[:1] != ["encoder"]


def save_vlm(
    model: VisionLanguageModel,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Saves the strip of a model.

    Args:
        model: The model.
        folder: Where to; made if missing.
        dtype: Precision of the file, for example `torch.float16`; None keeps the model's.
        extra: More entries for `isthmus.json`, such as how it was trained.

    Returns:
        The folder.

    Raises:
        OutputError: If it cannot be written; what was there before is untouched.
    """
    description = {**description_of(model), **(extra or {})}
    return write_model(folder, description, strip_state(model), dtype, whole=fitted_names(model))


def description_of(model: VisionLanguageModel) -> dict[str, Any]:
    """What `isthmus.json` says of a model: its configuration and what it was trained between."""
    if model.text_only:
        raise CheckpointError("a language model by itself has no strip to save: keep its name")
    config = to_mapping(model.config)
    if model.config.connector is None:  # one of the user's own: the name says whose it was
        own = type(model.connector)
        config["connector"] = {"type": "own", "class": f"{own.__module__}.{own.__qualname__}"}
    return {
        "format_version": FORMAT_VERSION,
        "kind": "vlm",
        "config": config,
        "parts": {name: fingerprint(part) for name, part in frozen_parts(model).items()},
    }


def write_model(
    folder: str | Path,
    description: Mapping[str, Any],
    state: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    *,
    whole: Collection[str] = (),
) -> Path:
    """Writes a model's strip and description, the weights first.

    Args:
        folder: Where to; made if missing.
        description: As `description_of` gives it, and anything else.
        state: As `strip_state` gives it, tensors in whole.
        dtype: Precision of the file; None keeps the tensors'.
        whole: Names of tensors that keep theirs.

    Raises:
        OutputError: If it cannot be written; what was there before is untouched.
    """
    target = Path(folder)

    def kept(name: str, tensor: Tensor) -> Tensor:
        same = dtype is None or name in whole or not tensor.is_floating_point()
        return (tensor if same else tensor.to(dtype)).contiguous()

    tensors = {name: kept(name, tensor) for name, tensor in state.items()}
    write_atomically(target / WEIGHTS, lambda p: save_file(tensors, p))
    write_json(target / DESCRIPTION, description)
    return target


def locate(source: str | Path) -> Path:
    """The folder of a saved model.

    Args:
        source: The name of a shipped model, a folder, or "hf:USER/REPO" of a model of ours.

    Raises:
        CheckpointError: If there is none.
    """
    source = fetched(source)
    if str(source) in SHIPPED:
        return Path(str(resources.files("isthmus"))) / "weights" / str(source)
    folder = Path(source)
    if (folder / DESCRIPTION).is_file():
        return folder
    what = "holds no isthmus.json and no config.json" if folder.is_dir() else "is not a folder"
    raise CheckpointError(
        f'no model "{source}": it {what}, and it is not the name of a shipped model '
        f"({suggestion(str(source), SHIPPED)})"
    )


def is_transformers_folder(source: str | Path) -> bool:
    """Whether a folder holds a model of Transformers and none of ours."""
    folder = Path(source)
    return not (folder / DESCRIPTION).is_file() and (folder / "config.json").is_file()


def describe(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """`isthmus.json` of a saved model.

    Args:
        folder: Where it was saved.
        kind: What it must be, "vlm" or "clip"; None takes either.

    Raises:
        CheckpointError: If it is damaged, of a later format, or of the other kind.
    """
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        version, told = description["format_version"], description["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has format_version {version}, this Isthmus reads {FORMAT_VERSION}: "
            'pip install --upgrade "isthmus"'
        )
    if told not in KINDS:
        raise CheckpointError(f'{path} is damaged: kind = "{told}": {suggestion(str(told), KINDS)}')
    if kind is not None and told != kind:
        raise CheckpointError(
            f"{folder} holds {KINDS[told]}; expected {KINDS[kind]} "
            f"(shipped: {'tiny' if kind == 'vlm' else 'tiny-clip'})"
        )
    config, parts = description.get("config"), description.get("parts")
    whole = isinstance(config, dict) and isinstance(parts, dict)
    if whole and told == "vlm":
        whole = isinstance(config.get("connector"), dict) and {"vision", "language"} <= parts.keys()
    if not whole:
        raise CheckpointError(
            f"{path} is damaged: expected tables config and parts; of a vision-language model also "
            "config.connector and the fingerprints of vision and language"
        )
    return dict(description)


def load_vlm(
    source: str | Path,
    *,
    connector: nn.Module | None = None,
    language: Any = None,
    vision: Any = None,
    tokenizer: Any = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = "auto",
    image_options: Mapping[str, Any] | None = None,
    device_map: Any = None,
    engine: str = "torch",
) -> VisionLanguageModel:
    """Loads a saved vision-language model.

    Args:
        source: The name of a shipped model ("tiny"), a folder that `save` wrote, a repository that
            holds one ("hf:USER/REPO"), a released vision-language model
            ("hf:llava-hf/llava-1.5-7b-hf", or its folder), a checkpoint of OpenFlamingo, or a
            language model alone ("hf:Qwen/Qwen3-0.6B"), which then sees no images.
        connector: Your own connector, where the model was composed with one.
        language: The language model as an object, where it was composed with one (with its
            `tokenizer`), or a name in place of the saved one. OpenFlamingo's checkpoints do not
            say theirs, so it is needed where nothing beside the file names it.
        vision: The vision encoder likewise.
        tokenizer: The tokenizer of `language`.
        device: "auto" (the best there is), "cpu", "cuda", "mps" or a `torch.device`.
        dtype: Data type of all weights: "auto" (see `machine`), a name or a `torch.dtype`; None is
            float32, which a model that is trained on needs. With "int8", and with "auto" on a CPU
            that is faster in it, the language model computes in int8 where no gradient is wanted.
        image_options: As in `load`.
        device_map: As in `load`.
        engine: As in `load`; dtype "auto" is float32 under "llama".

    Raises:
        ConfigError: If there is no such device or option, or our parts lack what a model has.
        CheckpointError: If the folder is no saved model, or the parts differ from those that it
            was trained between; the message says what differs.

    Example:
        >>> import isthmus as im, tempfile
        >>> model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
        >>> folder = tempfile.mkdtemp()
        >>> len(im.load(im.save(model, folder)).layout)
        16
    """
    place = device_for(device)  # said before anything is read
    dtype = dtype_under(engine, dtype, device_map)
    int8 = int8_beside(dtype, place, device_map, language)
    kind = torch.float32 if int8 else dtype_for(dtype, place)
    own = None if dtype in (None, "auto") else kind  # of a language model that a map places
    source = fetched(source)
    reader = reader_of(source)
    named = str(source).startswith(("hf:", f"{CODE}:", "asset:")) or is_transformers_folder(source)
    if reader is None and named:
        if given := [p for p in (connector, language, vision, tokenizer) if p is not None]:
            raise ConfigError(
                f'"{source}" brings its own parts, and {type(given[0]).__name__} came beside it: '
                "leave it out, or join parts with im.compose"
            )
        alone = {"device_map": device_map, "language_dtype": own}
        model = named_model(str(source), kind, image_options, **alone)
        return placed(model, device, kind, int8, engine)
    for part in (vision, language):
        refuse_conversion(part, None if dtype in (None, "auto") else kind)
    if reader is not None:
        if connector is not None:
            raise ConfigError(f'"{source}" brings its own connector: leave connector= out')
        media_with((), image_options or {})
        if device_map is not None:
            raise ConfigError(
                f'device_map: "{source}" is a checkpoint of another project, which is read on one '
                "device: save it with im.save, and load that"
            )
        parts = {"vision": vision, "language": language, "tokenizer": tokenizer}
        return placed(reader.load(str(source), **parts), device, kind, int8, engine)
    folder = locate(source)
    description = describe(folder, "vlm")
    values = dict(description["config"])
    if values["connector"].get("type") == "own":
        if connector is None:
            raise CheckpointError(
                f"{folder} was trained with a connector of its owner's, "
                f"{values['connector']['class']}: pass one as load(..., connector=...)"
            )
        values["connector"] = {"type": "linear"}  # a stand-in, replaced below
    try:
        config = model_from_mapping(values, untrusted=folder)
    except ConfigError as error:
        raise CheckpointError(f"{folder / DESCRIPTION} cannot be used: {error}") from error
    config = replace(config, media=media_with(config.media, image_options or {}))
    files = {
        "vision": weight_files(config.vision.name if vision is None else ""),
        "language": weight_files(config.language.name if language is None else ""),
    }
    with read_together():
        encoder = saved_encoder(vision, config.vision, folder)
        lm = saved_language(language, config.language, tokenizer, folder, device_map, own)
    for part, module in (("vision", encoder.model), ("language", lm.model)):
        refuse_other_part(folder, description, part, files[part].fingerprint(module), config)
    width = fusion_config(config.fusion).width(lm.width, encoder.shape.width)
    options = connector if connector is not None else config.connector
    with in_memory(lm.input_embedding):
        strip = build_connector(options, encoder.shape, width, lm.input_embedding.weight)
    model = VisionLanguageModel(encoder, lm, strip, config).eval()
    for part, module in frozen_parts(model).items():
        if part not in files:
            refuse_other_part(folder, description, part, fingerprint(module), config)
    load_strip(model, folder)
    return placed(model, device, kind, int8, engine)


def load_strip(model: VisionLanguageModel, folder: str | Path, *, partly: bool = False) -> None:
    """Reads the strip of a saved model into a model of the same shape.

    Args:
        model: The model.
        folder: Where the strip was saved.
        partly: Whether each may have tensors that the other lacks, as a new stage of training
            does; they must share some.

    Raises:
        CheckpointError: If names or shapes differ; the message lists the first of them.
    """
    state, own = read_tensors(folder), strip_state(model)
    refuse_other_tensors(own, state, folder, partly=partly)
    model.load_state_dict({n: state[n] for n in own.keys() & state.keys()}, strict=False)


def read_tensors(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of a saved model by name.

    Raises:
        CheckpointError: If they cannot be read.
    """
    path = Path(folder) / WEIGHTS
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def refuse_other_tensors(
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    folder: str | Path,
    *,
    partly: bool = False,
) -> None:
    """Refuses saved tensors that are not those of a model.

    Args:
        own: The model's.
        state: The saved ones.
        folder: Where they were saved, for the message.
        partly: Whether each may have tensors that the other lacks, if they share some.

    Raises:
        CheckpointError: If names or shapes differ; the message lists the first of them.
    """
    shared = own.keys() & state.keys()
    missing = [f"{n} is missing" for n in sorted(own.keys() - state.keys())]
    unexpected = [f"{n} is unexpected" for n in sorted(state.keys() - own.keys())]
    differences = [] if partly and shared else [*missing, *unexpected]
    differences += [
        f"{n} is {tuple(state[n].shape)}, expected {tuple(own[n].shape)}"
        for n in sorted(shared)
        if own[n].shape != state[n].shape
    ]
    if differences:
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise CheckpointError(
            f"{folder} does not fit the model: {'; '.join(differences[:3])}{more}"
        )
