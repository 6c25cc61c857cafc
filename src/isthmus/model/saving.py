"""Saving and loading a model of either kind: vision-language models and dual encoders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isthmus.errors import ConfigError
from isthmus.model.backbones.refusals import CODE
from isthmus.model.checkpoint import (
    describe,
    is_transformers_folder,
    locate,
    save_vlm,
)
from isthmus.model.clip.checkpoint import load_clip, save_clip
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.join import reader_of
from isthmus.model.snapshots import fetched
from isthmus.model.vlm import VisionLanguageModel
from isthmus.model.whole import WholeModel, load_answering, refuse_whole

_VLM_ONLY = ("connector", "language")
_CLIP_ONLY = ("text", "preprocess", "pretrained")


def load(
    source: Any,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = "auto",
    image_options: Mapping[str, Any] | None = None,
    device_map: Any = None,
    engine: str = "torch",
    **parts: Any,
) -> Any:
    """Loads a model by its name or from a folder.

    Args:
        source: The name of a shipped model ("tiny", "tiny-clip"), a folder that `save` wrote, or a
            repository of the hub that holds one ("hf:USER/REPO"; `from_pretrained` takes a
            revision). A released vision-language model ("hf:llava-hf/llava-1.5-7b-hf", or a folder
            of such a repository); "hf+code:REPO" runs the code that comes with it. A language model
            alone ("hf:Qwen/Qwen3-0.6B"), which sees no images. A dual encoder of another library:
            "open_clip:ARCH/PRETRAINED", "hf:REPO" of Transformers' CLIP and SigLIP, a folder of
            theirs, or the model itself.
        device: "auto" (the best there is), "cpu", "cuda", "mps" or a `torch.device`.
        dtype: Data type of all weights: "auto" (see `machine`), a name or a `torch.dtype`; None is
            float32, which a model that is trained on needs. With "int8", and with "auto" on a CPU
            that is faster in it, the language model of a vision-language model computes in int8
            where no gradient is wanted (`model.backbones.int8_map`).
        image_options: Options of how images are opened, in place of the released or saved ones,
            where they are cut into tiles: `{"max_tiles": 4}`.
        device_map: Where the layers of a named language model are put, by Transformers and
            Accelerate, as in `compose`; the rest is where its input embedding is computed.
        engine: Who runs the language model where texts are generated: "torch", or "llama" for
            llama.cpp, for models whose images stand in the text (docs/serve.md).
        **parts: Parts that were handed in as objects when the model was made, as `vision=`. Of a
            vision-language model also `connector=`, `language=` and `tokenizer=`; of a dual
            encoder `text=`, and for a model of another library `tokenizer=`, `preprocess=` and
            `pretrained=`.

    Returns:
        A `VisionLanguageModel` or a `DualEncoder`, whichever was saved. Of a released model whose
        parts are not known here a `WholeModel`, which generates and scores closed answers.

    Raises:
        ConfigError: If a part is none of this kind of model, images have no such option, or a
            released model is of an unknown family.
        CheckpointError: If there is no such model, it is damaged, or its frozen parts are others
            than those that it was trained between.

    Example:
        >>> import isthmus as im, tempfile
        >>> model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
        >>> len(im.load(im.save(model, tempfile.mkdtemp())).layout)
        16
    """
    source = fetched(source)
    kind = kind_of(source)
    for name in parts:
        if name in (_CLIP_ONLY if kind == "vlm" else _VLM_ONLY):
            what = "a vision-language model" if kind == "vlm" else "a dual encoder"
            raise ConfigError(f'"{source}" is {what}, which has no part "{name}": leave it out')
    if kind == "vlm":
        return load_answering(
            source,
            device=device,
            dtype=dtype,
            image_options=image_options,
            device_map=device_map,
            engine=engine,
            **parts,
        )
    if device_map is not None:
        raise ConfigError(
            f'"{source}" is a dual encoder, which is on one device: leave device_map out'
        )
    if image_options:
        raise ConfigError(f'"{source}" is a dual encoder and has no image options: leave them out')
    if engine != "torch":
        raise ConfigError(
            f'"{source}" is a dual encoder, which generates nothing: leave engine out'
        )
    return load_clip(source, device=device, dtype=dtype, **parts)


def save(
    model: VisionLanguageModel | DualEncoder,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Saves what was trained of a model, and the names of the rest.

    Args:
        model: A vision-language model or a dual encoder.
        folder: Where to; made if missing.
        dtype: Precision of the file, for example `torch.float16`; None keeps the model's.
        extra: More entries for `isthmus.json`, such as how it was trained.

    Returns:
        The folder.

    Raises:
        CheckpointError: If a saved copy could not be loaded again.
        OutputError: If it cannot be written; what was there before is untouched.

    Example:
        >>> import isthmus as im, tempfile
        >>> model = im.DualEncoder.join("tiny-vit", "tiny-text", width=8)
        >>> im.load(im.save(model, tempfile.mkdtemp())).fingerprint() == model.fingerprint()
        True
    """
    refuse_whole(model, "a strip to save")
    if isinstance(model, DualEncoder):
        return save_clip(model, folder, dtype=dtype, extra=extra)
    return save_vlm(model, folder, dtype=dtype, extra=extra)


def kind_of(source: Any) -> str:
    """Whether a name, folder or object is a vision-language model or a dual encoder.

    Returns:
        "vlm" or "clip".

    Raises:
        CheckpointError: If it is neither.

    Example:
        >>> kind_of("tiny"), kind_of("tiny-clip"), kind_of("open_clip:ViT-B-32/openai")
        ('vlm', 'clip', 'clip')
    """
    if isinstance(source, nn.Module):
        return "vlm" if isinstance(source, VisionLanguageModel | WholeModel) else "clip"
    name = str(fetched(source))
    scheme, _, rest = name.partition(":")
    if scheme == "open_clip":
        return "clip"
    if scheme in ("asset", CODE):
        return "vlm"
    if reader_of(source) is not None:
        return "vlm"
    if scheme == "hf":
        return "clip" if _family(rest) else "vlm"
    if is_transformers_folder(name):
        return "clip" if _family(name) else "vlm"
    return str(describe(locate(name))["kind"])


def _family(place: str) -> bool:
    """Whether a repository or folder of Transformers has a dual encoder."""
    from isthmus.model.clip.transformers_model import FAMILIES

    config = Path(place) / "config.json"
    try:
        if config.is_file():
            return json.loads(config.read_text(encoding="utf-8")).get("model_type") in FAMILIES
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(place, trust_remote_code=False).model_type in FAMILIES
    except Exception:  # loading it says what is wrong
        return False
