"""Isthmus: join any vision encoder to any language model by training only the strip between them.

The table of contents, in the order in which a newcomer meets it. Names are imported when they are
first used, so `import isthmus` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isthmus.align.classified import Classified, classify_pictures
    from isthmus.align.dual_encoder import DualEncoder
    from isthmus.align.search import Hit, PictureIndex
    from isthmus.align.search_folder import search_pictures
    from isthmus.align.zeroshot import ZeroShotClassifier
    from isthmus.assets import asset_status, fetch_asset
    from isthmus.backbones.language import LanguageModel, load_language
    from isthmus.backbones.text import TextEncoder, load_text
    from isthmus.backbones.vision import VisionEncoder, load_vision
    from isthmus.batch import Batch, Output
    from isthmus.catalogue import available
    from isthmus.chat.launch import open_chat
    from isthmus.config import (
        DataConfig,
        LanguageConfig,
        ModelConfig,
        RunConfig,
        TrainConfig,
        VisionConfig,
    )
    from isthmus.config_file import read_run
    from isthmus.connectors import Connector
    from isthmus.connectors.attention_pool import AttentionPool
    from isthmus.connectors.c_abstractor import CAbstractor
    from isthmus.connectors.concept_bottleneck import ConceptBottleneck
    from isthmus.connectors.linear import Linear
    from isthmus.connectors.mlp import MLP
    from isthmus.connectors.pixel_shuffle import PixelShuffle
    from isthmus.connectors.pool import Pool
    from isthmus.connectors.qformer import QFormer
    from isthmus.connectors.resampler import Resampler
    from isthmus.data.check import check_data
    from isthmus.data.compute import compute_features
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
        OutputError,
        PictureError,
        PromptError,
        TrainingError,
        TrainingStopped,
    )
    from isthmus.evaluation.runner import evaluate
    from isthmus.evaluation.task import Item, Task
    from isthmus.fusion.cross_attention import CrossAttention
    from isthmus.fusion.inline import Inline
    from isthmus.generation.decode import generate
    from isthmus.generation.engine import Engine
    from isthmus.images import open_picture
    from isthmus.inference import ask, stream
    from isthmus.machine import Machine, probe
    from isthmus.model import VisionLanguageModel, compose
    from isthmus.prompt import Example, Prompt
    from isthmus.prompting.example_file import read_examples, write_examples
    from isthmus.prompting.rationale_file import write_rationales
    from isthmus.reasoning.answer import Answer
    from isthmus.reasoning.method import Reasoning
    from isthmus.saving import load, save
    from isthmus.serving.launch import serve
    from isthmus.serving.settings import ServerSettings
    from isthmus.training.feed import DataSet
    from isthmus.training.loop import train
    from isthmus.training.pairs import PairSet

_HOMES = {
    "isthmus.saving": ("load", "save"),
    "isthmus.inference": ("ask", "stream"),
    "isthmus.prompt": ("Example", "Prompt"),
    "isthmus.batch": ("Batch", "Output"),
    "isthmus.model": ("compose", "VisionLanguageModel"),
    "isthmus.config": (
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
    "isthmus.reasoning.answer": ("Answer",),
    "isthmus.reasoning.method": ("Reasoning",),
    "isthmus.prompting.example_file": ("read_examples", "write_examples"),
    "isthmus.prompting.rationale_file": ("write_rationales",),
    "isthmus.evaluation.runner": ("evaluate",),
    "isthmus.evaluation.task": ("Task", "Item"),
    "isthmus.training.loop": ("train",),
    "isthmus.dual_encoder_config": ("ContrastiveConfig", "DualEncoderConfig"),
    "isthmus.training.pairs": ("PairSet",),
    "isthmus.training.feed": ("DataSet",),
    "isthmus.data.records": ("Record", "Picture"),
    "isthmus.data.sources": ("read_data", "read_records"),
    "isthmus.data.check": ("check_data",),
    "isthmus.data.compute": ("compute_features",),
    "isthmus.serving.launch": ("serve",),
    "isthmus.serving.settings": ("ServerSettings",),
    "isthmus.chat.launch": ("open_chat",),
    "isthmus.machine": ("Machine", "probe"),
    "isthmus.catalogue": ("available",),
    "isthmus.assets": ("asset_status", "fetch_asset"),
    "isthmus.align.classified": ("Classified", "classify_pictures"),
    "isthmus.align.search_folder": ("search_pictures",),
    "isthmus.align.zeroshot": ("ZeroShotClassifier",),
    "isthmus.align.dual_encoder": ("DualEncoder",),
    "isthmus.align.search": ("Hit", "PictureIndex"),
    "isthmus.backbones.text": ("TextEncoder", "load_text"),
    "isthmus.backbones.vision": ("VisionEncoder", "load_vision"),
    "isthmus.backbones.language": ("LanguageModel", "load_language"),
    "isthmus.connectors": ("Connector",),
    "isthmus.connectors.linear": ("Linear",),
    "isthmus.connectors.mlp": ("MLP",),
    "isthmus.connectors.pixel_shuffle": ("PixelShuffle",),
    "isthmus.connectors.pool": ("Pool",),
    "isthmus.connectors.attention_pool": ("AttentionPool",),
    "isthmus.connectors.resampler": ("Resampler",),
    "isthmus.connectors.qformer": ("QFormer",),
    "isthmus.connectors.c_abstractor": ("CAbstractor",),
    "isthmus.connectors.concept_bottleneck": ("ConceptBottleneck",),
    "isthmus.fusion.inline": ("Inline",),
    "isthmus.fusion.cross_attention": ("CrossAttention",),
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
        "OutputError",
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
    "Classified",
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
    "Machine",
    "MissingExtraError",
    "ModelConfig",
    "Output",
    "OutputError",
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
    "ServerSettings",
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
    "asset_status",
    "available",
    "check_data",
    "classify_pictures",
    "compose",
    "compute_features",
    "evaluate",
    "fetch_asset",
    "generate",
    "load",
    "load_language",
    "load_text",
    "load_vision",
    "open_chat",
    "open_picture",
    "probe",
    "read_data",
    "read_examples",
    "read_records",
    "read_run",
    "save",
    "search_pictures",
    "serve",
    "stream",
    "train",
    "write_examples",
    "write_rationales",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'isthmus' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
