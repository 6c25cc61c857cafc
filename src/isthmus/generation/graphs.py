"""Decoding steps as CUDA graphs: a step's kernels are recorded once and started by one call.

A decoding step of a small batch is hundreds of kernels of a few microseconds each, and Python
takes longer to start them than a graphics card to run them. A graph replays them from recorded
addresses, so its inputs, its states and all shapes must stay where and what they are. Rows are
therefore padded to a `Bucket`: so many lanes, and a room of so many tokens that attention reads
whatever the rows' lengths are. What lies behind a row's own tokens is hidden by a mask that is
computed inside the graph. All buckets read and write one block of keys and values per layer, and
share one pool of memory.

Only on CUDA devices (`graphs_for`), for models whose fusion shows decoded tokens nothing: the
groups of tokens that cross-attention makes have shapes of their own at each step. A model that
cannot be recorded, since it reads a value back to Python, is decoded by the same step without a
recording.

The step itself is tested on the CPU against `lanes.Lanes`, and there for reading nothing back.
Recording and replay have not been run: no CUDA device was at hand. `benchmarks/gpu.py` compares
them with the eager step before it measures anything, and `tests/unit/generation/test_graphs.py`
does so where there is one.

Letters: B lanes of a bucket, K its room, H key heads, D the width of a head, V words.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from isthmus.generation.lanes import LaneLayer
from isthmus.generation.rows import Encoded, Rows
from isthmus.model.backbones.states import as_states
from isthmus.model.fusion.adapter import Adapted
from isthmus.model.vlm import VisionLanguageModel

_log = logging.getLogger(__name__)

ROOMS = (256, 512, 1024, 2048)
"""Tokens of a row, the next one counted, that a recorded step has room for."""
SHARE = 0.5
"""The most of a device's free memory that the blocks may take."""
WARM_UPS = 3
"""Steps before a recording, in which libraries choose kernels and make room for themselves."""


class Bucket(NamedTuple):
    """The shapes of a step.

    Attributes:
        rows: Lanes B.
        room: Tokens K of each.
        images: Whether any row has an image: adapters act, and the two tokens have columns.
    """

    rows: int
    room: int
    images: bool


def bucket_for(rows: int, length: int, most: int, rooms: Sequence[int], images: bool) -> Bucket:
    """The smallest bucket for rows.

    Args:
        rows: How many there are.
        length: Tokens of the longest, the next one counted.
        most: Most rows of any bucket.
        rooms: Rooms that there are, in rising order; the last one must do.
        images: Whether any row has an image.

    Example:
        >>> bucket_for(3, 300, most=24, rooms=ROOMS, images=False)
        Bucket(rows=4, room=512, images=False)
        >>> bucket_for(17, 12, most=24, rooms=ROOMS, images=True).rows
        24
    """
    padded = min(1 << (rows - 1).bit_length(), most)
    return Bucket(padded, next((r for r in rooms if r >= length), rooms[-1]), images)


class Block:
    """Keys and values (B, H, K, D) of each layer, where they stay.

    Args:
        like: One row's keys and values (H, L, D) of each layer, for their shapes.
        rows: Lanes.
        room: Tokens of each.
    """

    def __init__(self, like: Sequence[tuple[Tensor, Tensor]], rows: int, room: int) -> None:
        # zeros: hidden values are multiplied by 0, and 0 times NaN is NaN
        self.layers = [
            (
                keys.new_zeros(rows, keys.shape[-3], room, keys.shape[-1]),
                values.new_zeros(rows, values.shape[-3], room, values.shape[-1]),
            )
            for keys, values in like
        ]
        self.rows, self.room = rows, room

    @property
    def bytes(self) -> int:
        """Bytes that it takes."""
        return sum(t.numel() * t.element_size() for pair in self.layers for t in pair)


class _Marked(Adapted):
    """Where adapters act in a step: told by the step itself, with nothing read back to Python."""

    def advance(self, rows: int, length: int, past: int) -> None:
        """Leaves all as the step has it."""


class StaticStep:
    """One decoding step of a bucket: fixed shapes and addresses, and nothing read back to Python.

    Args:
        model: The model.
        block: Its rows' keys and values.
        bucket: The shapes.

    Attributes:
        inputs: (4, B) int64: each lane's token, the place that its keys and values go to, its
            position, and whether it has images.
    """

    def __init__(self, model: VisionLanguageModel, block: Block, bucket: Bucket) -> None:
        self.model, self.bucket = model, bucket
        device = model.device
        self.inputs = torch.zeros(4, bucket.rows, dtype=torch.long, device=device)
        self._lanes = torch.arange(bucket.rows, device=device)
        self._columns = torch.arange(bucket.room, device=device)
        self._may_end: Tensor | None = None
        self._adapted: Adapted | None = None
        if bucket.images:
            self._may_end = torch.zeros(bucket.rows, dtype=torch.bool, device=device)
            if model.fusion.adapter is not None:
                everywhere = torch.ones_like(self._may_end)
                self._adapted = _Marked(everywhere[:, None][:, :0], everywhere)
                self._adapted.some, self._adapted.tokens = True, bucket.rows
                self._adapted.elsewhere = torch.zeros_like(everywhere[:, None])
        layers = []
        for keys, values in block.layers:
            layer = LaneLayer()
            layer.keys, layer.values, layer.is_initialized = keys, values, True
            layer.at, layer.length = (self._lanes, self.inputs[1]), bucket.room
            layers.append(layer)
        self._states = as_states(model.language.model, Cache(layers=layers))
        self._graph: Any = None
        self._logits: Tensor | None = None

    def shown(self) -> AbstractContextManager[None]:
        """The context in which `compute` may be called: hooks, which a recording needs once."""
        return self.model.shown(None, self._may_end, adapted=self._adapted)

    def compute(self) -> Tensor:
        """Logits (B, V), or (B, V + 2) with images, behind `inputs`: what is recorded."""
        ids, places, positions, images = self.inputs
        if self._may_end is not None:
            self._may_end.copy_(images)
        adapter = self.model.fusion.adapter
        if adapter is not None and self._adapted is not None:
            assert self._adapted.elsewhere is not None
            self._adapted.elsewhere.copy_(~adapter.decoding(images != 0).then[:, None])
        embeddings = self.model.special_tokens.embed(ids[:, None])
        hidden = self._columns > places[:, None]
        mask = torch.zeros(hidden.shape, dtype=embeddings.dtype, device=hidden.device)
        mask = mask.masked_fill(hidden, torch.finfo(mask.dtype).min)[:, None, None]
        logits: Tensor = self.model.language.model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions[:, None],
            use_cache=True,
            logits_to_keep=1,
            **self._states,
        ).logits
        return logits[:, -1]

    def record(self, pool: Any = None) -> Any:
        """Records `compute` as a CUDA graph, which later calls replay.

        Keys and values of place 0 in the lanes are written to, so no row may be there yet, or
        `inputs` must be those of the coming step.

        Args:
            pool: The pool of memory of other graphs, which this one then shares.

        Returns:
            Its pool.
        """
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with self.shown():
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    self.compute()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self._logits = self.compute()
        self._graph = graph
        return graph.pool()

    def fill(self, rows: Sequence[Sequence[int]]) -> None:
        """Sets `inputs`; lanes behind the rows get zeros, which write where nobody reads.

        Args:
            rows: Tokens, places, positions and images of the rows there are.
        """
        missing = [0] * (self.bucket.rows - len(rows[0]))
        self.inputs.copy_(torch.tensor([[*own, *missing] for own in rows]))

    def __call__(self) -> Tensor:
        """Logits of all lanes behind `inputs`, to be read before the next step."""
        if self._graph is None:
            with self.shown():
                return self.compute()
        self._graph.replay()
        assert self._logits is not None
        return self._logits


class Graphs:
    """The recorded steps of one model and the block that they share. One thread's own.

    Args:
        model: The model, of which `graphs_for` says that it can be recorded.
        most: Most rows of a step.
        rooms: Rooms of its buckets, in rising order.
        records: Whether steps are recorded; otherwise the same steps are computed one by one.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        most: int,
        *,
        rooms: Sequence[int] = ROOMS,
        records: bool = True,
    ) -> None:
        self.model, self.most, self.rooms = model, most, tuple(rooms)
        self.records = records
        self._block: Block | None = None
        self._steps: dict[Bucket, StaticStep] = {}
        self._pool: Any = None

    def block(self, like: Sequence[tuple[Tensor, Tensor]]) -> Block:
        """The block that recorded steps use, made when its shapes are known.

        It has fewer rooms where they would take more than `SHARE` of the device's free memory.
        """
        if self._block is None:
            row = sum(t[:, :1].numel() * t.element_size() for pair in like for t in pair)
            while len(self.rooms) > 1 and row * self.most * self.rooms[-1] > self._memory():
                self.rooms = self.rooms[:-1]
            self._block = Block(like, self.most, self.rooms[-1])
        return self._block

    def _memory(self) -> float:
        if self.model.device.type != "cuda":
            return float("inf")
        return SHARE * torch.cuda.mem_get_info(self.model.device)[0]

    def step(self, bucket: Bucket, inputs: Sequence[Sequence[int]]) -> Tensor:
        """Logits of a bucket's lanes; a bucket that is new is recorded first."""
        found = self._steps.get(bucket)
        if found is None:
            assert self._block is not None
            found = self._steps[bucket] = StaticStep(self.model, self._block, bucket)
            found.fill(inputs)
            if self.records:
                self._record(found)
        found.fill(inputs)
        return found()

    def _record(self, step: StaticStep) -> None:
        try:
            self._pool = step.record(self._pool)
        except Exception as error:  # a foreign model may do anything
            self.records = False
            _log.warning("decoding goes on without CUDA graphs: %s", str(error).split("\n")[0])

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Records every bucket, so that no request waits for it."""
        ids = (1, 2)
        rows = Rows(self.model, [Encoded(ids, ids, (), ())], {})
        rows.prefill()
        block = self.block(rows.keys_values(0))
        counts = sorted({*(1 << n for n in range(self.most.bit_length())), self.most})
        for images in (False,) if self.model.text_only else (False, True):
            for room in self.rooms:
                for count in (c for c in counts if c <= block.rows):
                    self.step(Bucket(count, room, images), [[0]] * 4)


def graphs_for(model: VisionLanguageModel, most: int) -> Graphs | None:
    """Recorded steps for a model, or None where there are none: on every device but CUDA's.

    Args:
        model: The model.
        most: Most rows of a step.

    Example:
        >>> import isthmus as im
        >>> graphs_for(im.compose("tiny-vit", "tiny-lm", im.Linear(), device="cpu"), 4) is None
        True
    """
    if model.device.type != "cuda" or not torch.cuda.is_available():
        return None
    return Graphs(model, most) if can_be_recorded(model) else None


def can_be_recorded(model: VisionLanguageModel) -> bool:
    """Whether a step has the same shapes whatever the rows see.

    Example:
        >>> import isthmus as im
        >>> parts = "tiny-vit", "tiny-lm", im.Linear()
        >>> can_be_recorded(im.compose(*parts, im.Inline()))
        True
        >>> can_be_recorded(im.compose(*parts, im.CrossAttention(every=2)))
        False
    """
    return model.fusion.sees == "nothing"
