"""Vision encoders: timm, Transformers and open_clip models by name, or any of them as an object.

An encoder turns pixels into one feature vector per patch. It is frozen, stays in evaluation mode,
and brings its own preprocessing.

Letters: B images, N patches (with CLS and registers where they are kept), D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.config.model import VisionConfig
from isthmus.errors import ConfigError
from isthmus.media.image import open_image
from isthmus.model.backbones.backbone import Backbone, Features, Preprocess
from isthmus.model.backbones.feature_shape import FeatureShape, RegionShape
from isthmus.model.backbones.libraries import from_object
from isthmus.model.backbones.native import from_native, is_native
from isthmus.model.backbones.rotary import exact_frequencies
from isthmus.model.backbones.tracing import frozen_graph
from isthmus.model.backbones.vision_names import fetch, own_features

__all__ = ["Backbone", "Preprocess", "VisionEncoder", "load_vision"]

WHITE = (255, 255, 255)


class VisionEncoder(nn.Module):
    """A frozen vision encoder.

    Args:
        backbone: The model and how to call it.
        config: What it was loaded from; written into checkpoints.

    Attributes:
        shape: Shape of one image's features.
        image_size: (H, W) of the pixels, of a typical image where `shape.native` is set.
        processor: Transformers' image processor, where the encoder's own preprocessing is one.
        traces: Whether a CPU runs it as one traced graph where it is convolutional. To trace it
            takes as long as some hundred images gain by it.
    """

    def __init__(self, backbone: Backbone, config: VisionConfig) -> None:
        super().__init__()
        self.model = backbone.model
        self.config = config
        self.image_size = backbone.size
        self._features = backbone.features
        self._stages = backbone.stages
        self._scores = backbone.scores
        self._regions = None
        if config.regions:
            if backbone.regions is None or config.feature_layer != -1:
                raise ConfigError(
                    f"regions = true needs the last layer of a convolutional network of timm with "
                    f"its classifier, such as asset:efficientnet-lite2; got {config.name}"
                )
            self._regions = backbone.regions
        self._fine = _stage_of(config, backbone.strides)
        self._own = backbone.preprocess
        self.processor = backbone.processor
        self._normalisation = (backbone.mean, backbone.std)
        self._convolutional = backbone.convolutional
        self.traces = True
        # What was traced, to its graph; None: it cannot be traced.
        self._traced: dict[Features, Features | None] = {}
        self.requires_grad_(False)
        self.eval()
        self._in_front: tuple[int, tuple[int, int] | None] | None = None
        self._dropped, self.shape = self._probe(backbone)

    @torch.no_grad()
    def _probe(self, backbone: Backbone) -> tuple[int, FeatureShape]:
        """How many tokens in front are dropped, and what then remains."""
        if (native := backbone.native) is not None:  # the smallest image tells the width
            found = self._features(
                torch.zeros(1, 3, native.multiple, native.multiple, dtype=self._dtype)
            )
            tokens = backbone.size[0] * backbone.size[1] // native.patch**2
            return 0, FeatureShape(found.shape[-1], tokens, None, native=native)
        found = self._features(torch.zeros(1, 3, *backbone.size, dtype=self._dtype))
        if self._regions is not None:
            return 0, self._probe_regions(found)
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
            self._in_front = prefix, grid
            return 0, FeatureShape(width, tokens, None)
        return prefix, FeatureShape(width, patches, grid)

    def _probe_regions(self, last: Tensor) -> FeatureShape:
        assert self._regions is not None
        _, width, rows, columns = last.shape
        blank = torch.zeros(1, 3, *self.image_size, dtype=self._dtype)
        _, told, stages = self._regions(blank)
        count, numbers = told.shape[1:]
        classes = int(self.model.num_classes)  # type: ignore[arg-type]
        each = -(-numbers // width)
        tokens, fine = rows * columns + count * each, None
        if self._fine is not None:
            _, *sizes = stages[self._fine].shape
            fine = (sizes[0], sizes[1], sizes[2])
            tokens += -(-math.prod(fine) // width)
        regions = RegionShape(rows * columns, count, numbers - classes, classes, each, fine)
        return FeatureShape(width, tokens, (rows, columns), regions)

    def _with_regions(self, pixels: Tensor) -> Tensor:
        """Patches, what is seen of regions, and the early map if asked for, (B, N + ..., D)."""
        assert self._regions is not None
        assert self.shape.regions is not None
        last, told, stages = self._regions(pixels)
        found = [self._tokens(last), self._rows(told)]
        if self._fine is not None:
            found.append(self._rows(self._tokens(stages[self._fine]).flatten(1)))
        return torch.cat(found, dim=1)

    def _rows(self, numbers: Tensor) -> Tensor:
        """Numbers (B, ..., n) as rows (B, M, D), each n filled up with zeros."""
        numbers = F.pad(numbers, (0, -numbers.shape[-1] % self.shape.width))
        # a trace takes len() for constant
        return numbers.reshape(numbers.shape[0], -1, self.shape.width)

    @property
    def varies(self) -> bool:
        """Whether what `preprocess` makes of two images, and their features, differ in size."""
        return self.shape.native is not None and self.config.resize == "own"

    @property
    def normalisation(self) -> tuple[Sequence[float] | None, Sequence[float] | None]:
        """Mean and standard deviation of its pixels, per channel; None if they are not known."""
        return self._normalisation

    @property
    def patch_grid(self) -> tuple[int, tuple[int, int] | None]:
        """How many tokens stand before the patches, and (rows, columns) of the patches, or None.

        The shape's own grid is None where class and register tokens are kept.
        """
        return self._in_front or (0, self.shape.grid)

    @property
    def convolutional(self) -> bool:
        """Whether a CPU runs it as one traced graph."""
        return self._convolutional

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
        if self._regions is not None:
            return self._fastest(self._with_regions, pixels)(pixels)
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
        if self._regions is not None:
            return self._with_regions(pixels)
        return self._tokens(self._features(pixels))

    def with_gradients(self, pixels: Tensor) -> Tensor:
        """As `eager`, for a model that is being trained."""
        pixels = pixels.to(self._dtype)
        if self._regions is not None:
            return self._with_regions(pixels)
        return self._tokens(self._features(pixels))

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
        if not self._convolutional or not self.traces or pixels.device.type != "cpu":
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
        with exact_frequencies(self):
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
            if self.shape.native is None and tuple(pixels.shape) != (3, *self.image_size):
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


def _stage_of(config: VisionConfig, strides: Sequence[int]) -> int | None:
    """Which stage's map `VisionConfig.fine` asks for, the last one of that stride."""
    if not config.fine:
        return None
    if not config.regions:
        raise ConfigError(
            f"fine = {config.fine} needs regions = true, which it follows; got regions = false"
        )
    if config.fine not in strides:
        raise ConfigError(
            f"fine = {config.fine}: expected the stride of a stage of {config.name}, one of "
            f"{', '.join(map(str, sorted(set(strides))))}"
        )
    return max(stage for stage, stride in enumerate(strides) if stride == config.fine)


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
    final_norm: bool | None = None,
    keep_cls: bool | None = None,
    resize: Literal["own", "pad", "squash"] | None = None,
    regions: bool | None = None,
    fine: int | None = None,
    deepstack: bool | None = None,
) -> VisionEncoder:
    """Loads a vision encoder by name, or wraps one.

    Args:
        source: "timm:NAME", "hf:REPO" (a hub name or a folder), "open_clip:ARCH/PRETRAINED",
            "asset:NAME", "tiny-vit", "tiny-cnn", a `VisionConfig`, or a model of those libraries.
            The name of a released vision-language model stands for its vision tower, and for the
            features that the model reads of it.
        pretrained: Whether to fetch weights; without, they are random.
        preprocess: An image to pixels (3, H, W), in place of the encoder's own; or, for a
            Transformers model, its image processor.
        feature_layer: Which block's output, in place of the configuration's; what the numbers
            mean in each library is told by `isthmus.model.backbones.libraries`.
        final_norm: Whether they go through the encoder's own final norm, in place of the
            configuration's.
        keep_cls: Whether class and register tokens stay, in place of the configuration's.
        resize: How an image is made to fit, in place of the configuration's.
        regions: Whether what is seen of regions follows, in place of the configuration's.
        fine: Stride of the early map behind them, in place of the configuration's.
        deepstack: Whether earlier layers' features follow, in place of the configuration's.

    Raises:
        ConfigError: If the name has an unknown form, or the model has no such layer or no regions.
        CheckpointError: If its library has no such model, or the weights cannot be fetched.
        MissingExtraError: If open_clip is asked for and not installed.

    Example:
        >>> load_vision("tiny-vit").shape
        FeatureShape(width=32, tokens=16, grid=(4, 4), regions=None)
    """
    changes: dict[str, Any] = {
        "feature_layer": feature_layer,
        "final_norm": final_norm,
        "keep_cls": keep_cls,
        "resize": resize,
        "regions": regions,
        "fine": fine,
        "deepstack": deepstack,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
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
        make = from_native if is_native(source) else from_object
        backbone = make(source, config, processor)
    else:
        if isinstance(source, str):
            source = VisionConfig(name=source, **own_features(source))
        config = replace(source, **changes)
        backbone = fetch(config, pretrained, processor)
    if preprocess is not None and processor is None:
        backbone = replace(backbone, preprocess=preprocess, processor=None)
    return VisionEncoder(backbone, config)
