"""What a contrastive run is made of, and its configuration file. Pure: no torch.

In place of a vision-language model's tables there is `[dual_encoder]`, a DualEncoderConfig;
`[train]` is a ContrastiveConfig, and each `[[data]]` a PairConfig.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from isthmus.config_base import (
    Amount,
    Config,
    Count,
    NotNegative,
    Positive,
    Share,
    from_mapping,
)
from isthmus.config_file import apply_override
from isthmus.errors import ConfigError, suggestion

TABLE = "dual_encoder"
"""The table that tells a contrastive run from the training of a strip."""


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(Config):
    """How a dual encoder is trained.

    The loss is that of the model: InfoNCE without a bias (CLIP), sigmoid with one (SigLIP).
    """

    steps: Count = 1000
    batch_size: Count = 512
    """Pairs of one step over all processes; each is a negative of all others."""
    chunk: Count | None = None
    """Pairs that pass through the towers at once in one process: gradient caching (GradCache, Gao
    et al. 2021), which costs a second forward pass and changes no result. None is all at once."""
    same_name: Literal["neither", "positive", "negative"] = "neither"
    """What two pairs of one name are to each other: left out of the loss, a match, or none."""
    views: NotNegative = 1
    """How many versions there are of each picture: itself, and random crops of which some are
    mirror images. One is drawn at each step. 0 makes a new one each time, so that no features of
    pictures are kept."""
    lr: Amount = 1e-3
    """Peak learning rate of heads, temperature and bias, and of models without heads."""
    lr_encoder: Amount = 1e-5
    """Peak learning rate of joined encoders that are not locked."""
    weight_decay: Amount = 0.1
    """For matrices only; temperature, bias, gains, and embeddings have none."""
    warmup: NotNegative = 100
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate goes on after the warm-up."""
    final_lr: Share = 0.0
    """Learning rate at the end, as a share of the peak."""
    clip: Positive = 1.0
    """Largest norm of the gradient."""
    least_scale: Positive = 1.0
    most_scale: Positive = 100.0
    """Bounds of the factor on similarities: CLIP clips it at 100 (Radford et al. 2021, section
    2.5)."""
    seed: NotNegative = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of activations; parameters and the loss stay fp32."""
    feature_cache: bool = True
    """Whether vectors of locked encoders are kept on disk, so that a step runs the heads alone."""
    workers: NotNegative = 2
    """Threads that open pictures ahead of the step that needs them."""
    broken_share: Share = 0.05
    """Largest share of drawn pairs whose pictures cannot be read, before the run stops."""
    evaluate_every: NotNegative = 0
    """Steps between evaluations on labelled pictures; 0 for none."""
    save_every: Count = 500
    """Steps between checkpoints."""
    keep: Count = 2
    """Checkpoints that are kept, the newest ones; the best by evaluation is kept besides."""
    log_every: Count = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.least_scale > self.most_scale:
            raise ConfigError(
                f"train.least_scale is {self.least_scale} and most_scale {self.most_scale}: "
                "expected the first no larger than the second"
            )


@dataclass(frozen=True, kw_only=True)
class DualEncoderConfig(Config):
    """Which dual encoder: one by its name, or two encoders joined by new heads."""

    name: str | None = None
    """A model to go on from, as `load_clip` takes it; then nothing else is told."""
    vision: str | None = None
    """The vision encoder, as `load_vision` takes it."""
    text: str | None = None
    """The text encoder, as `load_text` takes it."""
    width: Count = 384
    """Width of the common space."""
    pooling: str = "mean"
    """How a picture's features become one vector."""
    image_hidden: NotNegative = 1024
    """Hidden units of the image head's network; 0 leaves its linear map alone."""
    text_hidden: NotNegative = 0
    dropout: Share = 0.0
    """Share of hidden units dropped in training."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    lock_image: bool = True
    lock_text: bool = True


@dataclass(frozen=True, kw_only=True)
class PairConfig(Config):
    """One data set of a contrastive run."""

    path: str
    """A folder of pictures, a JSONL, CSV or Parquet file, or tar shards, relative to the run's data
    folder."""
    weight: Amount = 1.0
    """Share of the draws, relative to the other data sets."""
    templates: tuple[str, ...] = ("{}",)
    """How names become texts: templates with {}, or alone a published set such as "imagenet-7". One
    is drawn at each step."""
    held_out: Share = 0.0
    """Share of the records that is kept for evaluation and never trained on; 1 for all."""


@dataclass(frozen=True, kw_only=True)
class ContrastiveRunConfig(Config):
    """All of a configuration file."""

    model: DualEncoderConfig
    train: ContrastiveConfig
    data: tuple[PairConfig, ...]


def is_contrastive(path: str | Path) -> bool:
    """Whether a configuration file names a dual encoder; false for one that cannot be read."""
    try:
        return TABLE in tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False


def read_contrastive(path: str | Path, overrides: Sequence[str] = ()) -> ContrastiveRunConfig:
    """Reads a TOML configuration file.

    Args:
        path: The file.
        overrides: Strings `section.key=value`, as `--set` takes them.

    Raises:
        ConfigError: If the file is missing, is not TOML, or does not fit.
    """
    file = Path(path)
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"no configuration file at {file}") from error
    except ValueError as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    return contrastive_from_mapping(tables, overrides)


def contrastive_from_mapping(
    values: Mapping[str, Any], overrides: Sequence[str] = ()
) -> ContrastiveRunConfig:
    """A `ContrastiveRunConfig` from the tables of a configuration file.

    Raises:
        ConfigError: If anything in it is unknown, missing or of the wrong type.

    Example:
        >>> tables = {"dual_encoder": {"name": "tiny-clip"}, "data": [{"path": "pairs.jsonl"}]}
        >>> contrastive_from_mapping(tables, ["train.steps=10"]).train.steps
        10
    """
    tables = json.loads(json.dumps(values))  # a deep copy, and proof that it is plain data
    for override in overrides:
        apply_override(tables, override)
    known = (TABLE, "train", "data")
    for key in tables:
        if key not in known:
            raise ConfigError(f'unknown key "{key}": {suggestion(key, known)}')
    model = from_mapping(DualEncoderConfig, tables.get(TABLE, {}), TABLE)
    told = {f.name: getattr(model, f.name) for f in fields(model)}
    if model.name is None and (model.vision is None or model.text is None):
        raise ConfigError(f"[{TABLE}] expects either name, or vision and text")
    if model.name is not None and told != vars(DualEncoderConfig(name=model.name)):
        raise ConfigError(f'[{TABLE}] has name = "{model.name}": expected nothing beside it')
    return ContrastiveRunConfig(
        model=model,
        train=from_mapping(ContrastiveConfig, tables.get("train", {}), "train"),
        data=tuple(from_mapping(PairConfig, d, "data") for d in tables.get("data", [])),
    )
