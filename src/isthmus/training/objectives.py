"""What a training step minimises.

`language`: the language model's cross-entropy on the answer, given pictures and question.

`vocabulary`: for the align connector, without running the language model at all: visual token k
must put its probability on the k-th word piece of the answer. Thousands of samples a second on a
laptop; a strip that has been through it speaks the language model's own vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from isthmus.connectors.align import AlignConnector
from isthmus.data.records import Record
from isthmus.errors import ConfigError
from isthmus.model import IGNORED, Batch, VisionLanguageModel, pad
from isthmus.prompt import END_TAG, Example
from isthmus.templates import template_named

Objective = Callable[[VisionLanguageModel, Sequence[Record], Tensor], Tensor]

FILLER = "."


def language_batch(
    model: VisionLanguageModel, records: Sequence[Record], features: Tensor
) -> Batch:
    """Prompts with their answers, labels on the answer and its `<|endofchunk|>` alone.

    Rows are padded on the left, so that answers stand at the right edge and logits are only
    computed there.

    Args:
        model: Its template and tokens.
        records: B records with one picture each.
        features: (B, N, D_vision).
    """
    template = template_named(model.config.template)
    rows: list[list[int]] = []
    lengths: list[int] = []
    for record in records:
        prompt = template([], Example(record.picture, record.question)).text
        answer = model.special_tokens.encode(f" {record.answer}{END_TAG}")
        rows.append([*model.encode_text(prompt, pictures=1), *answer])
        lengths.append(len(answer))
    ids, mask = pad(rows, model.pad_id, "left")
    labels = torch.full_like(ids, IGNORED)
    for i, length in enumerate(lengths):
        labels[i, -length:] = ids[i, -length:]
    batch = Batch(input_ids=ids, attention_mask=mask, labels=labels, features=features)
    return batch.to(model.device)


def language_loss(
    model: VisionLanguageModel, records: Sequence[Record], features: Tensor
) -> Tensor:
    """The language model's mean cross-entropy per answer token."""
    loss = model(language_batch(model, records, features)).loss
    assert loss is not None
    return loss


def align_connector(model: VisionLanguageModel) -> AlignConnector:
    """The model's align connector.

    Raises:
        ConfigError: If it has another.
    """
    if not isinstance(model.connector, AlignConnector):
        raise ConfigError(
            'train.objective = "vocabulary" needs connector.type = "align", '
            f"got {type(model.connector).__name__}"
        )
    return model.connector


def name_ids(model: VisionLanguageModel, name: str, length: int) -> list[int]:
    """The first `length` word pieces of a name, filled up with full stops."""
    filler = model.language.encode(FILLER)[:1]
    return (model.language.encode(f" {name}") + filler * length)[:length]


def vocabulary_loss(
    model: VisionLanguageModel, records: Sequence[Record], features: Tensor
) -> Tensor:
    """Mean cross-entropy of visual token k on word piece k of the answer."""
    connector = align_connector(model)
    logits = connector.logits(features.to(model.device))  # (B, K, V')
    places = {int(i): place for place, i in enumerate(connector.vocabulary.tolist())}
    targets = [[places[i] for i in name_ids(model, r.answer, logits.shape[1])] for r in records]
    return F.cross_entropy(
        logits.flatten(0, 1).float(), torch.tensor(targets, device=logits.device).flatten()
    )


OBJECTIVES: dict[str, Objective] = {"language": language_loss, "vocabulary": vocabulary_loss}
