"""Joining parts to a model, by their names or as objects; models that have a name in whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from isthmus.config.model import LanguageConfig, ModelConfig, TokensConfig, media_with
from isthmus.config.registry import CHECKPOINTS, RELEASED
from isthmus.errors import CheckpointError, ConfigError
from isthmus.machine import device_for, dtype_for
from isthmus.model.backbones.language import LanguageModel, load_language
from isthmus.model.backbones.placement import computing_device, in_memory, is_dispatched
from isthmus.model.backbones.precision import refuse_conversion
from isthmus.model.backbones.refusals import CODE, refuse_code, refuse_others, refuse_whole_name
from isthmus.model.backbones.released import family_of, read, read_together
from isthmus.model.backbones.vision import load_vision
from isthmus.model.connectors import build_connector
from isthmus.model.connectors.linear import Linear
from isthmus.model.fusion import fusion_config
from isthmus.model.fusion.inline import Inline
from isthmus.model.media.native import NativeImages
from isthmus.model.vlm import VisionLanguageModel


def compose(
    vision: Any,
    language: Any,
    connector: Any,
    fusion: Any = None,
    *,
    media: Sequence[Any] = (),
    template: str = "plain",
    tokens: TokensConfig | None = None,
    tokenizer: Any = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
) -> VisionLanguageModel:
    """Joins a vision encoder and a language model.

    Args:
        vision: A name ("timm:...", "hf:...", "open_clip:..."), a `VisionConfig`, or an object.
        language: A name ("hf:..."), a `LanguageConfig`, or a Transformers causal LM.
        connector: A connector's options, for example `Resampler(latents=64)`, or a module of
            your own that fits `connectors.Connector`.
        fusion: `Inline()` (the default) or `CrossAttention(...)`.
        media: Configurations of media besides images and clips (see `model.media`). An encoder
            that reads images at their own resolution gets `NativeImages()` without being asked.
        template: How questions become prompts.
        tokens: The token of the language model's own vocabulary that stands for an image; None
            adds one, and one that ends an answer, whose rows are trained.
        tokenizer: Needed where `language` is an object.
        device: "auto" (where a language model handed in as an object is, otherwise the best there
            is), "cpu", "cuda", "mps" or a `torch.device`.
        dtype: Data type of all weights; None keeps that of the parts, float32 where they are named.
            A strip that is to be trained needs float32; training has a precision of its own.
        device_map: Where the layers of a named language model are put, by Transformers and
            Accelerate: "auto", or a mapping of names of modules to devices (0, "cpu", "disk").
            The encoder and the strip are then where its input embedding is computed; `dtype` is
            that of its file where None.

    Returns:
        The model in evaluation mode; training switches its mode itself.

    Raises:
        ConfigError: If a part is unknown, the parts do not fit, there is no such device, `dtype`
            would convert a `LanguageModel` or `VisionEncoder` that may be in use elsewhere, or a
            device_map comes with `device` or with a fusion that acts between layers.

    Example:
        >>> import isthmus as im
        >>> im.compose("tiny-vit", "tiny-lm", im.MLP()).connector.num_tokens
        16
    """
    place = device_for(device)  # said before anything is loaded
    if isinstance(language, nn.Module) and device == "auto" and not is_dispatched(language):
        place = next(language.parameters()).device
    kind = None if dtype is None else dtype_for(dtype, place)
    for part in (vision, language):
        refuse_conversion(part, kind)
    with read_together():
        encoder = load_vision(vision)
        lm = _language(language, tokenizer, kind, device_map)
    options = Inline() if fusion is None else fusion
    if lm.placed:
        place = strip_device(lm, device, options)
    if encoder.shape.native is not None and not any(isinstance(m, NativeImages) for m in media):
        media = (NativeImages(), *media)
    width = fusion_config(options).width(lm.width, encoder.shape.width)
    with in_memory(lm.input_embedding):
        strip = build_connector(connector, encoder.shape, width, lm.input_embedding.weight)
    config = ModelConfig(
        vision=encoder.config,
        language=lm.config,
        connector=None if isinstance(connector, nn.Module) else connector,
        fusion=options,
        media=tuple(media),
        template=template,
        tokens=tokens,
    )
    model = VisionLanguageModel(encoder, lm, strip, config).eval()
    return model.to(device=place, dtype=kind)


def _language(
    source: Any, tokenizer: Any, dtype: torch.dtype | None, device_map: Any
) -> LanguageModel:
    """The language model; one that a map places is read in its data type, never converted."""
    config = isinstance(source, LanguageConfig) and source.device_map is not None
    kind = dtype if config or device_map is not None else None
    return load_language(source, tokenizer=tokenizer, dtype=kind, device_map=device_map)


def strip_device(language: LanguageModel, device: str | torch.device, fusion: Any) -> torch.device:
    """Where the encoder and the strip go, beside a language model that a map places.

    Args:
        language: The language model.
        device: As for `compose`.
        fusion: The configuration of the fusion.

    Raises:
        ConfigError: If another device is asked for, or the strip acts on more than one.
    """
    place = language.device
    if device != "auto" and device_for(device) != place:
        raise ConfigError(
            f'device="{device}" came with a language model whose device_map computes the input '
            f'embedding on {place}, where the strip has to be: expected device="auto"'
        )
    places = {computing_device(layer) for layer in language.layers}
    width = language.width  # more than that is added behind layers
    outside = getattr(fusion, "added", None) == "" and fusion.width(width, width) == width
    if not outside and places != {place}:
        raise ConfigError(
            f"{type(fusion).__name__} acts between the decoder layers, and device_map computes "
            f"these on {', '.join(sorted(map(str, places)))}: expected the fusion Inline() without "
            "options, or one device that computes"
        )
    return place


def bare_language_model(
    language: Any,
    *,
    tokenizer: Any = None,
    device_map: Any = None,
    dtype: torch.dtype | None = None,
) -> VisionLanguageModel:
    """A language model alone, for prompts, engine and tasks that need no images.

    Args:
        language: As for `compose`.
        tokenizer: Likewise.
        device_map: Likewise.
        dtype: Likewise.

    Returns:
        A model that refuses images. Its strip is a stand-in that nothing goes through: without
        images a model is always its bare language model.

    Example:
        >>> bare_language_model("tiny-lm").text_only
        True
    """
    parts = {"tokenizer": tokenizer, "device_map": device_map, "dtype": dtype}
    model = compose("tiny-vit", language, Linear(), template="qa", **parts)
    model.text_only = True
    return model.requires_grad_(False)


class Reader(Protocol):
    """Reads another project's checkpoints; its class is registered in `registry.CHECKPOINTS`.

    What comes out is a model of our own parts, and is saved like one: the strip, and the names of
    the frozen parts.
    """

    @staticmethod
    def takes(source: str) -> bool:
        """Whether a name, folder or file is of its kind; nothing is read."""
        ...

    @staticmethod
    def load(
        source: str, *, vision: Any = None, language: Any = None, tokenizer: Any = None
    ) -> VisionLanguageModel:
        """The model, on the CPU; the parts are as `load_vlm` takes them.

        Raises:
            ConfigError: If a frozen part is not known, or cannot be what it has to be.
            CheckpointError: If the checkpoint cannot be read, or does not fit the parts.
        """
        ...


def reader_of(source: str | Path) -> type[Reader] | None:
    """Who reads a checkpoint of another project's; None if it is of no kind that is known.

    Example:
        >>> reader_of("tiny") is None
        True
    """
    readers = (CHECKPOINTS.find(name) for name in CHECKPOINTS.names())
    return next((reader for reader in readers if reader.takes(str(source))), None)


def named_model(
    source: str,
    dtype: torch.dtype = torch.float32,
    image_options: Mapping[str, Any] | None = None,
    *,
    device_map: Any = None,
    language_dtype: torch.dtype | None = None,
) -> VisionLanguageModel:
    """A model of Transformers: a released vision-language model, or a language model alone.

    A released model becomes one of our parts, its own modules: its vision tower, its decoder with
    its head, its projector, and tokens of its vocabulary. It prompts by its chat template.

    Args:
        source: "hf:REPO", "asset:NAME" or a folder of Transformers.
        dtype: Precision in which a released model is read.
        image_options: Options of how its images are opened, as in `load`.
        device_map: Where the layers of a language model alone are put, as in `compose`.
        language_dtype: Its data type then; None is that of its file.

    Raises:
        CheckpointError: If it cannot be read, or a folder that stands for a whole model holds a
            language model alone.
        ConfigError: If it is a vision-language model of an unknown family, or has what our parts
            lack.

    Example:
        >>> import tempfile
        >>> from isthmus.model.backbones.tiny_llava import write_tiny_llava
        >>> model = named_model(str(write_tiny_llava(tempfile.mkdtemp())))
        >>> model.config.vision.feature_layer, model.config.connector
        (-2, MLP(depth=2, bias=True))
    """
    scheme, _, place = source.partition(":")
    known = scheme in ("hf", "asset", CODE)
    if not known:
        source = f"hf:{Path(source).resolve()}"
        place = source.partition(":")[2]
    if image_options and (scheme == "asset" or family_of(place) is None):
        media_with((), image_options)
    alone = {"device_map": device_map, "dtype": language_dtype}
    if scheme == "asset":
        return bare_language_model(source, **alone)
    refuse_code(source)
    refuse_others(source)
    refuse_whole_name(source)
    if family_of(place) is not None:
        if device_map is not None:
            raise ConfigError(
                f'device_map: "{source}" is a vision-language model, which is taken apart on one '
                "device: expected a language model alone, or a model that im.compose joined"
            )
        return _released(source, dtype, image_options or {})
    if not known:
        raise CheckpointError(
            f'"{place}" holds no vision-language model of a family that is known here '
            f'({", ".join(RELEASED.names())}): name a language model alone as "{source}", or join '
            "it to a vision encoder with im.compose"
        )
    return bare_language_model(source, **alone)


def _released(
    name: str, dtype: torch.dtype, image_options: Mapping[str, Any]
) -> VisionLanguageModel:
    with read_together(dtype):
        encoder, lm = load_vision(name), load_language(name)
        whole = read(name)
    plan = whole.plan
    fusion = Inline() if plan.fusion is None else plan.fusion
    width = fusion_config(fusion).width(lm.width, encoder.shape.width)
    with torch.device("meta"):  # the released tensors take the place of new ones
        strip = build_connector(plan.connector, encoder.shape, width)
    strip.load_state_dict(dict(whole.connector), assign=True)
    config = ModelConfig(
        vision=encoder.config,
        language=lm.config,
        connector=plan.connector,
        fusion=fusion,
        media=media_with(plan.media, image_options),
        template=plan.template or ("chat" if lm.tokenizer.chat_template else "plain"),
        tokens=plan.tokens(lm.tokenizer),
    )
    model = VisionLanguageModel(encoder, lm, strip, config).eval()
    if whole.medium:
        medium: Any = model.media[0]  # the plan's, which is asked first
        medium.load_state_dict(dict(whole.medium), assign=True)
    return model
