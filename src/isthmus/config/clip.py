"""Which dual encoder a run trains, and what only its training needs. Pure: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from isthmus.config.base import Amount, Config, Count, NotNegative, Positive, Share
from isthmus.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(Config):
    """What only the training of a dual encoder needs: the table `[train.contrastive]`.

    The loss is that of the model: InfoNCE without a bias (CLIP), sigmoid with one (SigLIP).
    """

    chunk: Count | None = None
    """Pairs that pass through the towers at once in one process: gradient caching (GradCache, Gao
    et al. 2021), which costs a second forward pass and changes no result. None is all at once."""
    same_name: Literal["neither", "positive", "negative"] = "neither"
    """What two pairs of one name are to each other: left out of the loss, a match, or none."""
    views: NotNegative = 1
    """How many versions there are of each image: itself, and random crops of which some are
    mirror images. One is drawn at each step. 0 makes a new one each time, so that no features of
    images are kept."""
    lr_encoder: Amount = 1e-5
    """Peak learning rate of joined encoders that are not locked."""
    least_scale: Positive = 1.0
    """Least factor on similarities, which is trained."""
    most_scale: Positive = 100.0
    """Largest factor on similarities: CLIP clips it at 100 (Radford et al. 2021, section 2.5)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.least_scale > self.most_scale:
            raise ConfigError(
                f"train.contrastive.least_scale is {self.least_scale} and most_scale "
                f"{self.most_scale}: expected the first no larger than the second"
            )


@dataclass(frozen=True, kw_only=True)
class DualEncoderConfig(Config):
    """Which dual encoder: one by its name, or two encoders joined by new heads."""

    name: str | None = None
    """A model to start from, as `load` takes it; then nothing else is told."""
    vision: str | None = None
    """The vision encoder, as `load_vision` takes it."""
    text: str | None = None
    """The text encoder, as `load_text` takes it."""
    width: Count = 384
    """Width of the common space."""
    pooling: str = "mean"
    """How an image's features become one vector."""
    image_hidden: NotNegative = 1024
    """Hidden units of the image head's network; 0 leaves its linear map alone."""
    text_hidden: NotNegative = 0
    """The same of the text head."""
    dropout: Share = 0.0
    """Share of hidden units dropped in training."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """InfoNCE over the batch (CLIP), or a decision about each pair (SigLIP)."""
    lock_image: bool = True
    """Whether the vision encoder stays frozen (LiT, Zhai et al. 2022)."""
    lock_text: bool = True
    """Whether the text encoder stays frozen."""
