"""A run at toy size: whether a configuration works from end to end, before it costs anything.

The parts are the tiny ones that need no download, everything that has a size is shrunk, and the
records are made up here. What remains is the run's shape: the same connector and fusion, the same
mixture, packing, schedule and data options.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from isthmus.config.clip import DualEncoderConfig
from isthmus.config.model import (
    DataConfig,
    LanguageConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
)
from isthmus.data.records import Medium, Record
from isthmus.data.rows import png
from isthmus.media.file_ref import FileRef
from isthmus.model.media.native import NativeImages
from isthmus.prompts.prompt import Example

STEPS, BATCH = 3, 4
FRAMES = 3
LONGEST = 256
"""Positions that "tiny-lm" has."""
LAYERS, WIDTH = 4, 64
"""Decoder layers of "tiny-lm" and their width."""
BLOCKS = 2
"""Blocks of "tiny-vit"."""
PLAIN = ("red", "green", "blue", "white")
"""Colours that a dual encoder is shown."""


def smoke(config: RunConfig) -> tuple[RunConfig, list[Record]]:
    """The same run at toy size, and records for each of its data sets.

    Args:
        config: The run.

    Returns:
        A run of three steps in fp32 on tiny parts, whose data sets keep their paths and weights;
        and twelve records to give each of them in place of what lies at its path: captions,
        questions, documents with two images, a chat, plain text, and a clip where the connector
        takes clips.

    Example:
        >>> from isthmus.config.file import run_from_mapping
        >>> small, records = smoke(
        ...     run_from_mapping(
        ...         {
        ...             "vision": {"name": "timm:vit_so400m_patch14_siglip_384"},
        ...             "language": {"name": "hf:Qwen/Qwen3-8B"},
        ...             "connector": {"type": "resampler"},
        ...             "data": [{"path": "pairs.jsonl"}],
        ...         }
        ...     )
        ... )
        >>> small.model.language.name, small.model.connector.latents, len(records)
        ('tiny-lm', 4, 12)
    """
    if isinstance(config.model, DualEncoderConfig):
        return _dual_encoder(config, config.model)
    model = _model(config.model)
    clips = getattr(model.connector, "max_frames", 0) > 0
    small = RunConfig(
        model=model, train=_train(config.train), data=tuple(_data(d) for d in config.data)
    )
    return small, _records(clips=clips)


def _dual_encoder(config: RunConfig, model: DualEncoderConfig) -> tuple[RunConfig, list[Record]]:
    """Two steps on four images of one colour each; a model by its name stays as it is."""
    if model.name is None:
        model = replace(model, vision="tiny-vit", text="tiny-text", width=16)
    train = replace(config.train, steps=2, batch_size=len(PLAIN), warmup=1, evaluate_every=0)
    shown = {
        name: FileRef(Path(f"{name}.png"), data=png(Image.new("RGB", (32, 32), name)))
        for name in PLAIN
    }
    records = [Record.of(image, "", name) for name, image in shown.items()]
    return replace(config, model=model, train=train), records


def _model(config: ModelConfig) -> ModelConfig:
    """The same connector and fusion between the tiny parts."""
    layer = max(config.vision.feature_layer, -BLOCKS)
    return replace(
        config,
        vision=replace(
            config.vision,
            name="tiny-cnn" if config.vision.regions else "tiny-vit",
            feature_layer=layer,
            deepstack=False,
        ),
        language=_language(config.language),
        connector=_toy(config.connector),
        fusion=_toy(config.fusion),
        # the tiny encoders' images are all of one size
        media=tuple(_toy(m) for m in config.media if not isinstance(m, NativeImages)),
        tokens=None,  # the tiny language model's vocabulary has none
    )


def _language(config: LanguageConfig) -> LanguageConfig:
    """The tiny one; a mixture of experts, laid over what is here, where a map places the layers."""
    if config.device_map is not None:
        return LanguageConfig(name="tiny-moe", device_map="auto")
    return LanguageConfig(name="tiny-lm", lora_rank=min(config.lora_rank, 2))


def _toy(part: Any) -> Any:
    """The part at toy size, where it says what that is."""
    toy = getattr(part, "toy", None)
    return part if toy is None else toy()


def _train(config: TrainConfig) -> TrainConfig:
    """Three steps of the same kind, with an evaluation and a checkpoint if there were any."""
    return replace(
        config,
        steps=STEPS,
        batch_size=BATCH,
        micro_batch_size=None if config.micro_batch_size is None else BATCH // 2,
        warmup=min(config.warmup, 1),
        pack=min(config.pack, LONGEST),
        max_length=min(config.max_length, LONGEST),
        precision="fp32",
        init=None,
        workers=min(config.workers, 1),
        evaluate_every=min(config.evaluate_every, STEPS),
        sample_answers=min(config.sample_answers, 1),
        save_every=STEPS,
        log_every=1,
    )


def _data(config: DataConfig) -> DataConfig:
    """The same options; a held-out share that keeps some of twelve records."""
    if not 0 < config.held_out < 1:
        return config
    return replace(config, held_out=max(config.held_out, 0.25))


# --- Made-up records ----------------------------------------------------------------------------

COLOURS = {"red": (210, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 210)}
SHAPES = ("circle", "square", "triangle")


def _image(colour: str, shape: str, left: int = 12) -> FileRef:
    """A drawn shape as a PNG in memory.

    Args:
        colour: A name in `COLOURS`.
        shape: One of `SHAPES`.
        left: Where the shape begins, in pixels.
    """
    image = Image.new("RGB", (64, 48), (245, 245, 240))
    draw, box = ImageDraw.Draw(image), (left, 8, left + 32, 40)
    if shape == "circle":
        draw.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        draw.rectangle(box, fill=COLOURS[colour])
    else:
        draw.polygon([(left, 40), (left + 32, 40), (left + 16, 8)], fill=COLOURS[colour])
    data = io.BytesIO()
    image.save(data, format="PNG")
    return FileRef(Path(f"{colour}-{shape}-{left}.png"), data=data.getvalue())


def _clip(colour: str, shape: str) -> Medium:
    """Frames in which a shape moves to the right."""
    return tuple(_image(colour, shape, left=8 * t) for t in range(FRAMES))


def _records(*, clips: bool) -> list[Record]:
    """Twelve records of the kinds that a run can meet."""
    names = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    captions = [_caption(_image(*name), f"a {' '.join(name)}") for name in names[:4]]
    questions = [_question(name) for name in names[4:7]]
    last = _caption(_clip("red", "square"), "a square moves") if clips else _question(names[7])
    return [
        *captions,
        *questions,
        _document(names[:2]),
        _document(names[7:9]),
        _chat(names[5]),
        Record(text="A circle has no corners.", origin="smoke: text"),
        last,
    ]


def _caption(medium: Medium, text: str) -> Record:
    return Record.of(medium, "", text, origin="smoke: caption")


def _question(name: tuple[str, str]) -> Record:
    return Record.of(_image(*name), "Which shape?", name[1], origin="smoke: question")


def _document(names: Sequence[tuple[str, str]]) -> Record:
    text = " ".join(f"<image>Here is a {' '.join(name)}." for name in names)
    images = tuple(_image(*name) for name in names)
    return Record(text=text, images_in_text=images, origin="smoke: document")


def _chat(name: tuple[str, str]) -> Record:
    first = Example((_image(*name),), "Which shape?", name[1])
    return Record((first, Example((), "Which colour?", name[0])), origin="smoke: chat")
