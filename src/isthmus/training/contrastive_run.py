"""From a configuration that names a dual encoder to a run; `run` does so for the strip."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from isthmus.align.dual_encoder import DualEncoder
from isthmus.align.joined import HeadConfig, JoinedImageTower
from isthmus.align.saved import load_clip
from isthmus.data.records import Picture, Record
from isthmus.data.rows import png
from isthmus.data.sources import read_data
from isthmus.errors import ConfigError
from isthmus.training.contrastive import checked_sets, locked_parts, train_contrastive
from isthmus.training.contrastive_config import (
    ContrastiveRunConfig,
    DualEncoderConfig,
    PairConfig,
    read_contrastive,
)
from isthmus.training.contrastive_data import PairFeed, PairSet, all_pictures
from isthmus.training.contrastive_features import PooledCache, TextCache
from isthmus.training.contrastive_step import ContrastiveStepper
from isthmus.training.feed import DataSet, augmented, split
from isthmus.training.optim import contrastive_optimizer
from isthmus.training.plan import GB, TIMED, clock
from isthmus.training.processes import Processes

TRIED = 8
"""Pictures that are encoded to tell how long all of them take."""
SMOKE = ("red", "green", "blue", "white")


@dataclass(frozen=True)
class ContrastiveJob:
    """A contrastive run that is ready to start.

    Attributes:
        config: All of its choices.
        training, evaluation: Its data sets.
        cache: Folder of the vectors of locked encoders; None is in the run's own.
    """

    config: ContrastiveRunConfig
    training: list[PairSet]
    evaluation: list[PairSet]
    cache: Path | None = None


def build(config: DualEncoderConfig, seed: int = 0) -> DualEncoder:
    """The model of a run, its heads new, on a GPU if there is one.

    Raises:
        ConfigError: If a name or option is unknown.
    """
    torch.manual_seed(seed)  # the heads' first values are part of the run
    if config.name is not None:
        model = load_clip(config.name)
    else:
        assert config.vision is not None
        assert config.text is not None
        model = DualEncoder.join(
            config.vision,
            config.text,
            width=config.width,
            pooling=config.pooling,  # type: ignore[arg-type]
            image_head=HeadConfig(hidden=config.image_hidden, dropout=config.dropout),
            text_head=HeadConfig(hidden=config.text_hidden, dropout=config.dropout),
            loss=config.loss,
            lock_image=config.lock_image,
            lock_text=config.lock_text,
        )
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def pair_sets(
    configs: Sequence[PairConfig], root: Path, seed: int
) -> tuple[list[PairSet], list[PairSet]]:
    """Data sets for training and for evaluation.

    Args:
        configs: As the configuration has them.
        root: What their paths are relative to.
        seed: Decides which records are kept aside.

    Raises:
        ConfigError: If there is none.
    """
    if not configs:
        raise ConfigError("no data: expected at least one [[data]] table")
    training, evaluation = [], []
    for number, config in enumerate(configs):
        name = Path(config.path).stem or config.path
        if [Path(c.path).stem for c in configs].count(name) > 1:
            name = f"{name}-{number}"  # logs tell data sets apart by name
        templates = config.templates[0] if len(config.templates) == 1 else config.templates
        whole = DataSet(read_data(config.path, root=root), name=name)
        own, aside = split(whole, config.held_out, seed)
        if len(aside.records):
            evaluation.append(PairSet(aside.records, templates, name=name))
        if len(own.records) or config.held_out < 1:
            training.append(PairSet(own.records, templates, config.weight, name))
    return training, evaluation


def job(
    config: Path, data: Path | None, overrides: Sequence[str] = (), *, smoke: bool = False
) -> ContrastiveJob:
    """The run that a configuration file describes.

    Args:
        config: A TOML file with a table `[dual_encoder]`.
        data: The folder that its paths are relative to, by default its own.
        overrides: Strings `section.key=value`.
        smoke: Whether to shrink the run to tiny parts and made-up data.

    Raises:
        ConfigError: If anything in it is unknown or missing.
    """
    chosen = read_contrastive(config, overrides)
    if smoke:
        model = chosen.model
        if model.name is None:
            model = replace(model, vision="tiny-vit", text="tiny-text", width=16)
        train = replace(chosen.train, steps=2, batch_size=4, warmup=1, evaluate_every=0)
        shown = [Record.of(_plain(name), "", name) for name in SMOKE]
        return ContrastiveJob(replace(chosen, model=model, train=train), [PairSet(shown)], [])
    root = data or config.parent
    training, evaluation = pair_sets(chosen.data, root, chosen.train.seed)
    return ContrastiveJob(chosen, training, evaluation, root / "features")


def _plain(name: str) -> Picture:
    """A picture of one colour."""
    data = png(Image.new("RGB", (32, 32), name))
    return Picture(Path(f"{name}.png"), data=data)


def work(job: ContrastiveJob, out: str | Path, *, quiet: bool = False) -> Path:
    """Does a job.

    Returns:
        The folder of the trained model.
    """
    model = build(job.config.model, job.config.train.seed)
    held, cache = job.evaluation, job.cache
    train_contrastive(
        model, job.training, job.config.train, out, evaluation=held, cache=cache, quiet=quiet
    )
    return Path(out)


# --- Before it is started ------------------------------------------------------------------------


@dataclass(frozen=True)
class ContrastivePlan:
    """A contrastive run before it is started.

    Attributes:
        parameters, trained: Of the model, and those of them that change.
        steps, batch_size: Of the run.
        pairs, names, epochs: Of each data set, by name: records, different first names, and how
            often it is gone through.
        step_seconds: Measured, with kept vectors where the run keeps them.
        pictures: Pictures to encode before the first step, and texts.
        texts: Texts likewise.
        encode_seconds: For all of them, measured on a few.
        cache: Bytes of their vectors.
    """

    parameters: int
    trained: int
    steps: int
    batch_size: int
    pairs: dict[str, int]
    names: dict[str, int]
    epochs: dict[str, float]
    step_seconds: float
    pictures: int
    texts: int
    encode_seconds: float
    cache: int

    @property
    def seconds(self) -> float:
        """Of the whole run, filling the caches included."""
        return self.encode_seconds + self.steps * self.step_seconds

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "seconds": self.seconds}

    def __str__(self) -> str:
        sets = ", ".join(
            f"{n} {self.pairs[n]:,} pairs of {self.names[n]:,} names, {self.epochs[n]:.1f} epochs"
            for n in self.pairs
        )
        lines = [
            f"{'parameters':<16}{self.parameters:,}, of which {self.trained:,} are trained",
            f"{'steps':<16}{self.steps:,} of {self.batch_size:,} pairs",
            f"{'data':<16}{sets}",
            f"{'step':<16}{self.step_seconds:.3f} s, measured on this machine",
        ]
        if self.cache:
            lines.append(
                f"{'feature cache':<16}{self.cache / GB:.2f} GB on disk, "
                f"{clock(self.encode_seconds)} to fill "
                f"({self.pictures:,} pictures, {self.texts:,} texts)"
            )
        return "\n".join([*lines, f"{'whole run':<16}{clock(self.seconds)}"])


def plan_of(job: ContrastiveJob) -> ContrastivePlan:
    """What a job would cost; takes a few of its steps to find out, and saves nothing."""
    config = job.config.train
    data = checked_sets(job.training)
    model = build(job.config.model, config.seed)
    processes = Processes(model.device)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    locked = locked_parts(model) if config.feature_cache else ()
    pictures = texts = None
    shown, written, seconds, size = 0, 0, 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        if "image.encoder." in locked and config.views:
            assert isinstance(model.image, JoinedImageTower)
            pictures = PooledCache(folder, model.image, config.views, augmented, config.seed)
            shown = sum(1 for _ in all_pictures(data))
            started = time.perf_counter()
            tried = pictures.fill(islice(all_pictures(data), TRIED), quiet=True).computed
            seconds += (time.perf_counter() - started) / max(1, tried) * shown
            views, width = pictures.shape
            size += shown * views * width * 4
            # Any vectors will do to see how long a step takes
            some = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, width))).float()
            data = [replace(d, vectors=some.expand(len(d.records), 1, width)) for d in data]
        if "text.encoder." in locked:
            texts = TextCache(folder, model)
        feed = PairFeed(data, config, model.preprocess, pictures=pictures, texts=texts)
        step = next(feed.steps(0, 1))
        if texts is not None:
            written = len(feed.all_texts())
            started, few = time.perf_counter(), list(dict.fromkeys(p.text for p in step))
            texts.fill(few, processes, quiet=True)
            seconds += (time.perf_counter() - started) / len(few) * written
            size += written * texts.store.shape[1] * 4
        quiet = replace(config, lr=0.0, lr_encoder=0.0)
        optimizer = contrastive_optimizer(parameters, quiet)
        stepper = ContrastiveStepper(model, feed, quiet, processes, optimizer, parameters)
        model.train()
        times = []
        for _ in range(TIMED):
            started = time.perf_counter()
            stepper.take(0, step)
            times.append(time.perf_counter() - started)
    drawn = [draw.data for draw in feed.mixture.step(0)]
    return ContrastivePlan(
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in parameters.values()),
        steps=config.steps,
        batch_size=config.batch_size,
        pairs={d.name: len(d.records) for d in data},
        names={d.name: len(d.labelled()) for d in data},
        epochs={d.name: config.steps * drawn.count(i) / len(d.records) for i, d in enumerate(data)},
        step_seconds=min(times[1:]),  # the first one also warms up
        pictures=shown,
        texts=written,
        encode_seconds=seconds,
        cache=size,
    )
