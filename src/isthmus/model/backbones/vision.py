"""Vision encoders: timm, Transformers and open_clip models by name, or any of them as an object.

An encoder turns pixels into one feature vector per patch. It is frozen, stays in evaluation mode,
and brings its own preprocessing.

Letters: B images, N patches (with CLS and registers where they are kept), D width.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor, nn

from isthmus.config.model import VisionConfig
from isthmus.errors import CheckpointError, ConfigError, loading, suggestion
from isthmus.media.image import open_image
from isthmus.model.backbones.libraries import (
    Backbone,
    Features,
    Preprocess,
    from_object,
    from_open_clip,
    from_timm,
    from_transformers,
    open_clip_library,
)
from isthmus.model.backbones.tracing import frozen_graph

__all__ = ["Backbone", "FeatureShape", "Preprocess", "VisionEncoder", "load_vision"]

PREFIXES = ("timm:NAME", "hf:REPO", "open_clip:ARCH/PRETRAINED", "asset:NAME", "tiny-vit")
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class FeatureShape:
    """Shape of one image's features.

    Attributes:
        width: Width D.
        tokens: Number of vectors N.
        grid: (rows, columns) if the vectors are an image's patches row by row, else None.
    """

    width: int
    tokens: int
    grid: tuple[int, int] | None


class VisionEncoder(nn.Module):
    """A frozen vision encoder.

    Args:
        backbone: The model and how to call it.
        config: What it was loaded from; written into checkpoints.

    Attributes:
        shape: Shape of one image's features.
        image_size: (H, W) of the pixels.
    """

    def __init__(self, backbone: Backbone, config: VisionConfig) -> None:
        super().__init__()
        self.model = backbone.model
        self.config = config
        self.image_size = backbone.size
        self._features = backbone.features
        self._stages = backbone.stages
        self._scores = backbone.scores
        self._own = backbone.preprocess
        self._normalisation = (backbone.mean, backbone.std)
        self._convolutional = backbone.convolutional
        # What was traced, to its graph; None: it cannot be traced.
        self._traced: dict[Features, Features | None] = {}
        self.requires_grad_(False)
        self.eval()
        self._dropped, self.shape = self._probe(backbone)

    @torch.no_grad()
    def _probe(self, backbone: Backbone) -> tuple[int, FeatureShape]:
        """How many tokens in front are dropped, and what then remains."""
        found = self._features(torch.zeros(1, 3, *backbone.size, dtype=self._dtype))
        if found.ndim == 4:  # a feature map: its grid is in sight, and nothing stands before it
            _, width, rows, columns = found.shape
            return 0, FeatureShape(width, rows * columns, (rows, columns))
        _, tokens, width = found.shape
        grid, prefix = backbone.grid, backbone.prefix
        if grid is not None and (patches := grid[0] * grid[1]) <= tokens:
            prefix = tokens - patches if prefix is None else prefix
        prefix = prefix or 0
        patches = tokens - prefix
        if grid is None or grid[0] * grid[1] != patches:  # models that merge patches on the way
            grid = _grid(patches, backbone.size)
        if self.config.keep_cls and prefix:
            return 0, FeatureShape(width, tokens, None)
        return prefix, FeatureShape(width, patches, grid)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def train(self, mode: bool = True) -> VisionEncoder:
        """A frozen encoder never leaves evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Features (B, N, D) of pixels (B, 3, H, W), in the model's precision."""
        pixels = pixels.to(self._dtype)
        return self._tokens(self._fastest(self._features, pixels)(pixels))

    def stages(self, pixels: Tensor, *, classes: bool = False, gradients: bool = False) -> Tensor:
        """What every stage of a convolutional network sees, (B, W), in the model's precision.

        Of each of timm's stages, from the first to the last, the mean and the maximum over all
        places. Colours and textures are told apart by early stages, things by late ones, so all
        together tell more than the last alone (hypercolumns: Hariharan et al. 2015, arXiv
        1411.5752).

        Args:
            pixels: (B, 3, H, W).
            classes: Whether the scores of the model's own classifier follow, (B, W + C).
            gradients: Whether they flow into the model.

        Raises:
            ConfigError: If timm gives no maps of its stages, or it has no classifier.
        """
        function = self._scores if classes else self._stages
        if function is None:
            raise ConfigError(
                f"{self.config.name} has no classifier here: expected a network with one, such as "
                "asset:efficientnet-lite2, or timm.create_model(NAME, pretrained=True) handed in; "
                "timm:NAME is loaded without"
                if self._stages is not None
                else f"{self.config.name} has no stages: expected a convolutional network of timm"
            )
        pixels = pixels.to(self._dtype)
        if gradients:
            return function(pixels)
        with torch.no_grad():
            return self._fastest(function, pixels)(pixels)

    @torch.no_grad()
    def eager(self, pixels: Tensor) -> Tensor:
        """As `forward`, operation by operation, so that they can be counted."""
        return self._tokens(self._features(pixels))

    def with_gradients(self, pixels: Tensor) -> Tensor:
        """As `eager`, for a model that is being trained."""
        return self._tokens(self._features(pixels.to(self._dtype)))

    def _tokens(self, found: Tensor) -> Tensor:
        """The patches (B, N, D), row by row, of tokens or of a feature map (B, D, h, w)."""
        if found.ndim == 4:
            return found.flatten(2).transpose(1, 2)
        return found[:, self._dropped :]

    def _fastest(self, function: Features, pixels: Tensor) -> Features:
        """A function of the model, or its traced copy where there is one that takes these pixels.

        A CPU runs a convolutional network several times faster as one graph with its
        normalisation folded into its convolutions.
        """
        if not self._convolutional or pixels.device.type != "cpu":
            return function
        if pixels.dtype != torch.float32 or tuple(pixels.shape[2:]) != self.image_size:
            return function
        if function not in self._traced:
            self._traced[function] = frozen_graph(self.model, function, self.image_size)
        return self._traced[function] or function

    # A graph holds copies of the weights, so it goes when they are replaced or moved, and it is
    # not part of a copy of the encoder.

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VisionEncoder:
        self._traced = {}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._traced = {}
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_traced": {}}

    def preprocess(self, image: Image.Image) -> Tensor:
        """Pixels (3, H, W), float32, of an image; transparency is laid over white.

        As the encoder's own library does it ("own"), or the whole image, padded with white to
        the encoder's aspect ("pad") or squeezed into it ("squash").

        Raises:
            ConfigError: If the encoder was handed in without its preprocessing, or its own gives
                pixels of another size than the encoder's.
        """
        if image.mode != "RGB":
            image = open_image(image)
        if self.config.resize == "own":
            pixels = self._own(image).float()
            if tuple(pixels.shape) != (3, *self.image_size):
                raise ConfigError(
                    f"preprocessing gave {tuple(pixels.shape)}: expected "
                    f'{(3, *self.image_size)}; pass resize="squash" or "pad", or another preprocess'
                )
            return pixels
        mean, std = self._normalisation
        if mean is None or std is None:
            raise ConfigError(
                f'resize="{self.config.resize}" needs the mean and standard deviation that '
                f"{self.config.name} was trained with: pass its image processor as preprocess="
            )
        height, width = self.image_size
        if self.config.resize == "pad":
            fitted = ImageOps.contain(image, (width, height), Image.Resampling.BICUBIC)
            image = Image.new("RGB", (width, height), WHITE)
            image.paste(fitted, ((width - fitted.width) // 2, (height - fitted.height) // 2))
        else:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(height, width, 3).permute(2, 0, 1).float() / 255
        return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def _grid(patches: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of the patches of an image of this size; None if they are no grid."""
    for rows in range(1, patches + 1):
        if patches % rows == 0 and rows * size[1] == patches // rows * size[0]:
            return rows, patches // rows
    return None


def load_vision(
    source: str | VisionConfig | nn.Module,
    *,
    pretrained: bool = True,
    preprocess: Preprocess | Any = None,
    feature_layer: int | None = None,
    keep_cls: bool | None = None,
    resize: Literal["own", "pad", "squash"] | None = None,
) -> VisionEncoder:
    """Loads a vision encoder by name, or wraps one.

    Args:
        source: "timm:NAME", "hf:REPO" (a hub name or a folder), "open_clip:ARCH/PRETRAINED",
            "asset:NAME", "tiny-vit", a `VisionConfig`, or a model of one of those libraries.
        pretrained: Whether to fetch weights; without, they are random.
        preprocess: An image to pixels (3, H, W), in place of the encoder's own; or, for a
            Transformers model, its image processor.
        feature_layer: Which block's output, in place of the configuration's; what the numbers
            mean in each library is told by `isthmus.model.backbones.libraries`.
        keep_cls: Whether class and register tokens stay, in place of the configuration's.
        resize: How an image is made to fit, in place of the configuration's.

    Raises:
        ConfigError: If the name has an unknown form, or the model has no such layer.
        CheckpointError: If its library has no such model, or the weights cannot be fetched.
        MissingExtraError: If open_clip is asked for and not installed.

    Example:
        >>> load_vision("tiny-vit").shape
        FeatureShape(width=32, tokens=16, grid=(4, 4))
    """
    options = {"feature_layer": feature_layer, "keep_cls": keep_cls, "resize": resize}
    changes: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
    if isinstance(source, VisionEncoder):
        if changes or preprocess is not None:
            raise ConfigError(
                "got a VisionEncoder, which is fixed, and options for it: pass the model that it "
                "was made of"
            )
        return source
    processor = preprocess if hasattr(preprocess, "image_mean") else None
    if isinstance(source, nn.Module):
        config = VisionConfig(name=f"object:{type(source).__name__}", **changes)
        backbone = from_object(source, config, processor)
    else:
        config = VisionConfig(name=source) if isinstance(source, str) else source
        config = replace(config, **changes)
        backbone = _fetch(config, pretrained, processor)
    if preprocess is not None and processor is None:
        backbone = replace(backbone, preprocess=preprocess)
    return VisionEncoder(backbone, config)


def _fetch(config: VisionConfig, pretrained: bool, processor: Any) -> Backbone:
    """The model behind a name."""
    if config.name == "tiny-vit":
        from isthmus.model.backbones.tiny import tiny_vit_model

        return from_timm(tiny_vit_model(), config)
    scheme, _, rest = config.name.partition(":")
    if scheme not in ("timm", "asset", "hf", "open_clip") or not rest:
        raise ConfigError(f'unknown vision encoder "{config.name}": {_meant(scheme)}')
    with loading(config.name, "a folder or a model"):
        if scheme == "timm":
            return from_timm(_timm_model(rest, pretrained), config)
        if scheme == "asset":
            return from_timm(_asset_model(rest), config)
        if scheme == "hf":
            return from_transformers(*_transformers_model(rest, pretrained, config, processor))
        return from_open_clip(*open_clip_model(rest, pretrained, config))


def _meant(name: str) -> str:
    """The form of a name that was probably meant, and all forms."""
    forms = {form.partition(":")[0]: form for form in PREFIXES}
    close = difflib.get_close_matches(name, forms, n=1)
    return suggestion(forms[close[0]] if close else name, PREFIXES)


def _near(name: str, known: Iterable[str]) -> str:
    """For names of which there are too many to list."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"did you mean {', '.join(close)}?" if close else "check the spelling"


def _timm_model(name: str, pretrained: bool) -> Any:
    import timm

    if ":" not in name and not timm.is_model(name.partition(".")[0]):
        hint = _near(name, timm.list_models())
        raise CheckpointError(f'cannot load "timm:{name}": timm has no such model; {hint}')
    return timm.create_model(name, pretrained=pretrained, num_classes=0)


def _asset_model(name: str) -> Any:
    import timm

    from isthmus.assets import registry as assets

    folder: Path = assets.fetch_asset(name)
    settings = folder / "config.json"
    told = json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {}
    if "architecture" not in told:
        raise ConfigError(f'the asset "{name}" is no vision encoder; try asset:efficientnet-lite2')
    with torch.device("meta"):  # no time for random weights that the file's take the place of
        model = timm.create_model(told["architecture"], pretrained_cfg=told["pretrained_cfg"])
    model.to_empty(device="cpu")
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


def _transformers_model(
    name: str, pretrained: bool, config: VisionConfig, processor: Any
) -> tuple[Any, VisionConfig, Any]:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    if pretrained:
        model = AutoModel.from_pretrained(name)
    else:
        model = AutoModel.from_config(AutoConfig.from_pretrained(name))
    return model, config, processor or AutoImageProcessor.from_pretrained(name)


def open_clip_model(
    name: str, pretrained: bool, config: VisionConfig
) -> tuple[Any, VisionConfig, Any]:
    library = open_clip_library()
    options: dict[str, Any] = {}
    if ":" in name:  # open_clip's own forms, hf-hub:REPO and local-dir:FOLDER
        arch, options["load_weights"] = name, pretrained
    else:
        arch, _, tag = name.partition("/")
        if arch not in library.list_models():
            hint = _near(arch, library.list_models())
            raise CheckpointError(
                f'cannot load "{config.name}": open_clip has no model {arch}; {hint}'
            )
        tags = library.list_pretrained_tags_by_model(arch)
        if pretrained and tag not in tags and not Path(tag).is_file():
            raise CheckpointError(
                f'cannot load "{config.name}": open_clip has no weights "{tag}" of {arch}, but: '
                f"{', '.join(tags) or 'none'}"
            )
        trained = library.get_pretrained_cfg(arch, tag) or {}
        # open_clip only warns of another activation than the weights were trained with
        options["force_quick_gelu"] = trained.get("quick_gelu", False)
        if pretrained:
            options["pretrained"] = tag
    model, _, transform = library.create_model_and_transforms(arch, **options)
    return model, config, transform
