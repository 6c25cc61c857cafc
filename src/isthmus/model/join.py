"""Joining parts to a model, by their names or as objects; models that have a name in whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from isthmus.config.model import ModelConfig, TokensConfig, media_with
from isthmus.config.registry import CHECKPOINTS, RELEASED
from isthmus.errors import CheckpointError
from isthmus.machine import device_for, dtype_for
from isthmus.model.backbones.language import load_language
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

    Returns:
        The model in evaluation mode; training switches its mode itself.

    Raises:
        ConfigError: If a part is unknown, the parts do not fit, there is no such device, or `dtype`
            would convert a `LanguageModel` or `VisionEncoder` that may be in use elsewhere.

    Example:
        >>> import isthmus as im
        >>> im.compose("tiny-vit", "tiny-lm", im.MLP()).connector.num_tokens
        16
    """
    if isinstance(language, nn.Module) and device == "auto":
        device = next(language.parameters()).device
    place = device_for(device)  # said before anything is loaded
    kind = None if dtype is None else dtype_for(dtype, place)
    for part in (vision, language):
        refuse_conversion(part, kind)
    with read_together():
        encoder = load_vision(vision)
        lm = load_language(language, tokenizer=tokenizer)
    if encoder.shape.native is not None and not any(isinstance(m, NativeImages) for m in media):
        media = (NativeImages(), *media)
    options = Inline() if fusion is None else fusion
    width = fusion_config(options).width(lm.width, encoder.shape.width)
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


def bare_language_model(language: Any, *, tokenizer: Any = None) -> VisionLanguageModel:
    """A language model alone, for prompts, engine and tasks that need no images.

    Args:
        language: As for `compose`.
        tokenizer: Likewise.

    Returns:
        A model that refuses images. Its strip is a stand-in that nothing goes through: without
        images a model is always its bare language model.

    Example:
        >>> bare_language_model("tiny-lm").text_only
        True
    """
    model = compose("tiny-vit", language, Linear(), template="qa", tokenizer=tokenizer)
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
) -> VisionLanguageModel:
    """A model of Transformers: a released vision-language model, or a language model alone.

    A released model becomes one of our parts, its own modules: its vision tower, its decoder with
    its head, its projector, and tokens of its vocabulary. It prompts by its chat template.

    Args:
        source: "hf:REPO", "asset:NAME" or a folder of Transformers.
        dtype: Precision in which a released model is read.
        image_options: Options of how its images are opened, as in `load`.

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
    if scheme == "asset":
        return bare_language_model(source)
    refuse_code(source)
    refuse_others(source)
    refuse_whole_name(source)
    if family_of(place) is not None:
        return _released(source, dtype, image_options or {})
    if not known:
        raise CheckpointError(
            f'"{place}" holds no vision-language model of a family that is known here '
            f'({", ".join(RELEASED.names())}): name a language model alone as "{source}", or join '
            "it to a vision encoder with im.compose"
        )
    return bare_language_model(source)


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
