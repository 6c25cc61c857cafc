"""`resampler`: the Perceiver Resampler (Flamingo, Alayrac et al. 2022, section 2.1.1, figure 5).

A fixed number of latents reads any number of patches, from one image or from all frames of a
clip, in a few layers:

    latents = latents + attention(q = latents, kv = [patches, latents])
    latents = latents + ffw(latents)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.config.base import Config, Count, NotNegative
from isthmus.config.model import Activation
from isthmus.config.registry import CONNECTORS
from isthmus.errors import ConfigError
from isthmus.model.attention import MultiHeadAttention, feed_forward
from isthmus.model.connectors.patch_shares import rollout

if TYPE_CHECKING:
    from isthmus.model.backbones.feature_shape import FeatureShape


class ResamplerLayer(nn.Module):
    """One layer: attention of the latents over patches and latents, then a feed-forward."""

    def __init__(
        self, width: int, *, heads: int, head_dim: int, ffw_mult: int, activation: str
    ) -> None:
        super().__init__()
        self.patch_norm = nn.LayerNorm(width)
        self.latent_norm = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, width, heads=heads, head_dim=head_dim)
        self.ffw = feed_forward(width, mult=ffw_mult, activation=activation)

    def forward(self, latents: Tensor, patches: Tensor) -> Tensor:
        """New latents (B, M, D) after reading patches (B, N, D)."""
        queries = self.latent_norm(latents)
        context = torch.cat([self.patch_norm(patches), queries], dim=1)
        latents = latents + self.attention(queries, context)
        out: Tensor = latents + self.ffw(latents)
        return out

    def weights(self, latents: Tensor, patches: Tensor) -> Tensor:
        """The attention weights (B, H, M, N + M) of latents over patches, then latents."""
        queries = self.latent_norm(latents)
        context = torch.cat([self.patch_norm(patches), queries], dim=1)
        return self.attention.weights(queries, self.attention.project_context(context)[0])


class PerceiverResampler(nn.Module):
    """Latents that resample an image or a clip.

    Args:
        in_width: Width of the features, and of the latents.
        width: Width of the visual tokens; a linear map is added where it is another.
        latents: Number of latents, that is visual tokens M.
        depth: Number of layers.
        heads: Attention heads.
        head_dim: Width of a head.
        ffw_mult: Hidden width of the feed-forward, as a multiple.
        activation: Its activation.
        max_frames: Length of the temporal embedding; 0 for none, and no clips.

    Raises:
        ConfigError: If the activation is unknown.

    Example:
        >>> import torch
        >>> resampler = PerceiverResampler(8, 6, latents=3, depth=1, heads=2, max_frames=4)
        >>> resampler(torch.zeros(1, 16, 8)).shape, resampler(torch.zeros(1, 5, 16, 8)).shape
        (torch.Size([1, 3, 6]), torch.Size([1, 3, 6]))
    """

    def __init__(
        self,
        in_width: int,
        width: int,
        *,
        latents: int = 64,
        depth: int = 6,
        heads: int = 8,
        head_dim: int = 64,
        ffw_mult: int = 4,
        activation: str = "gelu",
        max_frames: int = 0,
    ) -> None:
        super().__init__()
        self.num_tokens = latents
        self.width = width
        self.latents = nn.Parameter(torch.randn(latents, in_width))
        self.frames: nn.Parameter | None = None
        if max_frames:
            self.frames = nn.Parameter(torch.randn(max_frames, in_width) * 0.02)
        self.layers = nn.ModuleList(
            ResamplerLayer(
                in_width,
                heads=heads,
                head_dim=head_dim,
                ffw_mult=ffw_mult,
                activation=activation,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(in_width)
        self.projection = nn.Linear(in_width, width) if width != in_width else nn.Identity()

    def frame_embedding(self, frames: int) -> Tensor:
        """(frames, D_vision) temporal embedding.

        Up to `max_frames` frames take the first rows; longer clips stretch all of them by linear
        interpolation, as Flamingo does to evaluate at 30 frames what was trained at 8.

        Args:
            frames: Number of frames T.

        Raises:
            ConfigError: If the resampler was built without one.
        """
        if self.frames is None:
            raise ConfigError("resampler: a clip needs max_frames of at least 1, got 0")
        if frames <= self.frames.shape[0]:
            return self.frames[:frames]
        stretched = F.interpolate(
            self.frames.T[None], size=frames, mode="linear", align_corners=True
        )
        return stretched[0].T

    def no_weight_decay(self) -> set[str]:
        """The latents and the embeddings of frames: positions, and no maps."""
        return {"latents", "frames"}

    def forward(self, features: Tensor) -> Tensor:
        """Visual tokens (B, M, D).

        Args:
            features: (B, N, D_vision) of images, which have no place in time; or
                (B, T, N, D_vision) of clips, to whose frames the temporal embedding is added.

        Raises:
            ConfigError: If it is a clip, and the resampler has no temporal embedding.
        """
        patches = self._patches(features)
        latents = self.latents.expand(patches.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(latents, patches)
        tokens: Tensor = self.projection(self.norm(latents))
        return tokens

    def _patches(self, features: Tensor) -> Tensor:
        """Patches (B, N, D_vision); of clips those of all frames (B, T * N, D_vision)."""
        if features.ndim == 3:
            return features
        embedding = self.frame_embedding(features.shape[1])
        return (features + embedding[:, None].to(features.dtype)).flatten(1, 2)

    def attention_weights(self, features: Tensor) -> list[Tensor]:
        """Each layer's attention weights (B, H, M, N + M): over the patches, then the latents.

        Args:
            features: As in `forward`.
        """
        patches, found = self._patches(features), []
        latents = self.latents.expand(patches.shape[0], -1, -1)
        for layer in self.layers:
            assert isinstance(layer, ResamplerLayer)
            found.append(layer.weights(latents, patches))
            latents = layer(latents, patches)
        return found

    def patch_shares(self, features: Tensor) -> Tensor:
        """How much each latent has from each patch, through all layers: (B, M, N).

        Args:
            features: As in `forward`.
        """
        return rollout([weights.mean(dim=1) for weights in self.attention_weights(features)])


@CONNECTORS.register("resampler")
@dataclass(frozen=True, kw_only=True)
class Resampler(Config):
    """Perceiver Resampler (Flamingo, Alayrac et al. 2022, section 2.1.1 and figure 5)."""

    latents: Count = 64
    """Number of latents, that is visual tokens M."""
    depth: Count = 6
    """Number of layers."""
    heads: Count = 8
    """Attention heads of each layer."""
    head_dim: Count = 64
    """Width of a head."""
    ffw_mult: Count = 4
    """Hidden width of the feed-forward, as a multiple of the layer's."""
    activation: Activation = "gelu"
    """Flamingo used squared_relu; OpenFlamingo gelu."""
    max_frames: NotNegative = 0
    """Length of the temporal embedding, 8 in Flamingo; longer clips interpolate it. At 0 there is
    none, and clips are refused: an image has no place in time."""

    def build(
        self, shape: FeatureShape, width: int, embeddings: Tensor | None = None
    ) -> PerceiverResampler:
        """The module for features of a shape."""
        return PerceiverResampler(shape.width, width, **asdict(self))

    def toy(self) -> Resampler:
        """The same connector, small."""
        return replace(
            self,
            latents=4,
            depth=min(self.depth, 2),
            heads=2,
            head_dim=8,
            ffw_mult=min(self.ffw_mult, 2),
            max_frames=min(self.max_frames, 3),
        )
