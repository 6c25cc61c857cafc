"""From records to tokens: what is read, and what is learned.

Prompts, `<image>` tags and other people's turns cost nothing; answers and their end do. A document
is learned in whole, but for its tags. Each piece is tokenized by itself, as it is when the model
answers, so that training and use see the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isthmus.batch import IGNORED, Batch, pad
from isthmus.data.packing import packed_rows
from isthmus.data.records import Medium, Record
from isthmus.errors import ConfigError
from isthmus.model import VisionLanguageModel
from isthmus.prompt import END_TAG, IMAGE_TAG
from isthmus.templates import template_named

Span = tuple[str, bool]
"""A piece of text, and whether it is learned."""


@dataclass(frozen=True)
class Sample:
    """A record as tokens.

    Attributes:
        ids: Token ids, `<image>` repeated as the fusion needs it.
        learned: Whether each token is learned; never the first, which nothing predicts.
        pictures: The pictures whose tags are in `ids`, in their order.
    """

    ids: list[int]
    learned: list[bool]
    pictures: tuple[Medium, ...]


def conversation_spans(record: Record, template: str) -> list[Span]:
    """The pieces of a conversation: prompts, and between them the answers that are learned.

    Args:
        record: A record with turns.
        template: Name of the template that makes prompts of turns.

    Raises:
        ConfigError: If a turn has no answer, or the template rewrites earlier turns, so that what
            was learned is not what comes before the next question.
    """
    render = template_named(template)
    spans: list[Span] = []
    written = ""
    for i, turn in enumerate(record.turns):
        if turn.answer is None:
            raise ConfigError(f"{record.origin or record.question!r}: a turn has no answer")
        prompt = render(record.turns[:i], replace(turn, answer=None)).text
        if not prompt.startswith(written):
            raise ConfigError(
                f'template "{template}" rewrites earlier turns: expected a prompt that goes on '
                f"after {written[-40:]!r}"
            )
        answer = f" {turn.answer}{END_TAG}"
        spans += [(prompt[len(written) :], False), (answer, True)]
        written = prompt + answer
    return spans


def document_spans(text: str, *, next_picture: bool = False) -> list[Span]:
    """The pieces of a document: tags, and between them text that is learned.

    A chunk of text ends with `<|endofchunk|>` where the next picture begins and at the end, as in
    Flamingo's training sequences.

    Args:
        text: The document, `<image>` where a picture stands.
        next_picture: Each picture stands before the text in front of it instead of behind it
            (p_next in Flamingo).

    Example:
        >>> [s for s, _ in document_spans("Hi. <image>A cat.<image>A dog.")]
        ['Hi. <|endofchunk|>', '<image>', 'A cat.<|endofchunk|>', '<image>', 'A dog.<|endofchunk|>']
        >>> [s for s, _ in document_spans("Hi. <image>A cat.", next_picture=True)]
        ['<image>', 'Hi. A cat.<|endofchunk|>']
    """
    first, *rest = text.split(IMAGE_TAG)
    if next_picture and rest and first.strip():
        *between, last = [first, *rest]
        between[-1] += last
        first, rest = "", between
    spans: list[Span] = [(first + END_TAG, True)] if first.strip() else []
    for chunk in rest:
        spans.append((IMAGE_TAG, False))
        if chunk.strip():
            spans.append((chunk + END_TAG, True))
    return spans


def tokenize(
    model: VisionLanguageModel,
    record: Record,
    *,
    max_tokens: int | None = None,
    next_picture: bool = False,
) -> Sample:
    """A record as the model's tokens.

    Text without any picture ends with the language model's own end of text: `<|endofchunk|>` is
    not for a bare language model.

    Args:
        model: Its tokenizer, fusion and template.
        record: The record.
        max_tokens: Longest sample; the rest is cut off, and a picture whose tag is cut goes with
            it.
        next_picture: As for `document_spans`; of no meaning for conversations.

    Raises:
        ConfigError: If nothing of it can be learned.
        PromptError: If a question or an answer contains a tag.
    """
    special = model.special_tokens
    if record.text is None:
        spans = conversation_spans(record, model.config.template)
    else:
        spans = document_spans(record.text, next_picture=next_picture)
    ids = list(model.language.start_ids)
    learned = [False] * len(ids)
    kept = 0
    for text, learn in spans:
        for i in special.encode(text):
            is_image = i == special.image_id
            own = model.layout.written(i) if is_image else [i]
            if max_tokens is not None and len(ids) + len(own) > max_tokens:
                break
            ids += own
            learned += [learn and not is_image] * len(own)
            kept += is_image
        else:
            continue
        break
    if not record.pictures:
        ends = model.language.end_ids()
        last = ends[0] if ends else None
        learned = [
            flag and (i != special.end_id or last is not None)
            for i, flag in zip(ids, learned, strict=True)
        ]
        ids = [last if i == special.end_id and last is not None else i for i in ids]
    learned[:1] = [False] * len(learned[:1])
    if not any(learned):
        raise ConfigError(
            f"{record.origin or record.answer[:40]!r}: nothing can be learned of it within "
            f"{max_tokens} tokens: raise train.max_tokens"
        )
    return Sample(ids, learned, record.pictures[:kept])


@dataclass(frozen=True)
class Collated:
    """A batch, and where its tokens come from.

    Attributes:
        batch: With labels; weights are for the caller to set.
        owner: (T,) int64, for each labelled token in reading order the number of its sample.
    """

    batch: Batch
    owner: Tensor

    def weighted(self, weights: Sequence[float]) -> Batch:
        """The batch with a weight for each token, given one for each sample."""
        labels = self.batch.labels
        assert labels is not None
        of_token = torch.zeros(labels.shape)
        of_token[labels != IGNORED] = torch.tensor(list(weights))[self.owner]
        return replace(self.batch, weights=of_token)


def collate(
    model: VisionLanguageModel,
    samples: Sequence[Sample],
    pictures: Tensor | None,
    *,
    features: bool,
    pack: int = 0,
) -> Collated:
    """One batch of samples.

    Unpacked rows are padded on the left, so that answers stand at the right edge.

    Args:
        model: The model that the batch is for.
        samples: At least one.
        pictures: Pixels or features of all their pictures, in order; None without pictures.
        features: Whether `pictures` are features.
        pack: Length of rows that several samples are packed into; 0 for one sample a row.

    Returns:
        The batch, on the CPU.
    """
    order = (
        packed_rows([len(s.ids) for s in samples], pack)
        if pack
        else [[i] for i in range(len(samples))]
    )
    rows = [[i for n in row for i in samples[n].ids] for row in order]
    ids, mask = pad(rows, model.pad_id, "right" if pack else "left")
    labels = torch.full_like(ids, IGNORED)
    owner = torch.full_like(ids, IGNORED)
    positions = torch.zeros_like(ids)
    for r, row in enumerate(order):
        at = 0 if pack else ids.shape[1] - len(rows[r])
        for n in row:
            place = slice(at, at + len(samples[n].ids))
            learned = torch.tensor(samples[n].learned)
            labels[r, place] = ids[r, place].masked_fill(~learned, IGNORED)
            owner[r, place] = torch.where(learned, n, IGNORED)
            positions[r, place] = torch.arange(len(samples[n].ids))
            at = place.stop
        positions[r, at:] = torch.arange(ids.shape[1] - at)  # padding is a sample of its own
    if pack and pictures is not None:
        pictures = _in_order(samples, order, pictures)
    batch = Batch(
        input_ids=ids,
        attention_mask=mask,
        labels=labels,
        positions=positions if pack else None,
        pixels=None if features else pictures,
        features=pictures if features else None,
    )
    return Collated(batch, owner[owner != IGNORED])


def _in_order(
    samples: Sequence[Sample], order: Sequence[Sequence[int]], pictures: Tensor
) -> Tensor:
    """Pictures as packing has put their samples."""
    counts = [len(s.pictures) for s in samples]
    starts = [sum(counts[:i]) for i in range(len(counts))]
    index = [starts[n] + k for row in order for n in row for k in range(counts[n])]
    return pictures[torch.tensor(index, dtype=torch.long)]
