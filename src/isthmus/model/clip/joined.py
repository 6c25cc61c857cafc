"""Any vision encoder and any text encoder, joined by two heads.

With both towers locked this is LiT (Zhai et al. 2022, arXiv 2111.07991) from both sides: only the
heads are trained, on features that can be computed once.

Letters: B images, K texts, N patches, D width of the common space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.errors import ConfigError, suggestion
from isthmus.model.backbones.text import TextEncoder
from isthmus.model.backbones.vision import VisionEncoder
from isthmus.model.clip.class_mixture import ClassMixture
from isthmus.model.clip.towers import ImageTower, TextTower, Tokens

Pooling = Literal["mean", "mean_max", "stages", "own"]
POOLINGS = ("mean", "mean_max", "stages", "own")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """A tower's head: a linear map, and beside it a small network whose output is added.

    Attributes:
        hidden: Hidden units of the network; 0 leaves the linear map alone.
        bias: Whether the linear map has a bias.
        dropout: Share of hidden units dropped in training.
        power: Exponent, more than 0, that every number of the input is raised to first, its sign
            kept; 0.5 evens out the few large values of non-negative features (power
            normalisation: Perronnin et al. 2010, section 3.2).

    Raises:
        ConfigError: If the power is not more than 0.
    """

    hidden: int = 0
    bias: bool = True
    dropout: float = 0.0
    power: float = 1.0

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise ConfigError(f"got power {self.power}, expected more than 0, such as 1 or 0.5")


class Head(nn.Module):
    """Maps a tower's vectors to the common space.

    `linear(z) + mlp(z)` of z = (sign(x) |x|^power - mean) / std; the network's last layer starts
    at zero, so that a linear map that was solved for is where training starts.

    Args:
        in_width: Width of the tower's vectors.
        width: Width D of the common space.
        config: Its form.

    Attributes:
        mean: Subtracted from the input, (in_width,); 0 unless set.
        std: Divides the input, (in_width,); 1 unless set.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, in_width: int, width: int, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(in_width))
        self.register_buffer("std", torch.ones(in_width))
        self.linear = nn.Linear(in_width, width, bias=config.bias)
        self.mlp: nn.Sequential | None = None
        if config.hidden:
            last = nn.Linear(config.hidden, width)
            self.mlp = nn.Sequential(
                nn.Linear(in_width, config.hidden), nn.GELU(), nn.Dropout(config.dropout), last
            )
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors (B, D) of vectors (B, in_width)."""
        vectors = vectors.to(self.mean.dtype)
        if self.config.power != 1:
            vectors = vectors.sign() * vectors.abs().clamp(min=1e-12) ** self.config.power
        standard = (vectors - self.mean) / self.std
        mapped: Tensor = self.linear(standard)
        return mapped if self.mlp is None else mapped + self.mlp(standard)


class JoinedImageTower(ImageTower):
    """A vision encoder, its pooled features, and a head.

    Args:
        encoder: The encoder.
        head: The head.
        pooling: How patches become one vector; see `pooled_features`.
        locked: Whether the encoder stays frozen.
        mixture: What puts the encoder's own classifier beside the head; its scores then follow the
            pooled features wherever these are kept.

    Raises:
        ConfigError: If the encoder's images differ in size.
    """

    def __init__(
        self,
        encoder: VisionEncoder,
        head: Head,
        *,
        pooling: Pooling,
        locked: bool,
        mixture: ClassMixture | None = None,
    ) -> None:
        super().__init__()
        if encoder.varies:
            raise ConfigError(
                f"{encoder.config.name} reads images at their own resolution: a dual encoder takes "
                'images of one size; pass load_vision(..., resize="squash") or "pad"'
            )
        self.encoder = encoder
        self.head = head
        self.mixture = mixture
        self.pooling = pooling
        self.locked = locked
        self.image_size = encoder.image_size
        encoder.model.requires_grad_(not locked)

    @property
    def pooled_width(self) -> int:
        """Width of what `pool` returns."""
        classes = 0 if self.mixture is None else len(self.mixture.vectors)
        return self.head.linear.in_features + classes

    def preprocess(self, image: Image.Image) -> Tensor:
        """Pixels (3, H, W): the encoder's own way."""
        return self.encoder.preprocess(image)

    def pool(self, pixels: Tensor) -> Tensor:
        """Pooled features (B, pooled_width), float32, of pixels (B, 3, H, W)."""
        return pooled_features(
            self.encoder,
            pixels,
            self.pooling,
            classes=self.mixture is not None,
            gradients=not self.locked,
        )

    def map(self, pooled: Tensor) -> Tensor:
        """Vectors (B, D) of pooled features (B, pooled_width)."""
        if self.mixture is None:
            mapped: Tensor = self.head(pooled)
            return mapped
        width = self.head.linear.in_features
        mixed: Tensor = self.mixture(self.head(pooled[:, :width]), pooled[:, width:])
        return mixed

    def forward(self, pixels: Tensor) -> Tensor:
        """Vectors (B, D) of pixels (B, 3, H, W)."""
        return self.map(self.pool(pixels))


class JoinedTextTower(TextTower):
    """A text encoder and a head.

    Args:
        encoder: The encoder.
        head: The head.
        locked: Whether the encoder stays frozen.
        parts: Where images' vectors are made by a `ClassMixture`, the widths of what its head and
            its classes fill. Each part of a single text's vector is then of length 1, so that none
            wins for its length, and is followed by zeros where images alone have numbers.
    """

    masked = True

    def __init__(
        self,
        encoder: TextEncoder,
        head: Head,
        *,
        locked: bool,
        parts: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.parts = parts
        self.encoder = encoder
        self.head = head
        self.locked = locked
        self.context_length = encoder.context_length
        self.pad_id = encoder.tokenizer.pad_token_id or 0
        plain = encoder.token_ids(["a"])[0]
        bare = encoder.tokenizer("a", add_special_tokens=False)["input_ids"]
        self.prefix = next((i for i, token in enumerate(plain) if token == bare[0]), 0)
        encoder.model.requires_grad_(not locked)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text's token ids."""
        return self.encoder.token_ids(texts)

    def forward(self, tokens: Tokens) -> Tensor:
        """Vectors (K, D)."""
        return self.map(self.encode(tokens))

    def map(self, vectors: Tensor) -> Tensor:
        """Vectors (K, D) of the encoder's (K, D_text)."""
        mapped: Tensor = self.head(vectors)
        if self.parts is None:
            return mapped
        first = F.normalize(mapped[..., : self.parts[0]], dim=-1)
        second = F.normalize(mapped[..., self.parts[0] :], dim=-1)
        return torch.cat([first, second, torch.zeros_like(first)], dim=-1)

    def encode(self, tokens: Tokens) -> Tensor:
        """The encoder's vectors (K, D_text), float32, that the head maps."""
        found: Tensor = self.encoder(**tokens).float()
        return found

    def token_embedding(self) -> nn.Module:
        """The encoder's word embedding."""
        found: nn.Module = self.encoder.model.get_input_embeddings()
        return found


def pooled_features(
    encoder: VisionEncoder,
    pixels: Tensor,
    pooling: Pooling = "mean",
    *,
    classes: bool = False,
    gradients: bool = False,
) -> Tensor:
    """One vector (B, W), float32, for each image.

    Args:
        encoder: The encoder.
        pixels: (B, 3, H, W).
        pooling: "mean" of the patches, which is the own pooling of convolutional networks;
            "mean_max", their mean and then their maximum, which tells a small thing from an empty
            image; "stages", mean and maximum of every stage of a convolutional network, in
            which colours and textures are still told apart; or the encoder's "own": timm's
            features before the classifier, Transformers' `pooler_output`, open_clip's projection.
        classes: Whether the scores of the encoder's own classifier follow, (B, W + C); only with
            "stages".
        gradients: Whether they flow into the encoder.

    Raises:
        ConfigError: If the pooling is unknown, or the model has none of its own, no stages or no
            classifier.
    """
    if classes and pooling != "stages":
        raise ConfigError(
            f'got pooling "{pooling}" and a mixture of classes: expected pooling "stages", which '
            "keeps what the encoder's own classifier says"
        )
    if pooling == "stages":
        return encoder.stages(pixels, classes=classes, gradients=gradients).float()
    if pooling in ("mean", "mean_max"):
        features = encoder.with_gradients(pixels) if gradients else encoder(pixels)
        features = features[:, : encoder.shape.patches].float()
        mean = features.mean(dim=1)
        return mean if pooling == "mean" else torch.cat([mean, features.amax(dim=1)], dim=1)
    if pooling != "own":
        raise ConfigError(f'unknown pooling "{pooling}": {suggestion(pooling, POOLINGS)}')
    with torch.set_grad_enabled(gradients and torch.is_grad_enabled()):
        return _own_pooling(encoder, pixels).float().flatten(1)


def _own_pooling(encoder: VisionEncoder, pixels: Tensor) -> Tensor:
    model = encoder.model
    pixels = pixels.to(next(model.parameters()).dtype)
    found: Tensor | tuple[Tensor, ...] | None
    if hasattr(model, "forward_head"):  # timm
        found = model.forward_head(model.forward_features(pixels), pre_logits=True)  # type: ignore[operator]
    elif hasattr(model, "config"):  # Transformers
        found = getattr(model(pixel_values=pixels), "pooler_output", None)
    else:  # open_clip
        found = model(pixels)
    if found is None:
        raise ConfigError(
            f'{type(model).__name__} has no pooled output of its own: pass pooling="mean"'
        )
    return found[0] if isinstance(found, tuple) else found
