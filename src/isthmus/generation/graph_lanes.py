"""Rows that are decoded by recorded steps (`graphs`): they join and leave between two steps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from isthmus.generation.graphs import Block, Bucket, Graphs, StaticStep, bucket_for
from isthmus.generation.rows import Rows


class GraphLanes:
    """Rows that are decoded by recorded steps: `decoding.Decoding`, in place of `lanes.Lanes`.

    Rows that are too many or too long for the recorded steps move into a larger block of their
    own, whose steps are computed and not replayed.

    Args:
        graphs: The recorded steps; no other rows may use them at the same time.

    Attributes:
        lengths: Tokens of each row, by lane.
    """

    def __init__(self, graphs: Graphs) -> None:
        self.graphs = graphs
        self.lengths: list[int] = []
        self._lags: list[int] = []
        self._images: list[bool] = []
        self._block: Block | None = None
        self._own: dict[Bucket, StaticStep] | None = None  # None in the graphs' block

    @property
    def bytes(self) -> int:
        """Bytes of the block."""
        return 0 if self._block is None else self._block.bytes

    def join(self, rows: Rows, which: Sequence[int]) -> None:
        """Takes rows that were prefilled, which are copied, into lanes behind the others."""
        lengths = rows.lengths.tolist()
        own = {row: rows.keys_values(row) for row in which}
        if self._block is None:
            self._block = self.graphs.block(own[which[0]])
        longest = max(lengths[row] for row in own)
        block = self._room_for(len(self.lengths) + len(which), longest + 1)
        for row in which:
            lane, length = len(self.lengths), lengths[row]
            for blocks, given in zip(block.layers, own[row], strict=True):
                for into, states in zip(blocks, given, strict=True):
                    into[lane, :, :length] = states
            self.lengths.append(length)
            self._lags.append(rows.lag(row))
            self._images.append(rows.seen(row)[0])

    def leave(self, lane: int) -> None:
        """Lets a row go; the last one takes its lane."""
        last = len(self.lengths) - 1
        if lane != last:
            length = self.lengths[last]
            assert self._block is not None
            for blocks in self._block.layers:
                for block in blocks:
                    block[lane, :, :length] = block[last, :, :length]
        self.lengths[lane], self._lags[lane] = self.lengths[last], self._lags[last]
        self._images[lane] = self._images[last]
        for values in (self.lengths, self._lags, self._images):
            values.pop()
        if not self.lengths:
            self._block = self._own = None

    def states(self, lane: int) -> DynamicCache:
        """A row's states, copied."""
        assert self._block is not None
        found = DynamicCache()
        found.layers = []
        for blocks in self._block.layers:
            keys, values = (b[lane, :, : self.lengths[lane]][None].clone() for b in blocks)
            own = DynamicLayer()
            own.lazy_initialization(keys, values)
            own.keys, own.values = keys, values
            found.layers.append(own)
        return found

    def step(self, ids: Sequence[int]) -> Tensor:
        """Logits (B, V) after one more token for each row."""
        length = max(self.lengths) + 1
        block = self._room_for(len(ids), length)
        rooms = self.graphs.rooms if self._own is None else (block.room,)
        bucket = bucket_for(len(ids), length, block.rows, rooms, any(self._images))
        positions = [n - lag for n, lag in zip(self.lengths, self._lags, strict=True)]
        inputs = [list(ids), self.lengths, positions, [int(i) for i in self._images]]
        if self._own is None:
            logits = self.graphs.step(bucket, inputs)
        else:
            step = self._own.get(bucket)
            if step is None:
                step = self._own[bucket] = StaticStep(self.graphs.model, block, bucket)
            step.fill(inputs)
            logits = step()
        self.lengths = [n + 1 for n in self.lengths]
        return logits[: len(ids)]

    def _room_for(self, rows: int, length: int) -> Block:
        """The block, after moving into a larger one where this one is too small."""
        old = self._block
        assert old is not None
        if rows <= old.rows and length <= old.room:
            return old
        many = old.rows if rows <= old.rows else max(rows, 2 * old.rows)
        room = old.room if length <= old.room else max(length, 2 * old.room)
        new = Block([(keys[0], values[0]) for keys, values in old.layers], many, room)
        used = len(self.lengths)
        for before, after in zip(old.layers, new.layers, strict=True):
            for source, target in zip(before, after, strict=True):
                target[:used, :, : old.room] = source[:used]
        self._block, self._own = new, {}
        return new
