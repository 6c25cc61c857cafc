"""What can be chosen, as frozen dataclasses. Pure: no torch.

A configuration file is TOML with one table per dataclass:

    [vision]      VisionConfig        [connector]   type = "mlp", and that connector's keys
    [language]    LanguageConfig      [fusion]      type = "inline", and that fusion's keys
    [train]       TrainConfig         [[data]]      DataConfig, once per data set

An unknown key or part is an error that suggests the nearest known one. The same dataclasses
are what Python users pass: `compose(connector=Resampler(latents=64))`.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from isthmus.errors import ConfigError, suggestion

T = TypeVar("T")

SHIPPED = {"tiny": "EfficientNet-Lite2 joined to SmolLM2-135M-Instruct; offline, on a laptop's CPU"}
"""Models that come with the package, by name."""

Activation = Literal["gelu", "relu", "silu", "squared_relu"]


# --- Connectors: features (B, N, D_vision) -> visual tokens (B, M, D) --------------------------


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One linear map per patch, M = N (LLaVA, Liu et al. 2023)."""

    type: ClassVar[str] = "linear"


@dataclass(frozen=True, kw_only=True)
class MLP:
    """Linear layers with GELU between them per patch, M = N (LLaVA-1.5, Liu et al. 2023)."""

    type: ClassVar[str] = "mlp"
    depth: int = 2
    """Number of linear layers."""


@dataclass(frozen=True, kw_only=True)
class PixelShuffle:
    """Space-to-depth, then one linear map: M = N / factor^2 (Idefics3, nanoVLM)."""

    type: ClassVar[str] = "pixel_shuffle"
    factor: int = 2
    """Side of the square of neighbouring patches that become one token."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """2-D adaptive average pooling, then a two-layer MLP (DeCo, Yao et al. 2024)."""

    type: ClassVar[str] = "pool"
    tokens: int = 64
    """Number of visual tokens M, a square number."""


@dataclass(frozen=True, kw_only=True)
class AttentionPool:
    """Learned queries, one attention layer over the patches, then an MLP."""

    type: ClassVar[str] = "attention_pool"
    tokens: int = 16
    """Number of learned queries, that is visual tokens M."""
    heads: int = 8


@dataclass(frozen=True, kw_only=True)
class Resampler:
    """Perceiver Resampler (Flamingo, Alayrac et al. 2022, section 2.1.1 and figure 5)."""

    type: ClassVar[str] = "resampler"
    latents: int = 64
    """Number of latents, that is visual tokens M."""
    depth: int = 6
    heads: int = 8
    head_dim: int = 64
    ffw_mult: int = 4
    activation: Activation = "gelu"
    """Flamingo used squared_relu; OpenFlamingo gelu."""
    max_frames: int = 8
    """Length of the temporal embedding; longer clips interpolate it, as Flamingo does."""


@dataclass(frozen=True, kw_only=True)
class QFormer:
    """Querying Transformer (BLIP-2, Li et al. 2023, section 3.1), queries only."""

    type: ClassVar[str] = "qformer"
    queries: int = 32
    """Number of queries, that is visual tokens M."""
    depth: int = 12
    heads: int = 12
    width: int = 768
    """Hidden width inside the Q-Former."""
    cross_every: int = 2
    """Cross-attention stands in every cross_every-th layer, from the first."""


@dataclass(frozen=True, kw_only=True)
class CAbstractor:
    """Convolutional abstractor (Honeybee, Cha et al. 2024, section 3.2)."""

    type: ClassVar[str] = "c_abstractor"
    tokens: int = 144
    """Number of visual tokens M, a square number."""
    depth: int = 3
    """ResNet blocks before and again after the pooling."""
    hidden: int = 1024


@dataclass(frozen=True, kw_only=True)
class Align:
    """Visual tokens as weighted averages of the language model's own word embeddings.

    Learned queries read the patches; each result becomes a distribution over the vocabulary,
    and the token is the expected embedding (AlignVLM, Masry et al. 2025, equations 1 and 2).
    A language model that was never trained for pictures can read such tokens from the start.
    """

    type: ClassVar[str] = "align"
    tokens: int = 8
    """Number of visual tokens M."""
    heads: int = 8
    hidden: int = 1024
    """Width of the attention and of the MLP after it."""
    free: int = 0
    """How many of the M tokens are plain vectors instead of expected embeddings."""


ConnectorConfig = (
    Linear | MLP | PixelShuffle | Pool | AttentionPool | Resampler | QFormer | CAbstractor | Align
)
CONNECTOR_CONFIGS: dict[str, type[Any]] = {
    c.type: c
    for c in (
        Linear,
        MLP,
        PixelShuffle,
        Pool,
        AttentionPool,
        Resampler,
        QFormer,
        CAbstractor,
        Align,
    )
}


# --- Fusions: where visual tokens meet the text -------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Inline:
    """Early fusion: visual tokens take the place of `<image>` in the sequence (LLaVA)."""

    type: ClassVar[str] = "inline"


@dataclass(frozen=True, kw_only=True)
class CrossAttention:
    """Deep fusion: tanh-gated cross-attention before decoder layers (Flamingo, section 2.2)."""

    type: ClassVar[str] = "cross_attention"
    every: int = 4
    """A block stands before layer i where (i + offset) % every == 0."""
    offset: int = 0
    """0 is Flamingo's placement, 1 is OpenFlamingo's."""
    start: int = 0
    """The first layer that may have a block; a later start shortens the backward pass."""
    heads: int = 8
    head_dim: int = 64
    ffw_mult: int = 4
    activation: Activation = "gelu"
    sees: Literal["last", "previous"] = "last"
    """A token attends to the last picture before it, or to all pictures before it."""
    gate: float = 0.0
    """Initial value of both gates before tanh. At 0 the language model is unchanged."""
    visual_width: int | None = None
    """Width of the visual tokens; None keeps the vision encoder's."""


FusionConfig = Inline | CrossAttention
FUSION_CONFIGS: dict[str, type[Any]] = {c.type: c for c in (Inline, CrossAttention)}


# --- Parts and the model ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Which vision encoder, and which of its features."""

    name: str
    """"timm:NAME", "hf:REPO", "open_clip:ARCH/PRETRAINED", "asset:NAME" or "tiny-vit"."""
    feature_layer: int = -1
    """Which block's output: -1 the last, -2 the one before it (LLaVA), and so on."""
    keep_cls: bool = False
    """Whether class and register tokens stay in front of the patch tokens."""
    resize: Literal["own", "pad", "squash"] = "own"
    """The encoder's own crop, the whole picture padded to a square, or squeezed into it."""


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Which language model."""

    name: str
    """"hf:REPO", "asset:NAME" or "tiny-lm"."""
    layers: str | None = None
    """Dotted path of the decoder layers, where they cannot be found by structure."""
    lora_rank: int = 0
    """Rank of LoRA adapters on the language model through PEFT; 0 keeps it frozen."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A vision-language model: two frozen parts, a connector, a fusion."""

    vision: VisionConfig
    language: LanguageConfig
    connector: Any
    """One of the connector dataclasses above."""
    fusion: Any = field(default_factory=Inline)
    template: str = "plain"
    """How questions become prompts: a name in `isthmus.templates`."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """One data set of a run."""

    path: str
    """A JSONL file of records, relative to the run's data folder."""
    weight: float = 1.0
    """Share of the draws, relative to the other data sets."""
    questions: tuple[str, ...] = ()
    """Questions to draw from for records that have a name or a text but no question."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the strip is trained."""

    objective: Literal["language", "vocabulary"] = "language"
    """The language model's loss on the answer; or, without running the language model, each
    visual token's loss on the answer's word of the same rank (align connector only)."""
    steps: int = 1000
    batch_size: int = 32
    lr: float = 1e-3
    """Peak learning rate of the connector and the fusion."""
    lr_lora: float = 2e-4
    weight_decay: float = 0.1
    """For matrices only; vectors, gates, latents and embeddings have none."""
    warmup: int = 100
    """Steps of linear warm-up, before the cosine."""
    final_lr: float = 0.1
    """Learning rate at the end, as a share of the peak."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the frozen parts and of activations; trained parameters stay fp32."""
    gradient_checkpointing: bool = False
    save_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 20
    init: str | None = None
    """Folder of a saved model whose connector and fusion this run starts from."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All of a configuration file."""

    model: ModelConfig
    train: TrainConfig
    data: tuple[DataConfig, ...]


# --- Reading and writing ------------------------------------------------------------------------


def _check_value(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type that `hint` says, or a ConfigError that names `where`."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value not in typing.get_args(hint):
            choices = [str(a) for a in typing.get_args(hint)]
            raise ConfigError(f'{where} = "{value}": {suggestion(str(value), choices)}')
        return value
    if origin in (types.UnionType, typing.Union):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        return _check_value(value, next(o for o in options if o is not type(None)), where)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError(f"{where} = {value!r}: expected a list")
        return tuple(_check_value(v, typing.get_args(hint)[0], where) for v in value)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else _from_mapping(hint, value, where)  # type: ignore[arg-type]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where} = {value!r}: expected {hint.__name__}")
    return value


def _from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Builds a configuration dataclass; an unknown or missing key is an error."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected a table, got {values!r}")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(f'unknown key "{where}.{key}": {suggestion(key, known)}')
    for name, f in known.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f'missing key "{where}.{name}"')
    return cls(**{k: _check_value(v, hints[k], f"{where}.{k}") for k, v in values.items()})


def part_from_mapping(kind: str, values: Mapping[str, Any]) -> Any:
    """A connector's or fusion's dataclass from a table with a `type`.

    Args:
        kind: "connector" or "fusion".
        values: The table, for example `{"type": "resampler", "latents": 64}`.

    Raises:
        ConfigError: If the type or a key is unknown, or a value has another type.

    Example:
        >>> part_from_mapping("connector", {"type": "mlp"})
        MLP(depth=2)
    """
    table = {"connector": CONNECTOR_CONFIGS, "fusion": FUSION_CONFIGS}[kind]
    if "type" not in values:
        raise ConfigError(f'missing key "{kind}.type": {suggestion("", table)}')
    name = values["type"]
    if name not in table:
        raise ConfigError(f'unknown {kind} "{name}": {suggestion(str(name), table)}')
    return _from_mapping(table[name], {k: v for k, v in values.items() if k != "type"}, kind)


def to_mapping(config: Any) -> dict[str, Any]:
    """A dataclass as plain values for JSON, with `type` for connectors and fusions."""
    values: dict[str, Any] = {}
    if "type" in vars(type(config)):
        values["type"] = config.type
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            value = to_mapping(value)
        elif isinstance(value, tuple):
            value = [to_mapping(v) if dataclasses.is_dataclass(v) else v for v in value]
        values[f.name] = value
    return values


def model_from_mapping(values: Mapping[str, Any]) -> ModelConfig:
    """A `ModelConfig` from tables `vision`, `language`, `connector`, `fusion`, `template`."""
    parts = dict(values)
    for kind in ("connector", "fusion"):
        if kind in parts:
            if not isinstance(parts[kind], Mapping):
                raise ConfigError(f"{kind}: expected a table, got {parts[kind]!r}")
            parts[kind] = part_from_mapping(kind, parts[kind])
    return _from_mapping(ModelConfig, parts, "model")


def _apply_override(values: dict[str, Any], override: str) -> None:
    """Writes one `section.key=value` into the tables; the value is TOML, or a bare string."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or len(keys) != 2 or not all(keys):
        raise ConfigError(f'--set "{override}": expected section.key=value')
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = values.setdefault(keys[0], {})
    if not isinstance(table, dict):
        raise ConfigError(f'--set "{override}": "{keys[0]}" is a list, not a table')
    table[keys[1]] = value


def run_from_mapping(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """A `RunConfig` from the tables of a configuration file.

    Args:
        values: The tables.
        overrides: Strings `section.key=value`, as `--set` takes them.

    Raises:
        ConfigError: If anything in it is unknown, missing or of the wrong type.
    """
    tables = json.loads(json.dumps(values))  # a deep copy, and proof that it is plain data
    for override in overrides:
        _apply_override(tables, override)
    model_keys = {f.name for f in dataclasses.fields(ModelConfig)}
    known = {*model_keys, "train", "data"}
    for key in tables:
        if key not in known:
            raise ConfigError(f'unknown key "{key}": {suggestion(key, known)}')
    return RunConfig(
        model=model_from_mapping({k: v for k, v in tables.items() if k in model_keys}),
        train=_from_mapping(TrainConfig, tables.get("train", {}), "train"),
        data=tuple(_from_mapping(DataConfig, d, "data") for d in tables.get("data", [])),
    )


def read_run(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a TOML configuration file.

    Raises:
        ConfigError: If the file is missing, is not TOML, or does not fit `RunConfig`.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"no configuration file at {file}")
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    return run_from_mapping(values, overrides)
