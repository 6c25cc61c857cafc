"""From a configuration, or from nothing but data, to a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from isthmus.config.clip import DualEncoderConfig
from isthmus.config.file import model_from_mapping, read_run, run_from_mapping, to_mapping
from isthmus.config.model import DataConfig, EpisodeConfig, ModelConfig, RunConfig, TrainConfig
from isthmus.data.episodes import Episodes
from isthmus.data.records import Record
from isthmus.data.sources import read_data
from isthmus.errors import ConfigError
from isthmus.machine import device_for
from isthmus.model.checkpoint import describe, load_strip, locate
from isthmus.model.clip.checkpoint import load_clip
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.clip.joined import HeadConfig
from isthmus.model.join import compose
from isthmus.model.vlm import VisionLanguageModel
from isthmus.training.feed import DataSet, split
from isthmus.training.loop import train
from isthmus.training.pairs import PairSet
from isthmus.training.placed import without_weights
from isthmus.training.plan import Plan, plan
from isthmus.training.smoke import smoke as smoke_run

log = logging.getLogger(__name__)

PASSES = 6
"""How often a run without a configuration goes through its data."""
EPISODE_STEPS = 250
"""Steps of four episodes, without a configuration."""
HELD_OUT_EPISODES = 50
"""Episodes of images kept aside: each is as long as a dozen other samples."""
TOO_FEW_ASIDE = (
    "data.held_out = %s keeps too little of %s aside, so that nothing of it is evaluated: raise "
    "it, or have more records (%s)"
)
"""Its share, the data set's name, and what is missing."""


def episodes_run(data: str | Path) -> RunConfig:
    """What `--episodes` does: the shipped default learns to learn from its context.

    It is trained on made-up names for classes of the data; a quarter of the images is kept aside.
    What is trained is as in `default_run`.

    Args:
        data: Where the data is: images, and a class for each.
    """
    whole = default_run(data, 0)
    train = replace(
        whole.train,
        steps=EPISODE_STEPS,
        batch_size=4,
        lr=1e-3,
        weight_decay=0.0,
        warmup=20,
        evaluate_every=EPISODE_STEPS // 5,
        save_every=EPISODE_STEPS // 10,
        log_every=10,
    )
    questions = ("What is this?", "What is in the picture?")
    episodes = DataConfig(
        path=str(data), held_out=0.25, questions=questions, episodes=EpisodeConfig()
    )
    return replace(whole, train=train, data=(episodes,))


def default_run(data: str | Path, records: int) -> RunConfig:
    """What is done where there is data and no configuration: the shipped default learns more.

    The adapters, the free tokens, and what says how sure names are and where they stand are
    trained on. What was fitted stays: the names of images and of regions, and the reader of printed
    words. A tenth of the images, where there are enough, is kept aside to see what was learned.

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
            init="tiny",
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
    """Data sets of a vision-language model, for training and for evaluation.

    Args:
        configs: As the configuration has them.
        root: What their paths are relative to.
        seed: Decides which records are kept aside.

    Raises:
        ConfigError: If there is none, or one has what is for dual encoders.
    """
    training, evaluation = [], []
    for config, name, own, aside in _read(configs, root, seed):
        _refuse(config, ("templates",), "a dual encoder")
        whole = DataSet(
            (),
            config.weight,
            config.loss_weight,
            config.next_image,
            config.questions,
            name=name,
        )
        if config.episodes is not None:
            if len(own):
                own = Episodes(own, config.episodes, seed=seed, questions=config.questions)
            few = replace(config.episodes, count=min(config.episodes.count, HELD_OUT_EPISODES))
            try:
                aside = Episodes(aside, few, seed=seed, questions=config.questions, stream=1)
            except ConfigError as error:
                if config.held_out:
                    log.warning(TOO_FEW_ASIDE, config.held_out, name, error)
                aside = []
        elif config.held_out and not len(aside):
            log.warning(TOO_FEW_ASIDE, config.held_out, name, "expected one record or more")
        if len(aside):
            evaluation.append(replace(whole, records=aside))
        if len(own) or config.held_out < 1:
            training.append(replace(whole, records=own))
    return training, evaluation


def pair_sets(
    configs: Sequence[DataConfig], root: Path, seed: int
) -> tuple[list[PairSet], list[PairSet]]:
    """Data sets of a dual encoder, for training and for evaluation; else as `data_sets`."""
    training, evaluation = [], []
    for config, name, own, aside in _read(configs, root, seed):
        keys = ("loss_weight", "questions", "next_image", "episodes")
        _refuse(config, keys, "a vision-language model")
        templates = config.templates[0] if len(config.templates) == 1 else config.templates
        if len(aside):
            evaluation.append(PairSet(aside, templates, name=name))
        if len(own) or config.held_out < 1:
            training.append(PairSet(own, templates, config.weight, name))
    return training, evaluation


def _read(
    configs: Sequence[DataConfig], root: Path, seed: int
) -> Iterator[tuple[DataConfig, str, Sequence[Record], Sequence[Record]]]:
    """Each data set's name, and its records for training and for evaluation."""
    if not configs:
        raise ConfigError("no data: expected at least one [[data]] table, or --data FOLDER")
    names = [Path(c.path).stem or c.path for c in configs]
    for number, (config, name) in enumerate(zip(configs, names, strict=True)):
        if names.count(name) > 1:
            name = f"{name}-{number}"  # logs tell data sets apart by name
        whole = DataSet(read_data(config.path, root=root), name=name)
        own, aside = split(whole, config.held_out, seed)
        yield config, name, own.records, aside.records


def _refuse(config: DataConfig, keys: Sequence[str], whose: str) -> None:
    """Raises if a data set has what is for the other kind of model."""
    plain = DataConfig(path=config.path)
    for key in keys:
        if getattr(config, key) != getattr(plain, key):
            raise ConfigError(f"data.{key} is for {whose}: leave it out of {config.path}")


def build(
    config: RunConfig, device: str = "auto", *, weights: bool = True
) -> VisionLanguageModel | DualEncoder:
    """The model of a run; what is trained is new, or of `train.init`.

    Args:
        config: All choices of the run.
        device: Where it is put, as for `load`.
        weights: Whether a language model that a map places is loaded; else it is one without.

    Raises:
        ConfigError: If a name or option is unknown.
    """
    torch.manual_seed(config.train.seed)  # the first values are part of the run
    m = config.model
    model: VisionLanguageModel | DualEncoder
    if isinstance(m, ModelConfig):
        model = compose(
            m.vision,
            m.language if weights else without_weights(m.language),
            m.connector,
            m.fusion,
            media=m.media,
            template=m.template,
            tokens=m.tokens,
            device=device,
        )
        if config.train.init is not None:
            load_strip(model, locate(config.train.init), partly=True)
    elif m.name is not None:
        model = load_clip(m.name, device=device).to(device_for(device))
    else:
        assert m.vision is not None
        assert m.text is not None
        model = DualEncoder.join(
            m.vision,
            m.text,
            width=m.width,
            pooling=m.pooling,  # type: ignore[arg-type]
            image_head=HeadConfig(hidden=m.image_hidden, dropout=m.dropout),
            text_head=HeadConfig(hidden=m.text_hidden, dropout=m.dropout),
            loss=m.loss,
            lock_image=m.lock_image,
            lock_text=m.lock_text,
        )
        model = model.to(device_for(device))
    return model


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to start.

    Attributes:
        config: All of its choices.
        training, evaluation: Its data sets, of the kind that its model is trained on.
        cache: Folder of the feature cache; None is in the run's own.
        device: Where a process that is alone computes, as for `load`.
    """

    config: RunConfig
    training: list[DataSet] | list[PairSet]
    evaluation: list[DataSet] | list[PairSet]
    cache: Path | None = None
    device: str = "auto"


def job(
    config: Path | None,
    data: Path | None,
    overrides: Sequence[str] = (),
    *,
    smoke: bool = False,
    episodes: bool = False,
    device: str = "auto",
) -> PreparedRun:
    """The run that a configuration file, a data folder, or both describe.

    Args:
        config: A TOML file; None trains the shipped default on `data`.
        data: With a configuration the folder that its paths are relative to, by default its own;
            without one the data itself.
        overrides: Strings `section.key=value`.
        smoke: Whether to shrink the run to tiny parts and made-up data.
        episodes: Whether, without a configuration, episodes are made of the data.
        device: Where a process that is alone computes, as for `load`.

    Raises:
        ConfigError: If anything in it is unknown or missing.
    """
    if config is not None and episodes:
        raise ConfigError(
            "--episodes is for a run without a configuration: in one, add a table "
            "[data.episodes] to its data set"
        )
    if config is None:
        assert data is not None
        path = data.resolve()
        default = episodes_run(path) if episodes else default_run(path, len(read_data(data)))
        values = to_mapping(default)
        chosen = run_from_mapping({**values.pop("model"), **values}, overrides)
        root, cache = data.resolve().parent, None
    else:
        chosen = read_run(config, overrides)
        root = data or config.parent
        cache = root / "features"
    pairs = isinstance(chosen.model, DualEncoderConfig)
    if smoke:
        chosen, records = smoke_run(chosen)
        made = [PairSet(records)] if pairs else [DataSet(records)]
        return PreparedRun(chosen, made, [], device=device)
    read = pair_sets if pairs else data_sets
    training, evaluation = read(chosen.data, root, chosen.train.seed)
    return PreparedRun(chosen, training, evaluation, cache, device)


def work(job: PreparedRun, out: str | Path, *, quiet: bool = False) -> Path:
    """Does a job.

    Args:
        job: The run.
        out: The run's folder.
        quiet: No progress.

    Returns:
        The folder of the trained model.
    """
    train(
        build(job.config, job.device),
        job.training,
        job.config.train,
        out,
        evaluation=job.evaluation,
        cache=job.cache,
        quiet=quiet,
    )
    return Path(out)


def plan_of(job: PreparedRun) -> Plan:
    """What a job would cost, with the time of a step measured here.

    Where a map places the language model, its weights are not read and the time is computed.
    """
    model = job.config.model
    if isinstance(model, ModelConfig) and model.language.device_map is not None:
        planned = build(job.config, job.device, weights=False)
        return plan(planned, job.training, job.config.train, model.language)
    return plan(build(job.config, job.device), job.training, job.config.train)
