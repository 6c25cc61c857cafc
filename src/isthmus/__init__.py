"""Isthmus: join any vision encoder to any language model by training only the strip between them.

The table of contents, in the order in which a newcomer meets it. Names are imported when they are
first used, so `import isthmus` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isthmus.assets.registry import asset_status, fetch_asset
    from isthmus.auditing.data import LabelledImages
    from isthmus.auditing.run import Audit, audit
    from isthmus.catalogue import available
    from isthmus.classification.calibration import Calibration
    from isthmus.classification.classify import Classified, classify_images
    from isthmus.classification.zero_shot import ZeroShotClassifier
    from isthmus.config.clip import ContrastiveConfig, DualEncoderConfig
    from isthmus.config.file import read_run
    from isthmus.config.model import (
        DataConfig,
        LanguageConfig,
        ModelConfig,
        RunConfig,
        TrainConfig,
        VisionConfig,
    )
    from isthmus.data.check import check_data
    from isthmus.data.compute import compute_features
    from isthmus.data.records import Record
    from isthmus.data.sources import read_data, read_records
    from isthmus.demonstrations.example_file import read_examples, write_examples
    from isthmus.demonstrations.rationale_file import write_rationales
    from isthmus.diagnosis import Diagnosis, diagnose
    from isthmus.errors import (
        AssetError,
        CheckpointError,
        ConfigError,
        ExportError,
        ImageError,
        InputError,
        IsthmusError,
        MediaError,
        MissingExtraError,
        OutputError,
        PromptError,
        TrainingError,
        TrainingStopped,
    )
    from isthmus.evaluation.runner import evaluate
    from isthmus.evaluation.task import Item, Task
    from isthmus.explaining.explanation import Explanation
    from isthmus.explaining.run import explain
    from isthmus.exporting.exported import Exported
    from isthmus.exporting.run import export
    from isthmus.generation.decode import generate
    from isthmus.generation.engine import Engine
    from isthmus.machine import Machine, probe
    from isthmus.media.file_ref import FileRef
    from isthmus.media.image import open_image
    from isthmus.model.backbones.language import LanguageModel, load_language
    from isthmus.model.backbones.text import TextEncoder, load_text
    from isthmus.model.backbones.vision import VisionEncoder, load_vision
    from isthmus.model.batch import Batch, Output
    from isthmus.model.clip.dual_encoder import DualEncoder
    from isthmus.model.connectors import Connector
    from isthmus.model.connectors.attention_pool import AttentionPool
    from isthmus.model.connectors.c_abstractor import CAbstractor
    from isthmus.model.connectors.linear import Linear
    from isthmus.model.connectors.merger import Merger
    from isthmus.model.connectors.mlp import MLP
    from isthmus.model.connectors.names import Names
    from isthmus.model.connectors.pixel_shuffle import PixelShuffle
    from isthmus.model.connectors.pixel_shuffle_mlp import PixelShuffleMLP
    from isthmus.model.connectors.pool import Pool
    from isthmus.model.connectors.qformer import QFormer
    from isthmus.model.connectors.resampler import Resampler
    from isthmus.model.fusion.adapter import Adapter
    from isthmus.model.fusion.cross_attention import CrossAttention
    from isthmus.model.fusion.inline import Inline
    from isthmus.model.hub import from_pretrained, push_to_hub, save_pretrained
    from isthmus.model.join import compose
    from isthmus.model.media.native import NativeImages
    from isthmus.model.saving import load, save
    from isthmus.model.vlm import VisionLanguageModel
    from isthmus.prompts.prompt import Example, Prompt
    from isthmus.reasoning.answer import Answer
    from isthmus.reasoning.inference import ask, stream
    from isthmus.reasoning.method import Reasoning
    from isthmus.search.index import Hit, ImageIndex
    from isthmus.search.search import search_images
    from isthmus.serving.chat.launch import open_chat
    from isthmus.serving.launch import serve
    from isthmus.serving.settings import ServerSettings
    from isthmus.training.feed import DataSet
    from isthmus.training.loop import train
    from isthmus.training.pairs import PairSet

_HOMES = {
    "isthmus.model.saving": ("load", "save"),
    "isthmus.model.hub": ("from_pretrained", "save_pretrained", "push_to_hub"),
    "isthmus.reasoning.inference": ("ask", "stream"),
    "isthmus.prompts.prompt": ("Example", "Prompt"),
    "isthmus.model.batch": ("Batch", "Output"),
    "isthmus.model.join": ("compose",),
    "isthmus.model.vlm": ("VisionLanguageModel",),
    "isthmus.config.model": (
        "VisionConfig",
        "LanguageConfig",
        "ModelConfig",
        "DataConfig",
        "TrainConfig",
        "RunConfig",
    ),
    "isthmus.config.file": ("read_run",),
    "isthmus.generation.decode": ("generate",),
    "isthmus.generation.engine": ("Engine",),
    "isthmus.reasoning.answer": ("Answer",),
    "isthmus.reasoning.method": ("Reasoning",),
    "isthmus.demonstrations.example_file": ("read_examples", "write_examples"),
    "isthmus.demonstrations.rationale_file": ("write_rationales",),
    "isthmus.evaluation.runner": ("evaluate",),
    "isthmus.auditing.run": ("audit", "Audit"),
    "isthmus.auditing.data": ("LabelledImages",),
    "isthmus.evaluation.task": ("Task", "Item"),
    "isthmus.explaining.run": ("explain",),
    "isthmus.explaining.explanation": ("Explanation",),
    "isthmus.training.loop": ("train",),
    "isthmus.exporting.run": ("export",),
    "isthmus.exporting.exported": ("Exported",),
    "isthmus.config.clip": ("ContrastiveConfig", "DualEncoderConfig"),
    "isthmus.training.pairs": ("PairSet",),
    "isthmus.training.feed": ("DataSet",),
    "isthmus.data.records": ("Record",),
    "isthmus.media.file_ref": ("FileRef",),
    "isthmus.data.sources": ("read_data", "read_records"),
    "isthmus.data.check": ("check_data",),
    "isthmus.data.compute": ("compute_features",),
    "isthmus.serving.launch": ("serve",),
    "isthmus.serving.settings": ("ServerSettings",),
    "isthmus.serving.chat.launch": ("open_chat",),
    "isthmus.machine": ("Machine", "probe"),
    "isthmus.catalogue": ("available",),
    "isthmus.diagnosis": ("Diagnosis", "diagnose"),
    "isthmus.assets.registry": ("asset_status", "fetch_asset"),
    "isthmus.classification.calibration": ("Calibration",),
    "isthmus.classification.classify": ("Classified", "classify_images"),
    "isthmus.search.search": ("search_images",),
    "isthmus.classification.zero_shot": ("ZeroShotClassifier",),
    "isthmus.model.clip.dual_encoder": ("DualEncoder",),
    "isthmus.search.index": ("Hit", "ImageIndex"),
    "isthmus.model.backbones.text": ("TextEncoder", "load_text"),
    "isthmus.model.backbones.vision": ("VisionEncoder", "load_vision"),
    "isthmus.model.backbones.language": ("LanguageModel", "load_language"),
    "isthmus.model.connectors": ("Connector",),
    "isthmus.model.connectors.linear": ("Linear",),
    "isthmus.model.connectors.names": ("Names",),
    "isthmus.model.connectors.mlp": ("MLP",),
    "isthmus.model.connectors.merger": ("Merger",),
    "isthmus.model.connectors.pixel_shuffle": ("PixelShuffle",),
    "isthmus.model.connectors.pixel_shuffle_mlp": ("PixelShuffleMLP",),
    "isthmus.model.connectors.pool": ("Pool",),
    "isthmus.model.connectors.attention_pool": ("AttentionPool",),
    "isthmus.model.connectors.resampler": ("Resampler",),
    "isthmus.model.connectors.qformer": ("QFormer",),
    "isthmus.model.connectors.c_abstractor": ("CAbstractor",),
    "isthmus.model.fusion.inline": ("Inline",),
    "isthmus.model.fusion.adapter": ("Adapter",),
    "isthmus.model.fusion.cross_attention": ("CrossAttention",),
    "isthmus.model.media.native": ("NativeImages",),
    "isthmus.media.image": ("open_image",),
    "isthmus.errors": (
        "IsthmusError",
        "MediaError",
        "InputError",
        "ImageError",
        "PromptError",
        "ConfigError",
        "CheckpointError",
        "AssetError",
        "TrainingError",
        "TrainingStopped",
        "MissingExtraError",
        "OutputError",
        "ExportError",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "MLP",
    "Adapter",
    "Answer",
    "AssetError",
    "AttentionPool",
    "Audit",
    "Batch",
    "CAbstractor",
    "Calibration",
    "CheckpointError",
    "Classified",
    "ConfigError",
    "Connector",
    "ContrastiveConfig",
    "CrossAttention",
    "DataConfig",
    "DataSet",
    "Diagnosis",
    "DualEncoder",
    "DualEncoderConfig",
    "Engine",
    "Example",
    "Explanation",
    "ExportError",
    "Exported",
    "FileRef",
    "Hit",
    "ImageError",
    "ImageIndex",
    "Inline",
    "InputError",
    "IsthmusError",
    "Item",
    "LabelledImages",
    "LanguageConfig",
    "LanguageModel",
    "Linear",
    "Machine",
    "MediaError",
    "Merger",
    "MissingExtraError",
    "ModelConfig",
    "Names",
    "NativeImages",
    "Output",
    "OutputError",
    "PairSet",
    "PixelShuffle",
    "PixelShuffleMLP",
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
    "audit",
    "available",
    "check_data",
    "classify_images",
    "compose",
    "compute_features",
    "diagnose",
    "evaluate",
    "explain",
    "export",
    "fetch_asset",
    "from_pretrained",
    "generate",
    "load",
    "load_language",
    "load_text",
    "load_vision",
    "open_chat",
    "open_image",
    "probe",
    "push_to_hub",
    "read_data",
    "read_examples",
    "read_records",
    "read_run",
    "save",
    "save_pretrained",
    "search_images",
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
