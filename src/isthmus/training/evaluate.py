"""Looking at a run from outside: loss on records kept aside, and answers for people to read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from isthmus.config.model import TrainConfig
from isthmus.data.mixture import SampleRef
from isthmus.data.records import ImageRef, Record, frames
from isthmus.data.samples import Sample
from isthmus.errors import InputError
from isthmus.generation.decode import generate, text_of
from isthmus.media.image import open_image
from isthmus.model.batch import Batch, pad
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.prompt import Example
from isthmus.prompts.templates import template_named
from isthmus.training.feed import DataSet, Feed, ImageLoader, TrainingItem, parts
from isthmus.training.objectives import Objective
from isthmus.training.precision import autocast
from isthmus.training.processes import Processes

MOST_RECORDS = 512
"""Records of each data set that an evaluation reads, the first ones."""
SIDE = 256
"""Longest side of the images kept beside answers, in pixels."""


@torch.no_grad()
def held_out_losses(
    model: VisionLanguageModel,
    data: Sequence[DataSet],
    config: TrainConfig,
    objective: Objective,
    images: ImageLoader,
    processes: Processes,
) -> dict[str, float]:
    """Mean loss per token of each data set, by name, over all processes.

    Args:
        model: The model, in evaluation mode.
        data: What was kept aside, none of it empty.
        config: The run's.
        objective: What is measured.
        images: Where images come from; never augmented.
        processes: All of them; each reads its share.
    """
    losses = {}
    for one in data:
        feed = Feed(model, [one], config, images, processes=1)
        count = min(MOST_RECORDS, len(one.records))
        own = [SampleRef(i, 0, i, 0) for i in range(processes.rank, count, processes.count)]
        items = list(feed.items(own))
        # Every process makes as many passes as the others: some share parameters
        missing = -(-count // processes.count) - len(items)
        filler = TrainingItem(
            SampleRef(0, 0, 0, 0), Record(text=" "), Sample([], [], ()), why_not="filler"
        )
        items += [filler] * missing
        total = tokens = 0.0
        size = config.micro_batch_size or max(1, config.batch_size // processes.count)
        for part in parts(items, size):
            kept = [i for i in part if not i.why_not]
            if not kept and not getattr(objective, "always_images", False):
                continue
            with autocast(processes.device, config):
                for loss in objective.losses(model, kept, [0.0] * len(kept)):
                    total += float(loss.losses.double().sum())
                    tokens += len(loss.losses)
        total, tokens = processes.sum([total, tokens]).tolist()
        if tokens:
            losses[one.name] = total / tokens
    return losses


@torch.inference_mode()
def answers(
    model: VisionLanguageModel,
    data: Sequence[DataSet],
    config: TrainConfig,
    images: ImageLoader,
    folder: Path,
) -> list[dict[str, Any]]:
    """What the model answers to the first records that ask something, as the log has it.

    Args:
        model: The model, in evaluation mode.
        data: Where to take records from, in turn.
        config: For how many.
        images: Where images come from.
        folder: The run's folder; small copies of the images go to `samples/` in it.
    """
    found: list[dict[str, Any]] = []
    rounds = max((len(d.records) for d in data), default=0)
    for index in range(min(rounds, config.sample_answers)):
        for one in data:
            if len(found) == config.sample_answers or index >= len(one.records):
                continue
            # A record that cannot be used is named when its loss is asked for
            with suppress(InputError), autocast(model.device, config):
                record = one.record(index)
                if record.turns:
                    found.append(_answer(model, record.turns[0], images, folder))
    return found


def _answer(
    model: VisionLanguageModel, turn: Example, images: ImageLoader, folder: Path
) -> dict[str, Any]:
    """One turn's answer."""
    render = template_named(model.config.template, model.language.tokenizer)
    prompt = render([], Example(turn.images, turn.question))
    shown: dict[str, Any] = {}
    if prompt.images:
        tensor, features = images.load(prompt.images, 0)
        shown["features" if features else "pixels"] = tensor
    kept = [_keep(p, folder) for m in prompt.images for p in frames(m)]
    ids, mask = pad([model.encode_text(prompt.spans, len(prompt.images))], model.pad_id, "left")
    batch = Batch(input_ids=ids, attention_mask=mask, **shown).to(model.device)
    row = generate(model, batch, max_new_tokens=24, do_sample=False)[0]
    return {
        "images": [name for name in kept if name],
        "question": turn.question,
        "answer": text_of(model, row),
        "expected": turn.answer,
    }


def _keep(image: ImageRef, folder: Path) -> str | None:
    """A small copy of an image in the run's folder, by its content; None for features."""
    if image.is_features:
        return None
    data = image.read()
    name = f"samples/{hashlib.sha256(data).hexdigest()[:16]}.jpg"
    if not (folder / name).exists():
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        small = open_image(data)
        small.thumbnail((SIDE, SIDE))
        small.save(folder / name, quality=85)
    return name
