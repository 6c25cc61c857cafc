"""What a run takes whose language model is laid over devices, from its configuration alone.

Hundreds of billions of weights are not loaded to find out. The language model is built on the meta
device, where parameters have shapes and no memory; the encoder, the strip and the data are real.

Memory of each device: the weights that the map puts there, what autograd keeps of the layers that
it computes (`memory`), and on the device of the input embedding all that is trained. A layer whose
weights lie beside the devices is computed on that one, which holds one such layer at a time.

Operations of a step: a matrix product of a frozen weight takes two for each weight and token in the
forward pass and two in the backward pass, since only the gradient of its input is wanted, where
training it would take two more. Gradient checkpointing repeats the forward pass. Of experts only
those count that a token goes through. Attention takes 4 L A of a layer with causal rows of L tokens
and heads of width A together, halved, and twice that in the backward pass.

Layers follow each other, so one GPU computes at a time while the others hold their weights; hours
of all of them are what is paid for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from isthmus.config.model import LanguageConfig, TrainConfig
from isthmus.errors import ConfigError, loading
from isthmus.model.backbones.language import LanguageModel, load_language
from isthmus.model.backbones.placement import device_of, found_map, meta_model
from isthmus.model.vlm import VisionLanguageModel
from isthmus.training.memory import Load, experts_of, memory

PEAK = 989e12
"""Operations a second of one GPU in bf16, dense: an H100 or H200 (NVIDIA's data sheet)."""
UTILISATION = 0.3
"""Share of the peak that the GPU which computes is taken to reach."""
LINK = 25e9
"""Bytes a second at which weights beside a GPU reach it: half of what PCIe 5.0 x16 has."""
BESIDE = ("cpu", "disk")


def without_weights(config: LanguageConfig) -> LanguageModel:
    """A language model as its configuration says it is, in bf16 and on the meta device.

    Args:
        config: Its name; one with random weights is made as it is.

    Raises:
        CheckpointError: If its configuration or its tokenizer cannot be read.
        ConfigError: If the name is of no kind that Transformers has.
    """
    scheme, _, place = config.name.partition(":")
    if not place:
        return load_language(config)
    if scheme != "hf":
        raise ConfigError(
            f'language.name = "{config.name}": a run with language.device_map is planned for '
            '"hf:REPO-OR-FOLDER"'
        )
    from transformers import AutoTokenizer

    with loading(config.name, "a folder with its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    return LanguageModel(meta_model(config.name), tokenizer, config)


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters of a language model.

    Attributes:
        total: All of them, the one of two that are tied once.
        active: Those that a token meets: of experts the ones that it goes through.
        multiplied: Weights of the decoder layers that a token is multiplied with.
        head: Weights of the head.
    """

    total: int
    active: int
    multiplied: int
    head: int


def parameters_of(language: LanguageModel) -> Parameters:
    """Counts the parameters of a language model, experts included.

    Args:
        language: The language model; with or without weights.

    Example:
        >>> found = parameters_of(load_language("tiny-moe"))
        >>> found.total > found.active > found.multiplied
        True
    """
    experts, used = experts_of(language.model.config.get_text_config(decoder=True))
    total = active = multiplied = 0
    for name, parameter in language.model.named_parameters():
        number = parameter.numel()
        total += number
        if "experts" in name.split("."):
            number = number * used // experts
        active += number
        if parameter.ndim > 1 and name.startswith(language.layers_path):
            multiplied += number
    return Parameters(total, active, multiplied, language.output_embedding.weight.numel())


def operations(
    language: LanguageModel, config: TrainConfig, lengths: Mapping[int, int], learned: int
) -> float:
    """Floating-point operations of a training step through a frozen language model.

    Args:
        language: The language model.
        config: Whether activations are computed again.
        lengths: How many rows of each length a step has.
        learned: Tokens that are learned, over all rows; the head runs for these alone.
    """
    text: Any = language.model.config.get_text_config(decoder=True)
    head = int(getattr(text, "head_dim", None) or language.width // int(text.num_attention_heads))
    if getattr(text, "kv_lora_rank", None):
        head = int(text.qk_nope_head_dim) + int(text.qk_rope_head_dim)
    wide = int(text.num_attention_heads) * head
    found, layers = parameters_of(language), len(language.layers)
    again = 2 if config.gradient_checkpointing else 1
    total = 4.0 * learned * found.head
    for length, rows in lengths.items():
        products = 2.0 * found.multiplied * length * (again + 1)
        attention = 2.0 * length * length * wide * layers * (again + 2)
        total += rows * (products + attention)
    return total


def by_device(
    model: VisionLanguageModel,
    config: TrainConfig,
    load: Load,
    language: LanguageConfig,
) -> dict[str, dict[str, int]]:
    """Bytes of each device, item by item; "cpu" and "disk" hold weights alone beside GPUs.

    Args:
        model: The model, whose language model may be on the meta device.
        config: The run's configuration.
        load: One forward pass.
        language: The map of the language model, or how it is found.

    Raises:
        ConfigError: If weights lie beside the devices and activations are not computed again.
    """
    device_map = found_map(model.language.model, language)
    path, weights = model.language.layers_path, Counter[str]()
    layers: dict[int, str] = {}
    sizes: Counter[int] = Counter()
    for name, parameter in model.language.model.named_parameters():
        where = str(device_of(name, {"": "cpu", **device_map}))
        weights[where] += parameter.numel() * parameter.element_size()
        if name.startswith(f"{path}."):
            number = int(name[len(path) + 1 :].partition(".")[0])
            layers[number] = where
            sizes[number] += parameter.numel() * parameter.element_size()
    gpus = [where for where in dict.fromkeys(map(str, device_map.values())) if where not in BESIDE]
    main = min(gpus, key=int) if all(g.isdigit() for g in gpus) and gpus else (gpus or ["cpu"])[0]
    beside = BESIDE if gpus else ("disk",)
    if not config.gradient_checkpointing and any(w in beside for w in weights):
        raise ConfigError(
            "language.device_map leaves weights in memory or on disk, and the graph of a training "
            "step would hold all of them on the device: set train.gradient_checkpointing = true"
        )
    items = memory(model, config, load, device=torch.device("cuda" if gpus else "cpu"))
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for where, size in weights.items():
        found[where]["frozen weights"] = size
    rest = sum(
        parameter.numel() * parameter.element_size()
        for name, parameter in model.named_parameters()
        if not (name.startswith("language.") or parameter.requires_grad)
    )
    own = found[main]
    own["vision encoder, and what else is frozen"] = rest
    spread = ("decoder layers' inputs", "decoder layers' activations")
    for name, size in items.items():
        if name != "frozen weights" and name not in (*spread, "logits, or one layer", "logits"):
            own[name] = size
    count = Counter(main if where in beside else where for where in layers.values())
    once = items.get("logits, or one layer", 0)
    for where, number in count.items():
        for name in spread:
            if name in items:
                found[where][name] = items[name] * number // len(layers)
        if once:
            found[where]["one layer, computed again"] = once
    output = model.language.output_embedding
    head = next(n for n, m in model.language.model.named_modules() if m is output)
    last = str(device_of(head, {"": main, **device_map}))
    for where in {main, main if last in beside else last}:
        found[where]["logits"] = max(items.get("logits", 0), once)
        found[where].pop("one layer, computed again", None)
    if away := [sizes[n] for n, where in layers.items() if where in beside]:
        own["one layer of those beside it"] = max(away)
    return {w: {n: b for n, b in found[w].items() if b} for w in sorted(found, key=_order)}


def _order(device: str) -> tuple[bool, bool, int, str]:
    """GPUs by their numbers, then memory, then the disk."""
    number = int(device) if device.isdigit() else 0
    return device == "disk", device == "cpu", number, device


def beside_devices(devices: Mapping[str, Mapping[str, int]]) -> int:
    """Bytes of weights that have to reach a GPU in each pass; none where there is no GPU."""
    gpus = [name for name in devices if name not in BESIDE]
    away = BESIDE if gpus else ("disk",)
    return sum(own.get("frozen weights", 0) for name, own in devices.items() if name in away)


def table(devices: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A line for each device: its memory, and of what."""
    lines = []
    for name, own in devices.items():
        label = f"GPU {name}" if name.isdigit() else {"cpu": "memory"}.get(name, name)
        parts = ", ".join(f"{what} {size / 1e9:.2f}" for what, size in own.items())
        lines.append(f"  {label:<14}{sum(own.values()) / 1e9:>9.2f} GB   {parts}")
    return lines


@dataclass(frozen=True)
class Cost:
    """What a run takes of the devices that its language model is laid over.

    Attributes:
        devices: Bytes of each device, item by item.
        parameters: Of the language model.
        operations: Floating-point operations of a step.
        moved: Bytes of weights that reach a GPU in a step.
        gpus: GPUs of the map; one where it names none.
    """

    devices: dict[str, dict[str, int]]
    parameters: Parameters
    operations: float
    moved: float
    gpus: int

    @property
    def step_seconds(self) -> float:
        """Operations at `PEAK` times `UTILISATION`, and bytes at `LINK`, one after the other."""
        return self.operations / (PEAK * UTILISATION) + self.moved / LINK

    @property
    def timed(self) -> str:
        """What the time of a step rests on."""
        moved = f" and {LINK / 1e9:.0f} GB/s to the GPU" if self.moved else ""
        return f"computed at {UTILISATION:.0%} of {PEAK / 1e12:.0f} TFLOP/s{moved}"

    def gpu_hours(self, steps: int) -> float:
        """Hours of all GPUs, those included that wait for the one that computes."""
        return self.step_seconds * steps * self.gpus / 3600

    def details(self, steps: int) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "devices": self.devices,
            "language_parameters": self.parameters.total,
            "active_parameters": self.parameters.active,
            "step_operations": self.operations,
            "moved": self.moved,
            "peak": PEAK,
            "utilisation": UTILISATION,
            "gpu_hours": self.gpu_hours(steps),
        }

    def lines(self, steps: int) -> list[str]:
        """What people read."""
        found = self.parameters
        share = f"{found.active:,} of {found.total:,} parameters meet a token"
        moved = f", and {self.moved / 1e9:,.0f} GB of weights reach a GPU" if self.moved else ""
        waiting = ", one of which computes at a time" if self.gpus > 1 else ""
        return [
            "memory of each device, before what PyTorch itself takes",
            *table(self.devices),
            f"{'language model':<16}{share}",
            f"{'a step':<16}{self.operations / 1e15:,.1f} PFLOP{moved}",
            f"{'GPU hours':<16}{self.gpu_hours(steps):,.0f} of {self.gpus} GPUs{waiting}",
        ]


def cost(
    model: VisionLanguageModel,
    config: TrainConfig,
    load: Load,
    language: LanguageConfig,
    lengths: Mapping[int, int],
    learned: int,
) -> Cost:
    """What a run takes of the devices that its language model is laid over.

    Args:
        model: The model, whose language model may be on the meta device.
        config: The run's configuration, its precision decided.
        load: One forward pass.
        language: The map of the language model, or how it is found.
        lengths: How many rows of each length a step has.
        learned: Tokens that a step learns.
    """
    devices = by_device(model, config, load, language)
    passes = sum(lengths.values()) / load.rows * (2 if config.gradient_checkpointing else 1)
    return Cost(
        devices=devices,
        parameters=parameters_of(model.language),
        operations=operations(model.language, config, lengths, learned),
        moved=beside_devices(devices) * passes,
        gpus=max(1, sum(name not in BESIDE for name in devices)),
    )
