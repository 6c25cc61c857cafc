"""Vision encoders: timm, Transformers and open_clip models by name, or any of them as an object.

An encoder turns pixels into one feature vector per patch. It is frozen, stays in evaluation mode,
and brings its own preprocessing.

Letters: B pictures, N patches (with CLS and registers where they are kept), D width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from isthmus.config import VisionConfig
from isthmus.errors import CheckpointError, ConfigError, MissingExtraError, suggestion

PREFIXES = ("timm:NAME", "hf:REPO", "open_clip:ARCH/PRETRAINED", "asset:NAME", "tiny-vit")
WHITE = (255, 255, 255)

Preprocess = Callable[[Image.Image], Tensor]
Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FeatureShape:
    """Shape of one picture's features.

    Attributes:
        width: Width D.
        tokens: Number of vectors N.
        grid: (rows, columns) if the vectors are a picture's patches row by row, else None.
    """

    width: int
    tokens: int
    grid: tuple[int, int] | None


@dataclass(frozen=True)
class Backbone:
    """A vision model in the one form that `VisionEncoder` needs, whatever library it is from.

    Attributes:
        model: The model, whose parameters are frozen.
        features: Pixels (B, 3, H, W) to all tokens (B, prefix + N, D) of the chosen layer.
        preprocess: A picture to pixels (3, H, W), the library's own way.
        size: (H, W) of its input.
        prefix: How many CLS and register tokens stand before the patches.
        mean: Its normalisation, per channel.
        std: Its normalisation, per channel.
        convolutional: Whether it is a convolutional network, which a CPU runs several times
            faster as one traced graph (normalisation folded into convolutions).
    """

    model: nn.Module
    features: Features
    preprocess: Preprocess
    size: tuple[int, int]
    prefix: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    convolutional: bool = False


class VisionEncoder(nn.Module):
    """A frozen vision encoder.

    Args:
        backbone: The model and how to call it.
        config: What it was loaded from; written into checkpoints.

    Attributes:
        shape: Shape of one picture's features.
        image_size: (H, W) of the pixels.
    """

    def __init__(self, backbone: Backbone, config: VisionConfig) -> None:
        super().__init__()
        self.model = backbone.model
        self.config = config
        self.image_size = backbone.size
        self._features = backbone.features
        self._own = backbone.preprocess
        self._normalisation = (backbone.mean, backbone.std)
        self._dropped = 0 if config.keep_cls else backbone.prefix
        self._convolutional = backbone.convolutional
        self._graph: Features | None = None
        self.requires_grad_(False)
        self.eval()
        with torch.no_grad():
            _, tokens, width = self(torch.zeros(1, 3, *backbone.size)).shape
        patches = tokens - (backbone.prefix - self._dropped)
        grid = _grid(patches, backbone.size)
        self.shape = FeatureShape(width, tokens, grid if patches == tokens else None)

    def train(self, mode: bool = True) -> VisionEncoder:
        """A frozen encoder never leaves evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Features (B, N, D) of pixels (B, 3, H, W), in the model's precision."""
        weight = next(self.model.parameters())
        pixels = pixels.to(weight.dtype)
        if self._convolutional and weight.device.type == "cpu" and weight.dtype == torch.float32:
            if self._graph is None:
                self._graph = _frozen_graph(self.model, self._features, pixels)
            return self._graph(pixels)[:, self._dropped :]
        return self._features(pixels)[:, self._dropped :]

    @torch.no_grad()
    def eager(self, pixels: Tensor) -> Tensor:
        """As `forward`, operation by operation, so that they can be counted."""
        return self._features(pixels)[:, self._dropped :]

    def preprocess(self, picture: Image.Image) -> Tensor:
        """Pixels (3, H, W), float32, of an RGB picture.

        As the encoder's own library does it ("own"), or the whole picture, padded with white to
        the encoder's aspect ("pad") or squeezed into it ("squash").
        """
        if self.config.resize == "own":
            return self._own(picture.convert("RGB"))
        height, width = self.image_size
        picture = picture.convert("RGB")
        if self.config.resize == "pad":
            fitted = ImageOps.contain(picture, (width, height), Image.Resampling.BICUBIC)
            picture = Image.new("RGB", (width, height), WHITE)
            picture.paste(fitted, ((width - fitted.width) // 2, (height - fitted.height) // 2))
        else:
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(height, width, 3).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(v)[:, None, None] for v in self._normalisation)
        return (pixels - mean) / std


def _frozen_graph(model: nn.Module, features: Features, pixels: Tensor) -> Features:
    """The model as one traced graph with its weights frozen in."""

    class Traced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return features(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer is in maintenance, and works
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            Traced().eval(), pixels, check_trace=False
        )
        graph: Features = torch.jit.freeze(traced)
    return graph


def _grid(patches: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of the patches of a picture of this size; None if they are no grid."""
    for rows in range(1, patches + 1):
        if patches % rows == 0 and rows * size[1] == patches // rows * size[0]:
            return rows, patches // rows
    return None


def load_vision(
    source: str | VisionConfig | nn.Module,
    *,
    pretrained: bool = True,
    preprocess: Preprocess | None = None,
) -> VisionEncoder:
    """Loads a vision encoder by name, or wraps one.

    Args:
        source: "timm:NAME", "hf:REPO" (a hub name or a folder), "open_clip:ARCH/PRETRAINED",
            "asset:NAME", "tiny-vit", a `VisionConfig`, or a model of one of those libraries.
        pretrained: Whether to fetch weights; without, they are random.
        preprocess: A picture to pixels (3, H, W), in place of the encoder's own.

    Raises:
        ConfigError: If the name has an unknown form.
        CheckpointError: If the weights cannot be fetched.
        MissingExtraError: If open_clip is asked for and not installed.

    Example:
        >>> load_vision("tiny-vit").shape
        FeatureShape(width=32, tokens=16, grid=(4, 4))
    """
    if isinstance(source, VisionEncoder):
        return source
    if isinstance(source, nn.Module):
        config = VisionConfig(name=f"object:{type(source).__name__}")
        backbone = _wrap(source, config, None)
    else:
        config = VisionConfig(name=source) if isinstance(source, str) else source
        try:
            backbone = _fetch(config, pretrained)
        except (OSError, RuntimeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f'cannot load "{config.name}": {reason}') from error
    if preprocess is not None:
        backbone = replace(backbone, preprocess=preprocess)
    return VisionEncoder(backbone, config)


def _fetch(config: VisionConfig, pretrained: bool) -> Backbone:
    """The model behind a name."""
    if config.name == "tiny-vit":
        from isthmus.backbones.tiny import tiny_vit_model

        return _timm(tiny_vit_model(), config)
    scheme, _, rest = config.name.partition(":")
    if scheme == "timm" and rest:
        import timm

        return _timm(timm.create_model(rest, pretrained=pretrained, num_classes=0), config)
    if scheme == "asset" and rest:
        import timm

        from isthmus import assets

        weights = assets.fetch(rest) / "model.safetensors"
        model = timm.create_model("tf_efficientnet_lite2", checkpoint_path=str(weights))
        return _timm(model, config)
    if scheme == "hf" and rest:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel

        model = (
            AutoModel.from_pretrained(rest)
            if pretrained
            else AutoModel.from_config(AutoConfig.from_pretrained(rest))
        )
        return _transformers(model, config, AutoImageProcessor.from_pretrained(rest))
    if scheme == "open_clip" and rest:
        open_clip = _open_clip_library()
        arch, _, weights_name = rest.partition("/")
        model, _, transform = open_clip.create_model_and_transforms(
            arch, pretrained=weights_name if pretrained and weights_name else None
        )
        return _open_clip(model, config, transform)
    raise ConfigError(
        f'unknown vision encoder "{config.name}": {suggestion(config.name, PREFIXES)}'
    )


def _open_clip_library() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise MissingExtraError("an open_clip vision encoder", "clip") from error
    return open_clip


def _wrap(model: nn.Module, config: VisionConfig, transform: Any) -> Backbone:
    """Finds out which library an object is from."""
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel):
        return _transformers(model, config, None)
    if hasattr(model, "forward_features") and hasattr(model, "pretrained_cfg"):
        return _timm(model, config)
    if hasattr(model, "visual") or type(model).__module__.startswith("open_clip"):
        return _open_clip(model, config, transform)
    raise ConfigError(
        f"{type(model).__name__} is no timm, Transformers or open_clip vision model; give it "
        "the form of isthmus.backbones.vision.Backbone and pass VisionEncoder(backbone, config)"
    )


def _timm(model: Any, config: VisionConfig) -> Backbone:
    """A timm model. Feature maps (B, D, h, w) become tokens row by row.

    Layer -1 is `forward_features`, final norm included; -2 and below are earlier blocks'
    outputs, by timm's own `forward_intermediates`.
    """
    import timm.data

    data = timm.data.resolve_model_data_config(model)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size is not None:  # what the model was built for, whatever its weights were trained at
        data["input_size"] = (3, *size)
    conv = not hasattr(model, "num_prefix_tokens")

    def tokens(x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2) if x.ndim == 4 else x

    def features(pixels: Tensor) -> Tensor:
        if conv:
            # the layout in which convolutions are fastest; the values are the same
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        if config.feature_layer == -1:
            return tokens(model.forward_features(pixels))
        kept = model.forward_intermediates(
            pixels,
            indices=-config.feature_layer,
            intermediates_only=True,
            **({} if conv else {"output_fmt": "NLC", "return_prefix_tokens": True}),
        )[0]
        if isinstance(kept, tuple):
            patches, prefix = kept
            return torch.cat([prefix, patches], dim=1)
        return tokens(kept)

    return Backbone(
        model=model.to(memory_format=torch.channels_last) if conv else model,
        features=features,
        preprocess=timm.data.create_transform(**data, is_training=False),
        size=tuple(data["input_size"][1:]),
        prefix=getattr(model, "num_prefix_tokens", 0),
        mean=data["mean"],
        std=data["std"],
        convolutional=conv,
    )


def _transformers(model: Any, config: VisionConfig, processor: Any) -> Backbone:
    """A Transformers vision model, or the vision tower of a dual encoder.

    Layers count as in `hidden_states`, as LLaVA does: -1 is the last block's output before any
    final norm, -2 the one before it.
    """
    tower = getattr(model, "vision_model", model)
    if hasattr(tower, "vision_model"):
        tower = tower.vision_model
    size = tower.config.image_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    patch = tower.config.patch_size
    patches = (size[0] // patch) * (size[1] // patch)

    def features(pixels: Tensor) -> Tensor:
        states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        hidden: Tensor = states[config.feature_layer]
        return hidden

    with torch.no_grad():
        found = features(torch.zeros(1, 3, *size, dtype=tower.dtype)).shape[1]
    mean = tuple(getattr(processor, "image_mean", None) or (0.5,) * 3)
    std = tuple(getattr(processor, "image_std", None) or (0.5,) * 3)

    def preprocess(picture: Image.Image) -> Tensor:
        if processor is None:
            raise ConfigError("a Transformers model handed in as an object needs preprocess=")
        pixels: Tensor = processor(images=picture, return_tensors="pt")["pixel_values"][0]
        return pixels

    return Backbone(tower, features, preprocess, size, found - patches, mean, std)


def _open_clip(model: Any, config: VisionConfig, transform: Any) -> Backbone:
    """An open_clip model's visual tower, before pooling and projection.

    Since open_clip 2.23 its own token output passes through the final LayerNorm, before it did
    not (OpenFlamingo's released weights expect the latter). Here layer -1 is always the last
    block's output without it.
    """
    visual = getattr(model, "visual", model)
    if not hasattr(visual, "transformer"):
        raise ConfigError(
            f"open_clip's {type(visual).__name__} has no patch tokens; name a ViT, or take the "
            "same tower from timm"
        )
    size = visual.image_size
    size = (size, size) if isinstance(size, int) else tuple(size)

    def features(pixels: Tensor) -> Tensor:
        kept = visual.forward_intermediates(
            pixels,
            indices=-config.feature_layer,
            intermediates_only=True,
            normalize_intermediates=False,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        patches: Tensor = kept["image_intermediates"][0]
        prefix: Tensor = kept["image_intermediates_prefix"][0]
        return torch.cat([prefix, patches], dim=1)

    mean = getattr(visual, "image_mean", None) or (0.48145466, 0.4578275, 0.40821073)
    std = getattr(visual, "image_std", None) or (0.26862954, 0.26130258, 0.27577711)
    if transform is None:
        transform = _open_clip_library().image_transform(size, False, mean=mean, std=std)
    return Backbone(visual, features, transform, size, 1, tuple(mean), tuple(std))
