"""What a training step minimises.

`language`: the language model's cross-entropy on the answer, given pictures and question.

`concepts`: the classifier of a concept bottleneck must find the answer among all answers, without
running the language model at all: hundreds of samples a second on a laptop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from isthmus.connectors.concept_bottleneck import ConceptBottleneckConnector
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


def concept_bottleneck(model: VisionLanguageModel) -> ConceptBottleneckConnector:
    """The model's concept bottleneck.

    Raises:
        ConfigError: If it has another connector.
    """
    if not isinstance(model.connector, ConceptBottleneckConnector):
        raise ConfigError(
            'train.objective = "concepts" needs connector.type = "concept_bottleneck", '
            f"got {type(model.connector).__name__}"
        )
    return model.connector


def name_pieces(model: VisionLanguageModel, name: str) -> tuple[int, ...]:
    """A name's word pieces, cut or filled up with full stops to a concept's length."""
    length = concept_bottleneck(model).names.shape[1]
    filler = model.language.encode(FILLER)[:1]
    return tuple((model.language.encode(f" {name}") + filler * length)[:length])


def name_concepts(model: VisionLanguageModel, answers: Iterable[str]) -> None:
    """Gives the concept bottleneck one row for each different answer."""
    pieces = sorted({name_pieces(model, answer) for answer in answers})
    concept_bottleneck(model).set_names(pieces)


def concepts_loss(
    model: VisionLanguageModel, records: Sequence[Record], features: Tensor
) -> Tensor:
    """Mean cross-entropy of the classifier on the answers' concepts."""
    connector = concept_bottleneck(model)
    logits = connector.logits(features.to(model.device))
    rows = {tuple(name): i for i, name in enumerate(connector.names.tolist())}
    targets = [rows[name_pieces(model, r.answer)] for r in records]
    return F.cross_entropy(logits.float(), torch.tensor(targets, device=logits.device))


OBJECTIVES: dict[str, Objective] = {"language": language_loss, "concepts": concepts_loss}
