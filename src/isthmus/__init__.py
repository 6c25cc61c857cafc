"""Isthmus: join any vision encoder to any language model by training only the strip between them.

The table of contents, in the order in which a newcomer meets it. Names are imported when they are
first used, so `import isthmus` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isthmus.align.dual_encoder import DualEncoder
    from isthmus.align.saved import load_dual_encoder, save_dual_encoder
    from isthmus.align.search import Hit, PictureIndex
    from isthmus.align.zeroshot import ZeroShotClassifier
    from isthmus.backbones.language import LanguageModel, load_language
    from isthmus.backbones.text import TextEncoder, load_text
    from isthmus.backbones.vision import VisionEncoder, load_vision
    from isthmus.batch import Batch, Output
    from isthmus.checkpoint import load, save
    from isthmus.config import (
        MLP,
        AttentionPool,
        CAbstractor,
        ConceptBottleneck,
        CrossAttention,
        DataConfig,
        Inline,
        LanguageConfig,
        Linear,
        ModelConfig,
        PixelShuffle,
        Pool,
        QFormer,
        Resampler,
        RunConfig,
        TrainConfig,
        VisionConfig,
    )
    from isthmus.config_file import read_run
    from isthmus.connectors import Connector
    from isthmus.data.records import Picture, Record
    from isthmus.data.sources import read_data, read_records
    from isthmus.dual_encoder_config import ContrastiveConfig, DualEncoderConfig
    from isthmus.errors import (
        AssetError,
        CheckpointError,
        ConfigError,
        InputError,
        IsthmusError,
        MissingExtraError,
        PictureError,
        PromptError,
        TrainingError,
        TrainingStopped,
    )
    from isthmus.evaluation.runner import evaluate
    from isthmus.evaluation.task import Item, Task
    from isthmus.generation.decode import generate
    from isthmus.generation.engine import Engine
    from isthmus.images import open_picture
    from isthmus.inference import Answer, ask, stream
    from isthmus.model import VisionLanguageModel, compose
    from isthmus.prompt import Example, Prompt
    from isthmus.prompting.example_file import read_examples, write_examples
    from isthmus.prompting.reason import Reasoning
    from isthmus.training.feed import DataSet
    from isthmus.training.loop import train
    from isthmus.training.pairs import PairSet

_HOMES = {
    "isthmus.checkpoint": ("load", "save"),
    "isthmus.inference": ("ask", "stream", "Answer"),
    "isthmus.prompt": ("Example", "Prompt"),
    "isthmus.batch": ("Batch", "Output"),
    "isthmus.model": ("compose", "VisionLanguageModel"),
    "isthmus.config": (
        "Linear",
        "MLP",
        "PixelShuffle",
        "Pool",
        "AttentionPool",
        "Resampler",
        "QFormer",
        "CAbstractor",
        "ConceptBottleneck",
        "Inline",
        "CrossAttention",
        "VisionConfig",
        "LanguageConfig",
        "ModelConfig",
        "DataConfig",
        "TrainConfig",
        "RunConfig",
    ),
    "isthmus.config_file": ("read_run",),
    "isthmus.generation.decode": ("generate",),
    "isthmus.generation.engine": ("Engine",),
    "isthmus.prompting.reason": ("Reasoning",),
    "isthmus.prompting.example_file": ("read_examples", "write_examples"),
    "isthmus.evaluation.runner": ("evaluate",),
    "isthmus.evaluation.task": ("Task", "Item"),
    "isthmus.training.loop": ("train",),
    "isthmus.dual_encoder_config": ("ContrastiveConfig", "DualEncoderConfig"),
    "isthmus.training.pairs": ("PairSet",),
    "isthmus.training.feed": ("DataSet",),
    "isthmus.data.records": ("Record", "Picture"),
    "isthmus.data.sources": ("read_data", "read_records"),
    "isthmus.align.zeroshot": ("ZeroShotClassifier",),
    "isthmus.align.dual_encoder": ("DualEncoder",),
    "isthmus.align.saved": ("load_dual_encoder", "save_dual_encoder"),
    "isthmus.align.search": ("Hit", "PictureIndex"),
    "isthmus.backbones.text": ("TextEncoder", "load_text"),
    "isthmus.backbones.vision": ("VisionEncoder", "load_vision"),
    "isthmus.backbones.language": ("LanguageModel", "load_language"),
    "isthmus.connectors": ("Connector",),
    "isthmus.images": ("open_picture",),
    "isthmus.errors": (
        "IsthmusError",
        "InputError",
        "PictureError",
        "PromptError",
        "ConfigError",
        "CheckpointError",
        "AssetError",
        "TrainingError",
        "TrainingStopped",
        "MissingExtraError",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "MLP",
    "Answer",
    "AssetError",
    "AttentionPool",
    "Batch",
    "CAbstractor",
    "CheckpointError",
    "ConceptBottleneck",
    "ConfigError",
    "Connector",
    "ContrastiveConfig",
    "CrossAttention",
    "DataConfig",
    "DataSet",
    "DualEncoder",
    "DualEncoderConfig",
    "Engine",
    "Example",
    "Hit",
    "Inline",
    "InputError",
    "IsthmusError",
    "Item",
    "LanguageConfig",
    "LanguageModel",
    "Linear",
    "MissingExtraError",
    "ModelConfig",
    "Output",
    "PairSet",
    "Picture",
    "PictureError",
    "PictureIndex",
    "PixelShuffle",
    "Pool",
    "Prompt",
    "PromptError",
    "QFormer",
    "Reasoning",
    "Record",
    "Resampler",
    "RunConfig",
    "Task",
    "TextEncoder",
    "TrainConfig",
    "TrainingError",
    "TrainingStopped",
    "VisionConfig",
    "VisionEncoder",
    "VisionLanguageModel",
    "ZeroShotClassifier",
    "ask",
    "compose",
    "evaluate",
    "generate",
    "load",
    "load_dual_encoder",
    "load_language",
    "load_text",
    "load_vision",
    "open_picture",
    "read_data",
    "read_examples",
    "read_records",
    "read_run",
    "save",
    "save_dual_encoder",
    "stream",
    "train",
    "write_examples",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'isthmus' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
