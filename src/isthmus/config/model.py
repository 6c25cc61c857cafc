"""What can be chosen, as frozen dataclasses. Pure: no torch.

What a configuration file holds (`config_file`) and what Python users pass are the same:
`compose(connector=Resampler(latents=64))`. The configuration of a connector or a fusion stands in
its own file, in `connectors/` or `fusion/`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from isthmus.config.base import Amount, Config, Count, NotNegative, Positive, Share
from isthmus.config.clip import ContrastiveConfig, DualEncoderConfig
from isthmus.config.placement import checked_map, checked_memory
from isthmus.config.registry import CONNECTORS, FUSIONS, Registry
from isthmus.errors import ConfigError, suggestion

SHIPPED = {
    "tiny": "EfficientNet-Lite2 joined to SmolLM2-135M-Instruct; offline, on a laptop's CPU",
    "tiny-clip": "a dual encoder of EfficientNet-Lite2 and MiniLM, for classify and search",
}
"""Models that come with the package, by name."""

Activation = Literal["gelu", "relu", "silu", "squared_relu"]


# --- Parts and the model ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class VisionConfig(Config):
    """Which vision encoder, and which of its features."""

    name: str
    """"timm:NAME", "hf:REPO", "open_clip:ARCH/PRETRAINED", "asset:NAME", "tiny-vit", "tiny-cnn"."""
    feature_layer: int = -1
    """Which block's output: -1 the last, -2 the one before it (LLaVA), and so on."""
    final_norm: bool = False
    """Whether the last block's output goes through the encoder's own final norm (Idefics 3,
    PaliGemma, BLIP-2). A model of timm always does so."""
    keep_cls: bool = False
    """Whether class and register tokens stay in front of the patch tokens."""
    resize: Literal["own", "pad", "squash"] = "own"
    """The encoder's own crop, the whole image padded to a square, or squeezed into it."""
    regions: bool = False
    """Whether what all stages and the own classifier of a convolutional network see follows the
    patches: of the whole image, its quadrants and its middle. For connectors that read names."""
    fine: NotNegative = 0
    """Stride in pixels of an early feature map that follows the regions, for connectors that read
    text; 0 for none."""
    deepstack: bool = False
    """Whether the features of the earlier layers that Qwen3-VL reads stand beside the last one's,
    for the connector merger and the fusion inline with deepstack."""


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(Config):
    """Which language model."""

    name: str
    """"hf:REPO", "asset:NAME" or "tiny-lm"."""
    layers: str | None = None
    """Dotted path of the decoder layers, where they cannot be found by structure."""
    lora_rank: NotNegative = 0
    """Rank of LoRA adapters on the language model through PEFT; 0 keeps it frozen."""
    device_map: Any = None
    """Where its layers are put: "auto" (also "balanced", "balanced_low_0", "sequential"), or a
    table of names of modules to devices (0, "cpu", "disk"). None keeps it on one device. Not saved
    with a model: where layers lay is no part of it."""
    max_memory: Any = None
    """With a device_map that is found: how much of each device weights may fill, a table of
    devices (0, "cpu") to sizes ("120GiB"). None is all that is free."""
    offload_folder: str | None = None
    """Where weights are written that a device_map puts on "disk" and no file has as they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "device_map", checked_map(self.device_map))
        object.__setattr__(self, "max_memory", checked_memory(self.max_memory))
        if self.device_map is None and (self.max_memory or self.offload_folder):
            raise ConfigError(
                "language.max_memory and language.offload_folder are for a language model that is "
                'placed by a map: expected language.device_map = "auto" beside them'
            )
        if self.device_map is not None and self.lora_rank:
            raise ConfigError(
                f"language.lora_rank = {self.lora_rank} trains weights of the language model, and "
                "language.device_map places a frozen one: leave one of them out"
            )


@dataclass(frozen=True, kw_only=True)
class TokensConfig(Config):
    """The token that stands for an image, where the language model's vocabulary has one.

    Released vision-language models do. An answer then ends with the language model's own end of
    text, and no token is trained.
    """

    image_id: NotNegative
    """Id of the token; it may lie beyond the last row of the embedding."""
    before: tuple[NotNegative, ...] = ()
    """Ids of tokens that stand before what an image fills (Janus)."""
    after: tuple[NotNegative, ...] = ()
    """Ids of tokens that stand behind it."""
    images_first: bool = False
    """Whether images that head a prompt stand even before the token that begins every text
    (BLIP-2)."""
    text_before: str = ""
    """What is written before the token, as part of the text around it (Gemma 3)."""
    text_after: str = ""
    """What is written behind it."""


def _inline() -> Any:
    """The default fusion."""
    return FUSIONS.find("inline")()


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """A vision-language model: two frozen parts, a connector, a fusion; and other media."""

    vision: VisionConfig
    """The vision encoder."""
    language: LanguageConfig
    """The language model."""
    connector: Any
    """The configuration of a connector; None for a module of the user's own."""
    fusion: Any = field(default_factory=_inline)
    """The configuration of a fusion."""
    media: tuple[Any, ...] = ()
    """Configurations of media besides images and clips; the last is asked first what it takes."""
    template: str = "plain"
    """How questions become prompts, trained and asked alike: a name in
    `isthmus.prompts.templates`, or "chat" for the language model's own chat template."""
    tokens: TokensConfig | None = None
    """Tokens of the vocabulary that stand for an image and end an answer; None trains a row for
    each beside the frozen embedding."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, registry in PARTS.items():
            value = getattr(self, name)
            if not (dataclasses.is_dataclass(value) or (value is None and name == "connector")):
                raise ConfigError(
                    f"ModelConfig.{name} = {value!r}: expected the configuration of a {name}, "
                    f"one of {', '.join(registry.names())}, or one of your own"
                )
        for medium in self.media:
            if not dataclasses.is_dataclass(medium):
                raise ConfigError(
                    f"ModelConfig.media has {medium!r}: expected configurations of media"
                )


def media_with(media: Sequence[Any], options: Mapping[str, Any]) -> tuple[Any, ...]:
    """Configurations of media with options of how images are opened.

    Args:
        media: The configurations.
        options: Options by name, such as `max_tiles`; each medium that has one takes it.

    Raises:
        ConfigError: If none has an option of a name, or a value is out of its range.
    """
    own = [{f.name for f in dataclasses.fields(medium)} for medium in media]
    for name in options:
        if not any(name in names for names in own):
            known = sorted(set().union(*own))
            raise ConfigError(
                f'unknown image option "{name}": {suggestion(name, known)}'
                if known
                else f'image option "{name}": this model opens all images alike and has no options'
            )
    changed = []
    for medium, names in zip(media, own, strict=True):
        values = {name: value for name, value in options.items() if name in names}
        changed.append(dataclasses.replace(medium, **values) if values else medium)
    return tuple(changed)


PARTS: dict[str, Registry] = {"connector": CONNECTORS, "fusion": FUSIONS}
"""The parts of a model that are named by a `type`, by their keys in `ModelConfig`."""


@dataclass(frozen=True, kw_only=True)
class EpisodeConfig(Config):
    """Episodes made of a labelled data set, which teach to learn from the context."""

    ways: tuple[Count, ...] = (2, 5)
    """Least and most classes of an episode."""
    shots: tuple[Count, ...] = (1, 4)
    """Least and most images of each class that are shown before the last question; fewer of a class
    that has no more, so that the one asked about was never shown."""
    made_up: Share = 1.0
    """Share of the episodes whose classes have made-up names; the others have their own."""
    odd: Share = 0.0
    """Share of the episodes that ask instead which of several images is different."""
    count: Count = 100_000
    """How many there are; each is made when it is drawn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ways", "shots"):
            value = getattr(self, name)
            if len(value) != 2 or value[0] > value[1]:
                raise ConfigError(
                    f"EpisodeConfig.{name} = {value}: expected the least and the most"
                )
        if self.ways[0] < 2:
            raise ConfigError(f"EpisodeConfig.ways = {self.ways}: expected at least 2 classes")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """One data set of a run."""

    path: str
    """A folder of images, a JSONL, CSV or Parquet file, or tar shards ("shards/{000..009}.tar",
    "shards/*.tar"), relative to the run's data folder."""
    weight: Amount = 1.0
    """Share of the draws, relative to the other data sets."""
    loss_weight: Amount = 1.0
    """What a token of this data set counts for in the loss (Flamingo's lambda, section 2.4)."""
    questions: tuple[str, ...] = ()
    """Questions to draw from for records that have a name or a text but no question."""
    next_image: Share = 0.0
    """Probability that in a document the images stand before the text in front of them instead
    of behind it (p_next in Flamingo, which used 0.5)."""
    held_out: Share = 0.0
    """Share of the records that is kept for evaluation and never trained on; 1 for all."""
    episodes: EpisodeConfig | None = None
    """Episodes in place of single images: what is in an image must be read off those before it."""
    templates: tuple[str, ...] = ("{}",)
    """For a dual encoder, how names become texts: templates with {}, or alone a published set such
    as "imagenet-7". One is drawn at each step."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """How a model is trained: the strip of a vision-language model, or a dual encoder.

    `contrastive` is for dual encoders. `micro_batch_size`, `mixture`, `pack`, `max_length`,
    `lr_connector`, `lr_lora`, `attention`, `gradient_checkpointing`, `augment`, `sample_answers`,
    `sharding` and `init` are for vision-language models.
    """

    steps: Count = 1000
    """Optimiser steps of the whole run."""
    batch_size: Count = 32
    """Samples of one optimiser step, over all processes."""
    micro_batch_size: Count | None = None
    """Samples of one forward pass in one process; None is as many as a step has for it. A smaller
    number accumulates gradients, and changes no result."""
    mixture: Literal["draw", "accumulate"] = "draw"
    """Each sample is drawn from a data set by its weight; or each step takes `batch_size * weight`
    samples of every data set and adds up their gradients (Flamingo, section 2.4)."""
    pack: NotNegative = 0
    """Length in tokens of rows that several samples are packed into; 0 gives each its own row."""
    max_length: Count = 2048
    """Longest sample; a longer one is cut at its end, never inside of an image."""
    lr: Amount = 1e-3
    """Peak learning rate of the connector and the fusion."""
    lr_connector: Amount | None = None
    """Another peak for the connector, where it starts from a trained one."""
    lr_lora: Amount | None = None
    """Another peak for low-rank adapters: those of `language.lora_rank` and `fusion.adapter`."""
    weight_decay: Amount = 0.1
    """For matrices only; vectors, gates, latents and embeddings have none."""
    warmup: NotNegative = 100
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate goes on after the warm-up."""
    final_lr: Share = 0.1
    """Learning rate at the end, as a share of the peak."""
    clip: Positive = 1.0
    """Largest norm of the gradient."""
    seed: NotNegative = 0
    """Seed of everything that is drawn."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the frozen parts and of activations; trained parameters stay fp32. "auto" takes
    the fastest that the machine computes well in, and the run says which that is."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Implementation of the language model's attention, by Transformers' name. "auto" takes the
    faster one on this machine in this precision."""
    gradient_checkpointing: bool = False
    """Whether activations are computed again in the backward pass, for less memory."""
    augment: bool = False
    """Random crops and mirror images. Features are then computed anew for every sample."""
    feature_cache: bool = True
    """Whether frozen features are kept on disk; never used together with `augment`."""
    workers: NotNegative = 2
    """Threads that open images ahead of the step that needs them."""
    broken_share: Share = 0.05
    """Largest share of drawn samples whose images cannot be read, before the run stops."""
    evaluate_every: NotNegative = 0
    """Steps between evaluations on what `data.held_out` kept; 0 for none."""
    sample_answers: NotNegative = 4
    """Answers generated at each evaluation, for people to read."""
    save_every: Count = 500
    """Steps between checkpoints."""
    keep: Count = 2
    """Checkpoints that are kept, the newest ones; the best by evaluation is kept besides."""
    log_every: Count = 20
    """Steps between lines of the log."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: every process holds all parameters, or each a shard (FSDP2)."""
    init: str | None = None
    """Folder of a saved model that this run starts from: every tensor of its strip that the new
    model has too."""
    freeze: tuple[str, ...] = ()
    """Beginnings of the names of parameters that stay as they are. Freezing
    "special_tokens.input_rows" ends the backward pass at the lowest gated block."""
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    """What only the training of a dual encoder needs."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """All of a configuration file."""

    model: ModelConfig | DualEncoderConfig
    """What is trained."""
    train: TrainConfig
    """How."""
    data: tuple[DataConfig, ...]
    """On what."""
