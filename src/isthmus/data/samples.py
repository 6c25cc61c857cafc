"""From records to tokens: what is read, and what is learned.

Prompts, `<image>` tags and other people's turns cost nothing; answers and their end do. A document
is learned in whole, but for its tags. The model's template says which spans of text these are, the
same that it makes prompts of, so that training and use see the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from isthmus.data.packing import packed_rows
from isthmus.data.records import Record
from isthmus.errors import ConfigError, PromptError
from isthmus.model.batch import IGNORED, Batch, pad
from isthmus.model.layout import Layout
from isthmus.model.media.base import Attachment, Features, stacked, together
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.prompt import CUT, END_TAG, IMAGE_TAG, Span
from isthmus.prompts.template import CONCLUSION, Template
from isthmus.prompts.templates import template_named


@dataclass(frozen=True)
class Sample:
    """A record as tokens.

    Attributes:
        ids: Token ids, the layout of an attachment in place of each tag.
        learned: Whether each token is learned; never the first, which nothing predicts.
        layouts: The layouts in `ids`, those of the record's first attachments.
    """

    ids: list[int]
    learned: list[bool]
    layouts: tuple[Layout, ...] = ()


def conversation_spans(record: Record, template: Template) -> tuple[Span, ...]:
    """The spans of a conversation: what prompts it, and the answers that are learned.

    Where turns say the steps to their answers, these are learned as worked demonstrations show
    them. What a turn's answer is led in with is cut off it and not learned: it stands in the
    prompt.

    Args:
        record: A record with turns.
        template: Makes prompts of turns.

    Raises:
        PromptError: As for `Template.conversation`.
    """
    conclusion = CONCLUSION if any(t.rationale for t in record.turns) else ""
    try:
        spans = template.conversation(record.turns, conclusion=conclusion)
    except PromptError as error:
        raise PromptError(f"{record.origin}: {error}" if record.origin else str(error)) from error
    leads = [turn.lead for turn in record.turns]
    return _led_in(spans, leads) if any(leads) else spans


def _led_in(spans: Sequence[Span], leads: Sequence[str]) -> tuple[Span, ...]:
    """The spans of a conversation with the leads of its answers as prompts have them.

    Args:
        spans: Those of the whole conversation.
        leads: What each answer begins with; an empty text where nothing leads it in.
    """
    found: list[Span] = []
    waiting = list(leads)
    for span in spans:
        lead = waiting.pop(0) if span.role == "assistant" else ""
        if not lead:
            found.append(span)
            continue
        before = [found.pop()._replace(learned=False)] if found[-1].learned else []
        own = Span(lead, "assistant")
        found += [CUT, *before, own, span._replace(text=span.text.removeprefix(lead))]
    return tuple(found)


def document_spans(text: str, *, next_image: bool = False) -> tuple[Span, ...]:
    """The spans of a document: tags, and between them text that is learned.

    A chunk of text ends with `<|endofchunk|>` where the next image begins and at the end, as in
    Flamingo's training sequences.

    Args:
        text: The document, `<image>` where an image stands.
        next_image: Each image stands before the text in front of it instead of behind it
            (p_next in Flamingo).

    Example:
        >>> [s.text for s in document_spans("Hi. <image>A cat.")]
        ['Hi. ', '<|endofchunk|>', '<image>', 'A cat.', '<|endofchunk|>']
        >>> [s.text for s in document_spans("Hi. <image>A cat.", next_image=True)]
        ['<image>', 'Hi. A cat.', '<|endofchunk|>']
    """
    first, *rest = text.split(IMAGE_TAG)
    if next_image and rest and first.strip():
        *between, last = [first, *rest]
        between[-1] += last
        first, rest = "", between
    spans: list[Span] = []
    for number, chunk in enumerate([first, *rest]):
        if number:
            spans.append(Span(IMAGE_TAG, "image"))
        if chunk.strip():
            spans += [Span(chunk, "assistant", True), Span(END_TAG, "end", True)]
    return tuple(spans)


def tokenize(
    model: VisionLanguageModel,
    record: Record,
    *,
    layouts: Sequence[Layout] | None = None,
    max_length: int | None = None,
    next_image: bool = False,
) -> Sample:
    """A record as the model's tokens.

    Text without any image ends with the language model's own end of text: `<|endofchunk|>` is
    not for a bare language model.

    Args:
        model: Its tokenizer, fusion and template.
        record: The record.
        layouts: The layouts of its attachments; None where all have the model's own.
        max_length: Longest sample; the rest is cut off, and an image whose tag is cut goes with
            it.
        next_image: As for `document_spans`; of no meaning for conversations.

    Raises:
        ConfigError: If nothing of it can be learned, or the language model has no chat template.
        PromptError: If a question or an answer contains a tag, a turn has no answer, a text is no
            Unicode, or a chat template cannot be split into prompts and answers.
    """
    special = model.special_tokens
    if record.text is None:
        template = template_named(model.config.template, model.language.tokenizer)
        spans = conversation_spans(record, template)
    else:
        spans = document_spans(record.text, next_image=next_image)
    if layouts is None:
        layouts = [model.layout] * len(record.images)
    start = model.language.start_ids
    ids: list[int] = []
    learned: list[bool] = []
    kept, answers, before = 0, 0, False
    for own, learn in special.spans.encode_pieces(spans):
        answers += learn and not before  # what is learned without a break is one turn's
        before = learn
        if learn and record.turns:
            learn = record.turns[answers - 1].learned
        for i in own:
            is_image = i == special.image_id
            own = layouts[kept].written(i) if is_image else [i]
            if max_length is not None and len(start) + len(ids) + len(own) > max_length:
                break
            ids += own
            learned += [learn and not is_image] * len(own)
            kept += is_image
        else:
            continue
        break
    at = model.begin_of_text(ids, layouts[:kept])
    ids[at:at], learned[at:at] = start, [False] * len(start)
    ends = model.language.end_ids()
    if not record.images and special.end_id in ids:
        if not ends:  # nothing that a bare language model could say
            learned = [flag and i != special.end_id for i, flag in zip(ids, learned, strict=True)]
        elif ids[-1] == special.end_id:
            ids[-1] = ends[0]
    learned[:1] = [False] * len(learned[:1])
    if not any(learned):
        raise ConfigError(
            f"{record.origin or record.answer[:40]!r}: nothing can be learned of it within "
            f"{max_length} tokens: raise train.max_length"
        )
    return Sample(ids, learned, tuple(layouts[:kept]))


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
    attachments: Sequence[Attachment] = (),
    *,
    pack: int = 0,
) -> Collated:
    """One batch of samples.

    Unpacked rows are padded on the left, so that answers stand at the right edge.

    Args:
        model: The model that the batch is for.
        samples: At least one.
        attachments: Those of all samples, in order: opened, or features.
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
            labels[r, place] = _targets(model, samples[n]).masked_fill(~learned, IGNORED)
            owner[r, place] = torch.where(learned, n, IGNORED)
            positions[r, place] = torch.arange(len(samples[n].ids))
            at = place.stop
        positions[r, at:] = torch.arange(ids.shape[1] - at)  # padding is a sample of its own
    if pack:
        attachments = _in_order(samples, order, attachments)
    layouts = [layout for row in order for n in row for layout in samples[n].layouts]
    usual = model.layout
    batch = Batch(
        input_ids=ids,
        attention_mask=mask,
        labels=labels,
        positions=positions if pack else None,
        layouts=None if all(own == usual for own in layouts) else tuple(layouts),
        **inputs_of(attachments),
    )
    return Collated(batch, owner[owner != IGNORED])


def _targets(model: VisionLanguageModel, sample: Sample) -> Tensor:
    """What each of a sample's tokens is learned as.

    Without an image the language model says its own end of text, and a prompt goes on after it
    with the `<|endofchunk|>` that its template writes.
    """
    targets = torch.tensor(sample.ids)
    if sample.layouts:
        return targets
    ends = model.language.end_ids()
    return targets.masked_fill(targets == model.special_tokens.end_id, ends[0] if ends else IGNORED)


def inputs_of(attachments: Sequence[Attachment]) -> dict[str, Any]:
    """Attachments as a batch takes them: stacked where all are images or clips of one shape.

    Example:
        >>> {name: value.shape for name, value in inputs_of([torch.zeros(3, 8, 8)] * 2).items()}
        {'pixels': torch.Size([2, 3, 8, 8])}
    """
    if not attachments:
        return {}
    known = [own for own in attachments if isinstance(own, Features)]
    if len(known) == len(attachments) and {own.medium for own in known} in ({"image"}, {"clip"}):
        features = stacked([own.values for own in known])
        if isinstance(features, Tensor):
            return {"features": features}
    return {"pixels": together(attachments)}


def _in_order(
    samples: Sequence[Sample], order: Sequence[Sequence[int]], attachments: Sequence[Attachment]
) -> list[Attachment]:
    """Attachments as packing has put their samples."""
    counts = [len(s.layouts) for s in samples]
    starts = [sum(counts[:i]) for i in range(len(counts))]
    return [attachments[starts[n] + k] for row in order for n in row for k in range(counts[n])]
