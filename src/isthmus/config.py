"""What can be chosen, as frozen dataclasses. Pure: no torch.

What a configuration file holds (`config_file`) and what Python users pass are the same:
`compose(connector=Resampler(latents=64))`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from isthmus.dual_encoder_config import ContrastiveConfig, DualEncoderConfig

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
    max_frames: int = 0
    """Length of the temporal embedding, 8 in Flamingo; longer clips interpolate it. At 0 there is
    none, and clips are refused: a picture has no place in time."""


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
class ConceptBottleneck:
    """Names of what is in the picture, as expected word embeddings, and a few free tokens.

    A classifier over named concepts (Koh et al. 2020) whose output is handed on in the language
    model's own words (AlignVLM, Masry et al. 2025): a language model that was never trained for
    pictures can read such tokens from the start.
    """

    type: ClassVar[str] = "concept_bottleneck"
    concepts: int = 5000
    """Most concepts that can be named."""
    length: int = 6
    """Word pieces of a name."""
    top: int = 16
    """How many of the likeliest concepts the expectation is taken over."""
    free: int = 4
    """Visual tokens that are no names."""
    heads: int = 8
    """Attention heads of the free tokens, each 64 wide."""


ConnectorConfig = (
    Linear
    | MLP
    | PixelShuffle
    | Pool
    | AttentionPool
    | Resampler
    | QFormer
    | CAbstractor
    | ConceptBottleneck
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
        ConceptBottleneck,
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
    """Initial value of both gates before tanh. At 0, Flamingo's, the language model is unchanged
    and only the gates learn at first. With another value the last map of each sublayer starts at
    zero instead: the language model is unchanged too, and the maps learn from the first step."""
    inline: bool = False
    """Whether visual tokens also stand in the text, as in NVLM-H (Dai et al. 2024)."""
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
    """A folder of pictures, a JSONL, CSV or Parquet file, or tar shards ("shards/{000..009}.tar",
    "shards/*.tar"), relative to the run's data folder."""
    weight: float = 1.0
    """Share of the draws, relative to the other data sets."""
    loss_weight: float = 1.0
    """What a token of this data set counts for in the loss (Flamingo's lambda, section 2.4)."""
    questions: tuple[str, ...] = ()
    """Questions to draw from for records that have a name or a text but no question."""
    next_picture: float = 0.0
    """Probability that in a document the pictures stand before the text in front of them instead
    of behind it (p_next in Flamingo, which used 0.5)."""
    held_out: float = 0.0
    """Share of the records that is kept for evaluation and never trained on; 1 for all."""
    templates: tuple[str, ...] = ("{}",)
    """For a dual encoder, how names become texts: templates with {}, or alone a published set such
    as "imagenet-7". One is drawn at each step."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained: the strip of a vision-language model, or a dual encoder.

    `contrastive` is for dual encoders. `objective`, `micro_batch_size`, `mixture`, `pack`,
    `max_tokens`, `lr_connector`, `lr_lora`, `gradient_checkpointing`, `augment`, `sharding` and
    `init` are for vision-language models.
    """

    objective: Literal["language", "concepts"] = "language"
    """The language model's loss on the answer; or, without running the language model, the loss
    of a concept bottleneck's classifier on the answer."""
    steps: int = 1000
    batch_size: int = 32
    """Samples of one optimiser step, over all processes."""
    micro_batch_size: int | None = None
    """Samples of one forward pass in one process; None is as many as a step has for it. A smaller
    number accumulates gradients, and changes no result."""
    mixture: Literal["draw", "accumulate"] = "draw"
    """Each sample is drawn from a data set by its weight; or each step takes `batch_size * weight`
    samples of every data set and adds up their gradients (Flamingo, section 2.4)."""
    pack: int = 0
    """Length in tokens of rows that several samples are packed into; 0 gives each its own row."""
    max_tokens: int = 2048
    """Longest sample; a longer one is cut at its end, never inside of a picture."""
    lr: float = 1e-3
    """Peak learning rate of the connector and the fusion."""
    lr_connector: float | None = None
    """Another peak for the connector, where it starts from a trained one."""
    lr_lora: float = 2e-4
    weight_decay: float = 0.1
    """For matrices only; vectors, gates, latents and embeddings have none."""
    warmup: int = 100
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate goes on after the warm-up."""
    final_lr: float = 0.1
    """Learning rate at the end, as a share of the peak."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the frozen parts and of activations; trained parameters stay fp32. "auto" takes
    the fastest that the machine computes well in, and the run says which that is."""
    gradient_checkpointing: bool = False
    augment: bool = False
    """Random crops and mirror images. Features are then computed anew for every sample."""
    feature_cache: bool = True
    """Whether frozen features are kept on disk; never used together with `augment`."""
    workers: int = 2
    """Threads that open pictures ahead of the step that needs them."""
    broken_share: float = 0.05
    """Largest share of drawn samples whose pictures cannot be read, before the run stops."""
    evaluate_every: int = 0
    """Steps between evaluations on what `data.held_out` kept; 0 for none."""
    samples: int = 4
    """Answers generated at each evaluation, for people to read."""
    save_every: int = 500
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints that are kept, the newest ones; the best by evaluation is kept besides."""
    log_every: int = 20
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: every process holds all parameters, or each a shard (FSDP2)."""
    init: str | None = None
    """Folder of a saved model that this run starts from: every tensor of its strip that the new
    model has too."""
    freeze: tuple[str, ...] = ()
    """Beginnings of the names of parameters that stay as they are. Freezing
    "special_tokens.input_rows" ends the backward pass at the lowest gated block."""
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All of a configuration file."""

    model: ModelConfig | DualEncoderConfig
    train: TrainConfig
    data: tuple[DataConfig, ...]
