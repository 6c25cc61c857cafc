"""Which token sees which image: Flamingo's phi, as data.

A token attends to the last image whose tag stands at or before it (Alayrac et al. 2022,
section 2.3, equation 1 and appendix A.1.3). Tokens are grouped by the image they see, so that
attention is computed per image and no score against an unseen image ever exists.

Letters: B rows of the batch, L tokens a row, P images in the whole batch, M visual tokens an
image, S segments (a segment is a run of tokens of one row that see the same image), W the
length of the longest segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from isthmus.model.backbones.states import states_in
from isthmus.model.fusion.visual import Visual


def image_of_token(
    is_image: Tensor, attention_mask: Tensor, positions: Tensor | None = None
) -> Tensor:
    """For every token the number of the last image at or before it.

    Args:
        is_image: (B, L) bool, where `<image>` stands.
        attention_mask: (B, L), 0 at padding.
        positions: (B, L) positions that start at 0 again with each sample, where rows hold
            several; a token then sees no image of another sample.

    Returns:
        (B, L) int64, an index into the batch's images in reading order; -1 where no image
        stands before the token, and at padding.

    Example:
        >>> tags = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 0]]).bool()
        >>> image_of_token(tags, torch.ones(2, 4)).tolist()
        [[-1, 0, 0, 1], [-1, -1, 2, 2]]
        >>> packed = torch.tensor([[0, 1, 0, 1], [0, 1, 2, 0]])
        >>> image_of_token(tags, torch.ones(2, 4), packed).tolist()
        [[-1, 0, -1, 1], [-1, -1, 2, -1]]
    """
    begin = first_image(is_image, positions)
    index = is_image.long().flatten().cumsum(dim=0).view_as(is_image) - 1
    return index.masked_fill((index < begin) | (attention_mask == 0), -1)


def first_image(is_image: Tensor, positions: Tensor | None = None) -> Tensor:
    """For every token the number of the first image of its sample, there or yet to come.

    Args:
        is_image: (B, L) bool, where `<image>` stands.
        positions: (B, L) as for `image_of_token`; None where a row is one sample.

    Returns:
        (B, L) int64, the number of images in all samples before.
    """
    before = is_image.long().flatten().cumsum(dim=0).view_as(is_image) - is_image.long()
    if positions is None:
        return before[:, :1].expand_as(before)
    starts = before.masked_fill(positions != 0, 0)
    return starts.cummax(dim=1).values  # counts never fall along a row


def first_of_each(is_image: Tensor, places: int | Sequence[int]) -> Tensor:
    """Where each image begins.

    Args:
        is_image: (B, L) bool, the places of all images, row after row.
        places: How many each image has: one number for all, or one for each.

    Example:
        >>> tags = torch.tensor([[0, 1, 1, 1, 1]]).bool()
        >>> first_of_each(tags, 2).long().tolist(), first_of_each(tags, [1, 3]).long().tolist()
        ([[0, 1, 0, 1, 0]], [[0, 1, 1, 0, 0]])
    """
    number = is_image.flatten().long().cumsum(dim=0).view_as(is_image) - 1
    if isinstance(places, int):
        return is_image & (number % places == 0)
    counts = torch.tensor(list(places), device=is_image.device, dtype=torch.long)
    return is_image & torch.isin(number, counts.cumsum(dim=0) - counts)


def samples_with_images(is_image: Tensor, positions: Tensor | None) -> Tensor:
    """(B,) which rows have an image; (B, L) the tokens of which samples, where rows hold several.

    Args:
        is_image: (B, L) bool, where `<image>` stands.
        positions: (B, L) as in `Batch`.
    """
    if positions is None:
        return is_image.any(dim=1)
    sample = (positions == 0).long().flatten().cumsum(dim=0)  # every row begins with a 0
    found = torch.zeros(int(sample[-1]) + 1, dtype=torch.bool, device=sample.device)
    found[sample[is_image.flatten()]] = True
    return found[sample].view_as(is_image)


@dataclass
class Segments:
    """Tokens of one forward pass, grouped by (row, image).

    Attributes:
        index: (S, W) positions in the flattened (B * L) tokens; the padding repeats the
            segment's first token.
        valid: (S, W) bool, False at padding.
        image: (S,) the image that the segment sees.
        row: (S,) the batch row that it lies in.
    """

    index: Tensor
    valid: Tensor
    image: Tensor
    row: Tensor


def group_tokens(image: Tensor) -> Segments | None:
    """Groups tokens by the image they see; None if no token sees any.

    Args:
        image: (B, L) as `image_of_token` gives it. Numbers never fall along a row.
    """
    positions = (image.flatten() >= 0).nonzero().squeeze(1)
    if positions.numel() == 0:
        return None
    rows = positions // image.shape[1]
    images = image.flatten()[positions]
    # beams repeat a row, so the same image may stand in neighbouring rows: the row decides too
    keys = torch.stack([rows, images], dim=1)
    segments, counts = torch.unique_consecutive(keys, dim=0, return_counts=True)
    starts = counts.cumsum(0) - counts
    offset = torch.arange(int(counts.max()), device=image.device)
    valid = offset < counts[:, None]
    index = positions[starts[:, None] + offset.expand_as(valid).masked_fill(~valid, 0)]
    return Segments(index=index, valid=valid, row=segments[:, 0], image=segments[:, 1])


@dataclass
class Sight:
    """What the rows of one batch may see, for a prompt and for the tokens decoded after it.

    Attributes:
        visual: (P, M, D_visual) visual tokens of the batch's images, padded to the longest.
        prompt: (B, L) as `image_of_token` gives it.
        begin: (B, L) as `first_image` gives it.
        keep: Whether K and V are kept between forward passes: while decoding, never in training.
        keys_values: K and V (P, H, M, D_head) per block, computed once and kept while decoding.
        segments: The grouping of the forward pass under way.
        seen: (B', L') the part of `prompt`, or what lies behind it, that is under way.
        seen_from: (B', L') likewise of `begin`.
        valid: (P, M) bool, False at padding of `visual`; None where there is none.
    """

    visual: Tensor
    prompt: Tensor
    begin: Tensor
    keep: bool = False
    keys_values: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    segments: Segments | None = None
    seen: Tensor | None = None
    seen_from: Tensor | None = None
    valid: Tensor | None = None

    @property
    def last(self) -> Tensor:
        """(B,) the image that every decoded token sees, -1 for none."""
        return self.prompt.amax(dim=1)

    def narrow(self) -> None:
        """Forgets all but each row's last image: no decoded token sees another.

        A sequence then keeps the K and V of one image, however many its prompt has.
        """
        last = self.last
        rows = torch.arange(last.shape[0], device=last.device)
        index = last.clamp(min=0)
        self.visual = self.visual[index]
        self.valid = None if self.valid is None else self.valid[index]
        self.keys_values = {b: (k[index], v[index]) for b, (k, v) in self.keys_values.items()}
        self.prompt = torch.where(last < 0, last, rows)[:, None]
        self.begin = rows[:, None]

    def select(self, rows: Tensor) -> None:
        """Keeps some rows, or repeats them: (B',) row numbers."""
        self.prompt, self.begin = self.prompt[rows], self.begin[rows]

    def alone(self, row: int) -> Sight | None:
        """What one row sees, as a batch of its own; None if it sees nothing."""
        last, first = int(self.last[row]), int(self.begin[row, -1])
        if last < 0:
            return None
        own = slice(first, last + 1)
        prompt = self.prompt[row : row + 1]
        return Sight(
            visual=self.visual[own],
            prompt=torch.where(prompt < 0, prompt, prompt - first),
            begin=torch.zeros_like(prompt),
            keep=self.keep,
            keys_values={b: (k[own], v[own]) for b, (k, v) in self.keys_values.items()},
            valid=None if self.valid is None else self.valid[own],
        )

    def advance(self, rows: int, length: int, past: int) -> None:
        """Looks at the tokens of the coming forward pass.

        Args:
            rows: Rows B' of the pass, a multiple of B (each row repeated, as beams are).
            length: Tokens L' of the pass.
            past: Tokens already in the language model's cache.
        """
        here, begin = (t[:, past : past + length] for t in (self.prompt, self.begin))
        if (decoded := length - here.shape[1]) > 0:
            here = torch.cat([here, self.last[:, None].expand(-1, decoded)], dim=1)
            begin = torch.cat([begin, self.begin[:, -1:].expand(-1, decoded)], dim=1)
        repeat = rows // here.shape[0]
        self.seen = here.repeat_interleave(repeat, dim=0)
        self.seen_from = begin.repeat_interleave(repeat, dim=0)
        self.segments = group_tokens(self.seen)


def pass_of(args: Any, kwargs: Any) -> tuple[int, int, int]:
    """Rows and tokens of a pass through a language model, and how many tokens came before.

    Args:
        args: As the language model was called.
        kwargs: As it was called.
    """
    tokens = kwargs.get("inputs_embeds")
    if tokens is None:
        tokens = args[0] if args else kwargs["input_ids"]
    cache = states_in(kwargs)
    past = 0 if cache is None else int(cache.get_seq_length())
    return tokens.shape[0], tokens.shape[1], past


def follow(sight: Sight, module: nn.Module, args: Any, kwargs: Any, *, narrow: bool) -> None:
    """A forward pre-hook of a language model: tells a sight which tokens a pass is about.

    Registered as `partial(follow, sight, narrow=...)`, `with_kwargs=True`.

    Args:
        sight: Who sees what; its `seen`, `seen_from` and `segments` are then those of the pass.
        module: The language model.
        args: As it was called.
        kwargs: As it was called.
        narrow: Whether decoded tokens see each row's last image alone, so that the others need
            not be kept.
    """
    rows, length, past = pass_of(args, kwargs)
    decoding = past >= sight.prompt.shape[1]
    if decoding and sight.keep and narrow and sight.prompt.shape[1] > 1:
        sight.narrow()
    sight.advance(rows=rows, length=length, past=past)


def padded(visual: Visual) -> tuple[Tensor, Tensor | None]:
    """Visual tokens as (P, M, D_visual), and which are no padding: (P, M) bool, or None for all.

    Example:
        >>> tokens, valid = padded([torch.zeros(1, 4), torch.zeros(3, 4)])
        >>> tokens.shape, valid.long().tolist()
        (torch.Size([2, 3, 4]), [[1, 0, 0], [1, 1, 1]])
    """
    if isinstance(visual, Tensor):
        return visual, None
    lengths = torch.tensor([len(own) for own in visual])
    tokens = pad_sequence(list(visual), batch_first=True)
    if int(lengths.min()) == tokens.shape[1]:
        return tokens, None
    valid = torch.arange(tokens.shape[1]) < lengths[:, None]
    return tokens, valid.to(tokens.device)


def sight_of(visual: Visual, prompt: Tensor, begin: Tensor, *, keep: bool) -> Sight:
    """A `Sight` of visual tokens that may differ in number.

    Args:
        visual: Visual tokens of the images.
        prompt: As the attribute of `Sight`.
        begin: As the attribute of `Sight`.
        keep: As the attribute of `Sight`.
    """
    tokens, valid = padded(visual)
    return Sight(visual=tokens, prompt=prompt, begin=begin, keep=keep, valid=valid)


def together(sights: Sequence[Sight | None], device: torch.device) -> Sight | None:
    """What rows see while they decode, as one batch; each of one row, None for nothing."""
    there = [s for s in sights if s is not None]
    if not there:
        return None
    last, begin, count = [], [], 0
    for sight in sights:
        if sight is None:
            last.append(-1)
            begin.append(0)
            continue
        last.append(count + int(sight.last))
        begin.append(count + int(sight.begin[0, -1]))
        count += len(sight.visual)
    longest = max(s.visual.shape[1] for s in there)
    ragged = any(s.valid is not None or s.visual.shape[1] < longest for s in there)

    def stacked(tensors: Sequence[Tensor]) -> Tensor:
        """(P, ..., M, D) padded to the longest M and put behind one another."""
        return torch.cat([F.pad(t, (0, 0, 0, longest - t.shape[-2])) for t in tensors])

    return Sight(
        visual=stacked([s.visual for s in there]),
        prompt=torch.tensor(last, device=device)[:, None],
        begin=torch.tensor(begin, device=device)[:, None],
        keep=True,
        keys_values={
            block: (
                stacked([s.keys_values[block][0] for s in there]),
                stacked([s.keys_values[block][1] for s in there]),
            )
            for block in there[0].keys_values
        },
        valid=stacked([_valid(s) for s in there]).squeeze(2) if ragged else None,
    )


def _valid(sight: Sight) -> Tensor:
    """(P, M, 1) bool."""
    whole = torch.ones(sight.visual.shape[:2], dtype=torch.bool, device=sight.visual.device)
    return (whole if sight.valid is None else sight.valid)[..., None]
