"""Looking at a run from outside: loss on records kept aside, and answers for people to read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from isthmus.config.model import TrainConfig
from isthmus.data.episodes import Episodes
from isthmus.data.mixture import SampleRef
from isthmus.data.records import Record, frames
from isthmus.data.samples import inputs_of
from isthmus.errors import InputError
from isthmus.generation.decode import generate, text_of
from isthmus.media.file_ref import FileRef
from isthmus.media.image import open_image
from isthmus.model.batch import Batch, pad
from isthmus.model.media.base import layouts_of
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.prompt import Example
from isthmus.prompts.templates import template_named
from isthmus.training.feed import DataSet, Feed, TrainingItem, parts
from isthmus.training.loader import MediaLoader
from isthmus.training.losses.language import LanguageLoss
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
    loss: LanguageLoss,
    media: MediaLoader,
    processes: Processes,
) -> dict[str, float]:
    """Mean loss per token of each data set, by name, over all processes.

    Args:
        model: The model, in evaluation mode.
        data: What was kept aside, none of it empty.
        config: The run's.
        loss: The run's.
        media: Where attachments come from; never augmented.
        processes: All of them; each reads its share.
    """
    losses = {}
    for one in data:
        feed = Feed(model, [one], config, media, processes=1)
        count = min(MOST_RECORDS, len(one.records))
        own = [SampleRef(i, 0, i, 0) for i in range(processes.rank, count, processes.count)]
        items = list(feed.items(own))
        # Every process makes as many passes as the others: some share parameters
        missing = -(-count // processes.count) - len(items)
        filler = TrainingItem(SampleRef(0, 0, 0, 0), Record(text=" "), why_not="filler")
        items += [filler] * missing
        total = tokens = 0.0
        size = config.micro_batch_size or max(1, config.batch_size // processes.count)
        for part in parts(items, size):
            kept = [i for i in part if not i.why_not]
            if not kept and not loss.always_images:
                continue
            with autocast(processes.device, config):
                found = loss.loss(model, kept, [0.0] * len(kept)).losses
            total += float(found.double().sum())
            tokens += len(found)
        total, tokens = processes.sum([total, tokens]).tolist()
        if tokens:
            losses[one.name] = total / tokens
    return losses


@torch.inference_mode()
def answers(
    model: VisionLanguageModel,
    data: Sequence[DataSet],
    config: TrainConfig,
    media: MediaLoader,
    folder: Path,
) -> list[dict[str, Any]]:
    """What the model answers to the first records that ask something, as the log has it.

    Of a conversation the first question is asked; of an episode the last, since the others show
    what there is to know.

    Args:
        model: The model, in evaluation mode.
        data: Where to take records from, in turn.
        config: For how many.
        media: Where attachments come from.
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
                    known = len(record.turns) - 1 if isinstance(one.records, Episodes) else 0
                    found.append(_answer(model, record.turns[: known + 1], media, folder))
    return found


def _answer(
    model: VisionLanguageModel, turns: Sequence[Example], media: MediaLoader, folder: Path
) -> dict[str, Any]:
    """The last turn's answer; the others show theirs."""
    *shown, turn = turns
    render = template_named(model.config.template, model.language.tokenizer)
    prompt = render(shown, Example(turn.images, turn.question), lead=turn.lead)
    attachments = media.load(prompt.images, 0)
    layouts = layouts_of(model, attachments)
    kept = [_keep(p, folder) for m in prompt.images for p in frames(m)]
    ids, mask = pad([model.encode_text(prompt.spans, layouts)], model.pad_id, "left")
    inputs = inputs_of(attachments)
    batch = Batch(input_ids=ids, attention_mask=mask, layouts=tuple(layouts), **inputs)
    batch = batch.to(model.device)
    row = generate(model, batch, max_new_tokens=24, do_sample=False)[0]
    return {
        "images": [name for name in kept if name],
        "question": " ".join([*(f"{t.question} {t.answer}." for t in shown), turn.question]),
        "answer": text_of(model, row),
        "expected": turn.answer,
    }


def _keep(image: FileRef, folder: Path) -> str | None:
    """A small copy of an image in the run's folder, by its content; None for anything else."""
    if image.is_features or image.kind != "image":
        return None
    data = image.read()
    name = f"samples/{hashlib.sha256(data).hexdigest()[:16]}.jpg"
    if not (folder / name).exists():
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        small = open_image(data)
        small.thumbnail((SIDE, SIDE))
        small.save(folder / name, quality=85)
    return name
