"""The running batch: rows of different lengths that join and leave between decoding steps.

Letters: B rows, H key heads, K the longest row's tokens, D the width of a head.

Each row has a lane in one block of keys and values per layer, (B, H, K, D), and starts at its
beginning. A step writes each row's new key behind its own last one and hides from each row what
lies behind it. So nothing is copied from step to step, a row that joins is copied once and moves no
other, and where one leaves the last row takes its lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

from isthmus.generation.rows import Rows
from isthmus.model.backbones.states import as_states
from isthmus.model.fusion.adapter import Adapted
from isthmus.model.fusion.sight import Sight, together
from isthmus.model.vlm import VisionLanguageModel

GROWTH = 1.5


class LaneLayer(CacheLayerMixin):
    """One layer's block of keys and values, as Transformers' models write to it and read it.

    Attributes:
        at: Lanes and places (B,) that the next token's keys and values go to.
        length: Tokens K of the longest row, the next token counted; more in a recorded step.
        last: Whether the one row there is ends at `length`: its place need not be looked up.
    """

    keys: Tensor | None
    values: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.at = (torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))
        self.length = 0
        self.last = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Makes no block: rows that join bring theirs."""

    def reserve(
        self, like: tuple[Tensor, Tensor] | None, rows: int, length: int, used: int
    ) -> None:
        """Makes room for rows of a length; `like` (H, L, D) tells the shape of the first ones."""
        old = (self.keys, self.values)
        grown = []
        for block, own in zip(old, old if like is None else like, strict=True):
            assert own is not None
            # zeros: hidden values are multiplied by 0, and 0 times NaN is NaN
            new = own.new_zeros(rows, own.shape[-3], length, own.shape[-1])
            if block is not None and used:
                new[:used, :, : block.shape[2]] = block[:used]
            grown.append(new)
        self.keys, self.values = grown
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes one token's keys and values (B, H, 1, D); all rows' so far, views."""
        assert self.keys is not None
        assert self.values is not None
        lanes, places = self.at
        rows = len(lanes)
        if self.last:
            self.keys[:1, :, self.length - 1 : self.length] = key_states
            self.values[:1, :, self.length - 1 : self.length] = value_states
        else:
            self.keys[lanes, :, places] = key_states[:, :, 0]
            self.values[lanes, :, places] = value_states[:, :, 0]
        return self.keys[:rows, :, : self.length], self.values[:rows, :, : self.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of a mask, which models that are given one do not make."""
        return self.length, 0

    def get_seq_length(self) -> int:
        """Tokens of the longest row."""
        return self.length - 1

    def get_max_length(self) -> int:
        """There is none."""
        return -1


class Lanes:
    """Rows that are decoded in one pass: `decoding.Decoding`.

    Only for language models that `structure.takes_lanes` finds to, behind prompts whose states can
    be cut.

    Args:
        model: The model.

    Attributes:
        lengths: Tokens of each row, by lane.
    """

    def __init__(self, model: VisionLanguageModel) -> None:
        self.model = model
        self._clear()

    def _clear(self) -> None:
        self.lengths: list[int] = []
        self._lags: list[int] = []  # how many positions each row has fewer than tokens
        self._layers: list[LaneLayer] = []
        self._rows = self._room = 0
        self._mask: Tensor | None = None
        self._seen: list[tuple[bool, Sight | None]] = []
        self._sight: Sight | None = None
        self._may_end: Tensor | None = None
        self._adapted: Adapted | None = None

    @property
    def bytes(self) -> int:
        """Bytes of all blocks."""
        blocks = [t for layer in self._layers for t in (layer.keys, layer.values) if t is not None]
        return sum(t.numel() * t.element_size() for t in blocks)

    def join(self, rows: Rows, which: Sequence[int]) -> None:
        """Takes rows that were prefilled, which are copied, into lanes behind the others."""
        own, lengths = {row: rows.keys_values(row) for row in which}, rows.lengths.tolist()
        seen = {row: rows.seen(row) for row in own}
        longest = max(lengths[row] for row in own)
        self._reserve(own[which[0]], len(self.lengths) + len(which), longest + 1)
        assert self._mask is not None
        for row in which:
            lane, length = len(self.lengths), lengths[row]
            for layer, (keys, values) in zip(self._layers, own[row], strict=True):
                assert layer.keys is not None
                assert layer.values is not None
                layer.keys[lane, :, :length] = keys
                layer.values[lane, :, :length] = values
            self._mask[lane, ..., :length] = 0
            self._mask[lane, ..., length:] = torch.finfo(self._mask.dtype).min
            self.lengths.append(length)
            self._lags.append(rows.lag(row))
            self._seen.append(seen[row])
        self._look()

    def leave(self, lane: int) -> None:
        """Lets a row go; the last one takes its lane."""
        last = len(self.lengths) - 1
        if last == 0:  # nothing is kept for nobody
            self._clear()
            return
        if lane != last:
            length = self.lengths[last]
            assert self._mask is not None
            for layer in self._layers:
                assert layer.keys is not None
                assert layer.values is not None
                layer.keys[lane, :, :length] = layer.keys[last, :, :length]
                layer.values[lane, :, :length] = layer.values[last, :, :length]
            self._mask[lane] = self._mask[last]
            self.lengths[lane], self._seen[lane] = self.lengths[last], self._seen[last]
            self._lags[lane] = self._lags[last]
        self.lengths.pop()
        self._lags.pop()
        self._seen.pop()
        self._look()

    def states(self, lane: int) -> DynamicCache:
        """A row's states, copied."""
        found = DynamicCache()
        found.layers = []
        for layer in self._layers:
            assert layer.keys is not None
            assert layer.values is not None
            length = self.lengths[lane]
            keys, values = (t[lane, :, :length][None].clone() for t in (layer.keys, layer.values))
            own = DynamicLayer()
            own.lazy_initialization(keys, values)
            own.keys, own.values = keys, values
            found.layers.append(own)
        return found

    def step(self, ids: Sequence[int]) -> Tensor:
        """Logits (B, V) after one more token for each row."""
        self._reserve([], len(ids), max(self.lengths) + 1)
        device = self.model.device
        places = torch.tensor(self.lengths, device=device)
        positions = places - torch.tensor(self._lags, device=device) if any(self._lags) else places
        lanes = torch.arange(len(ids), device=device)
        assert self._mask is not None
        self._mask[lanes, 0, 0, places] = 0
        length = max(self.lengths) + 1
        for layer in self._layers:
            layer.at, layer.length, layer.last = (lanes, places), length, len(ids) == 1
        embeddings = self.model.special_tokens.embed(torch.tensor(ids, device=device)[:, None])
        with self.model.shown(self._sight, self._may_end, adapted=self._adapted):
            logits: Tensor = self.model.language.model(
                inputs_embeds=embeddings,
                attention_mask=self._mask[: len(ids), ..., :length],
                position_ids=positions[:, None],
                use_cache=True,
                logits_to_keep=1,
                **as_states(self.model.language.model, Cache(layers=self._layers)),
            ).logits
        self.lengths = [n + 1 for n in self.lengths]
        return logits[:, -1]

    def _reserve(self, like: Sequence[tuple[Tensor, Tensor]], rows: int, length: int) -> None:
        """Makes room for so many rows of such a length."""
        if rows <= self._rows and length <= self._room:
            return
        room = self._room if length <= self._room else max(length, int(self._room * GROWTH), 64)
        many = self._rows if rows <= self._rows else max(rows, 2 * self._rows)
        if not self._layers:
            self._layers = [LaneLayer() for _ in like]
        for number, layer in enumerate(self._layers):
            layer.reserve(like[number] if like else None, many, room, len(self.lengths))
        dtype = self.model.language.input_embedding.weight.dtype
        mask = torch.full(
            (many, 1, 1, room), torch.finfo(dtype).min, dtype=dtype, device=self.model.device
        )
        if self._mask is not None:
            mask[: self._rows, ..., : self._room] = self._mask
        self._mask, self._rows, self._room = mask, many, room

    def _look(self) -> None:
        """Puts together what the rows see."""
        ends = [may_end for may_end, _ in self._seen]
        device = self.model.device
        self._may_end = torch.tensor(ends, device=device) if any(ends) else None
        self._sight = together([sight for _, sight in self._seen], device)
        adapter = self.model.fusion.adapter
        self._adapted = None
        if adapter is not None and self._may_end is not None:
            self._adapted = adapter.decoding(self._may_end)
