"""From a configuration, or from nothing but data, to a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from isthmus.checkpoint import describe, load_strip, locate
from isthmus.config import DataConfig, RunConfig, TrainConfig
from isthmus.config_file import model_from_mapping, read_run, run_from_mapping, to_mapping
from isthmus.data.sources import read_data
from isthmus.errors import ConfigError
from isthmus.machine import precision_for
from isthmus.model import VisionLanguageModel, compose
from isthmus.training.feed import DataSet, split
from isthmus.training.loop import freeze_in_half, train
from isthmus.training.plan import Plan, plan
from isthmus.training.smoke import smoke as smoke_run

PASSES = 6
"""How often a run without a configuration goes through its data."""


def default_run(data: str | Path, records: int) -> RunConfig:
    """What is done where there is data and no configuration: the shipped default learns more.

    Its names stay as they are; its free tokens and gated blocks are trained on. A tenth of the
    pictures, where there are enough, is kept aside to see what was learned.

    Args:
        data: Where the data is.
        records: How many records it has.
    """
    batch = min(16, max(1, records))
    steps = max(60, PASSES * records // batch)
    return RunConfig(
        model=model_from_mapping(describe(locate("tiny"))["config"]),
        train=TrainConfig(
            steps=steps,
            batch_size=batch,
            lr=3e-4,
            warmup=min(50, steps // 10),
            weight_decay=0.05,
            precision=precision_for(),
            init="tiny",
            freeze=(
                "special_tokens.input_rows",
                "connector.classifier",
                "connector.norm",
                "connector.log_scale",
            ),
            evaluate_every=max(20, steps // 6) if records >= 40 else 0,
            save_every=max(20, steps // 6),
            log_every=max(1, steps // 100),
        ),
        data=(
            DataConfig(
                path=str(data),
                held_out=0.1 if records >= 40 else 0.0,
                questions=("What is in the picture?",),
            ),
        ),
    )


def data_sets(
    configs: Sequence[DataConfig], root: Path, seed: int
) -> tuple[list[DataSet], list[DataSet]]:
    """Data sets for training and for evaluation.

    Args:
        configs: As the configuration has them.
        root: What their paths are relative to.
        seed: Decides which records are kept aside.

    Raises:
        ConfigError: If there is none, or two have one name.
    """
    if not configs:
        raise ConfigError("no data: expected at least one [[data]] table, or --data FOLDER")
    training, evaluation = [], []
    for config in configs:
        whole = DataSet(
            read_data(config.path, root=root),
            config.weight,
            config.loss_weight,
            config.next_picture,
            config.questions,
            name=Path(config.path).stem or config.path,
        )
        own, aside = split(whole, config.held_out, seed)
        if len(aside.records):
            evaluation.append(aside)
        if len(own.records) or config.held_out < 1:
            training.append(own)
    for sets in (training, evaluation):
        names = [d.name for d in sets]
        for i, name in enumerate(names):
            if names.count(name) > 1:  # logs tell data sets apart by name
                sets[i] = replace(sets[i], name=f"{name}-{i}")
    return training, evaluation


def build(config: RunConfig) -> VisionLanguageModel:
    """The model of a run, its strip new or started from `train.init`, on a GPU if there is one."""
    torch.manual_seed(config.train.seed)  # the strip's first values are part of the run
    m = config.model
    model = compose(m.vision, m.language, m.connector, m.fusion, template=m.template)
    if config.train.init is not None:
        load_strip(model, locate(config.train.init), partly=True)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Job:
    """A run that is ready to start.

    Attributes:
        config: All of its choices.
        training, evaluation: Its data sets.
        cache: Folder of the feature cache; None is in the run's own.
    """

    config: RunConfig
    training: list[DataSet]
    evaluation: list[DataSet]
    cache: Path | None = None


def job(
    config: Path | None, data: Path | None, overrides: Sequence[str] = (), *, smoke: bool = False
) -> Job:
    """The run that a configuration file, a data folder, or both describe.

    Args:
        config: A TOML file; None trains the shipped default on `data`.
        data: With a configuration the folder that its paths are relative to, by default its own;
            without one the data itself.
        overrides: Strings `section.key=value`.
        smoke: Whether to shrink the run to tiny parts and made-up data.

    Raises:
        ConfigError: If anything in it is unknown or missing.
    """
    if config is None:
        assert data is not None
        found = read_data(data)
        values = to_mapping(default_run(data.resolve(), len(found)))
        chosen = run_from_mapping({**values.pop("model"), **values}, overrides)
        root, cache = data.resolve().parent, None
    else:
        chosen = read_run(config, overrides)
        root = data or config.parent
        cache = root / "features"
    if smoke:
        chosen, records = smoke_run(chosen)
        return Job(chosen, [DataSet(records)], [])
    training, evaluation = data_sets(chosen.data, root, chosen.train.seed)
    return Job(chosen, training, evaluation, cache)


def work(job: Job, out: str | Path, *, quiet: bool = False) -> Path:
    """Does a job.

    Args:
        job: The run.
        out: The run's folder.
        quiet: No progress bar.

    Returns:
        The folder of the trained model.
    """
    model = build(job.config)
    train(
        model,
        job.training,
        job.config.train,
        out,
        evaluation=job.evaluation,
        cache=job.cache,
        quiet=quiet,
    )
    return Path(out)


def plan_of(job: Job) -> Plan:
    """What a job would cost, with the time of a step measured here."""
    model = build(job.config)
    freeze_in_half(model, job.config.train)
    return plan(model, job.training, job.config.train)
