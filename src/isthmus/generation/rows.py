"""Prompts on their way through the language model: one batch of live rows.

Letters: B rows, N tokens of a shared prefix, L tokens of the longest row behind it, P images.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from isthmus.generation.prefix import Symbols
from isthmus.model.backbones.states import as_states, states_in
from isthmus.model.fusion.adapter import Adapted
from isthmus.model.fusion.deepstack import Deepstack, deepstack_of
from isthmus.model.fusion.sight import Sight, first_of_each
from isthmus.model.layout import Layout, starts, whole_images
from isthmus.model.media.base import stacked
from isthmus.model.positions import positions_of
from isthmus.model.vlm import VisionLanguageModel


@dataclass(frozen=True)
class Encoded:
    """A prompt as the language model will read it.

    Attributes:
        ids: Token ids, each image's layout among them.
        symbols: The ids, hashes of images in place of their layouts.
        images: Hashes of its images, in their order.
        layouts: Their layouts.
        shared: How many tokens other prompts share; they end in no layout.
        adapted: Whether the language model's adapters act on all of it, images yet to come
            counted; its symbols then differ from those of the same text without images.
    """

    ids: tuple[int, ...]
    symbols: Symbols
    images: tuple[str, ...]
    layouts: tuple[Layout, ...]
    shared: int = 0
    adapted: bool = False

    def images_before(self, past: int) -> int:
        """How many images lie in whole among the first `past` tokens."""
        return whole_images(sum(isinstance(s, str) for s in self.symbols[:past]), self.layouts)

    def first(self, count: int) -> Encoded:
        """The first so many tokens as a prompt of their own."""
        shown = self.images_before(count)
        return Encoded(
            self.ids[:count],
            self.symbols[:count],
            self.images[:shown],
            self.layouts[:shown],
            adapted=self.adapted,
        )


def seen_after(model: VisionLanguageModel, prompt: Encoded, past: int) -> tuple[str, ...]:
    """Hashes of the images that tokens behind the first `past` may see.

    Those whose tags stand there; the last one before, which they see until a tag of their own, if
    the fusion shows it; and all of them where tokens see every image before them.
    """
    if model.fusion.sees == "previous":
        return prompt.images
    before = prompt.images_before(past)
    return prompt.images[max(0, before - (model.fusion.sees == "last")) :]


def symbols_of(
    model: VisionLanguageModel,
    ids: Sequence[int],
    hashes: Sequence[str],
    layouts: Sequence[Layout],
    *,
    adapted: bool = False,
) -> Symbols:
    """Token ids, those of each image's layout told by the image's hash.

    Args:
        model: The model.
        ids: Token ids of a prompt, or of its beginning.
        hashes: Of its images.
        layouts: Of its images.
        adapted: Whether adapters act on all of it: its states are then no others' states, which a
            negative number in place of the first id says.
    """
    symbols: list[int | str] = list(ids)
    begins = starts(ids, layouts, model.special_tokens.image_id)
    for start, key, layout in zip(begins, hashes, layouts, strict=False):
        symbols[start : start + len(layout)] = [key] * len(layout)
    if adapted and symbols:
        first = symbols[0]
        symbols[0] = -1 - first if isinstance(first, int) else f"adapted {first}"
    return tuple(symbols)


class Rows:
    """Rows that continue one prefix: prefill, then token by token, rows leaving when they are done.

    Args:
        model: The model.
        prompts: The prompts, whose first `past` symbols are the same.
        visual: Visual tokens (M, D_visual) of their images, by hash.
        states: The language model's cache after those symbols, with as many rows; None for none.
        past: How many symbols it holds.

    Attributes:
        states: What the language model keeps, growing.
        lengths: (B,) tokens that each row has so far, padding not counted.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        prompts: Sequence[Encoded],
        visual: Mapping[str, Tensor],
        states: Any = None,
        past: int = 0,
    ) -> None:
        self.model = model
        self.states = states
        device = model.device
        longest = max(len(p.ids) for p in prompts) - past
        ids = torch.full((len(prompts), longest), model.pad_id)
        mask = torch.ones(len(prompts), past + longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            own = prompt.ids[past:]
            ids[row, longest - len(own) :] = torch.tensor(own)
            mask[row, past : past + longest - len(own)] = 0
        self._ids, self._mask = ids.to(device), mask.to(device)
        seen = [p.images_before(past) for p in prompts]
        self._positions = positions_of(
            self._mask,
            self._ids == model.special_tokens.image_id,
            [layout for p, n in zip(prompts, seen, strict=True) for layout in p.layouts[n:]],
            axes=model.language.axes,
            before=[p.layouts[:n] for p, n in zip(prompts, seen, strict=True)],
            first=model.language.reading.first,
        )
        self._may_end: Tensor | None = None
        self._sight: Sight | None = None
        self._adapted: Adapted | None = None
        self._new: list[Tensor] = []
        if any(p.images for p in prompts):
            self._look(prompts, visual, past)
        if any(p.images or p.adapted for p in prompts):
            self._adapt(prompts, past)

    def _look(self, prompts: Sequence[Encoded], visual: Mapping[str, Tensor], past: int) -> None:
        """Finds out which row sees what; `past` as above."""
        model, device = self.model, self.model.device
        self._may_end = torch.tensor([bool(p.images) for p in prompts], device=device)
        before = [p.images_before(past) for p in prompts]
        behind = list(zip(prompts, before, strict=True))
        if model.fusion.in_text:
            self._new = [visual[h] for p, n in behind for h in p.images[n:]]
        if model.fusion.sees == "nothing":
            return
        # each row's images are numbered from 0; then the ones that are seen from here on get
        # places in one stack, in the order of rows
        places = [layout.places for p, n in behind for layout in p.layouts[n:]]
        tags = first_of_each(self._ids == model.special_tokens.image_id, places)
        ordinal = tags.long().cumsum(dim=1) + torch.tensor(before, device=device)[:, None] - 1
        ordinal = ordinal.masked_fill(self._mask[:, past:] == 0, -1)
        seen, begin = torch.full_like(self._mask, -1), torch.zeros_like(self._mask)
        stack: list[Tensor] = []
        for row, prompt in enumerate(prompts):
            hashes = seen_after(model, prompt, past)
            first = len(prompt.images) - len(hashes)
            here = ordinal[row]
            seen[row, past:] = torch.where(here < 0, here, here - first + len(stack))
            begin[row] = len(stack)
            stack.extend(visual[h] for h in hashes)
        self._sight = model.fusion.look(stacked(stack), seen, begin, keep=True)

    def _adapt(self, prompts: Sequence[Encoded], past: int) -> None:
        """Finds out where the fusion's adapters act; `past` as above."""
        adapter, device = self.model.fusion.adapter, self.model.device
        if adapter is None:
            return
        adapted = adapter.see(
            self._ids == self.model.special_tokens.image_id,
            self._mask[:, past:],
            before=torch.tensor([p.images_before(past) > 0 for p in prompts], device=device),
            ever=torch.tensor([bool(p.images) or p.adapted for p in prompts], device=device),
        )
        adapted.prompt = F.pad(adapted.prompt, (past, 0))
        self._adapted = adapted

    def _forward(
        self,
        embeddings: Tensor,
        mask: Any,
        positions: Tensor,
        keep: int,
        deepstack: Deepstack | None = None,
    ) -> Tensor:
        """Logits (B, K, V) of the last K tokens; the states grow by all of them."""
        places = self.model.language.places(mask, None, positions)
        shown = self.model.shown(
            self._sight, self._may_end, adapted=self._adapted, deepstack=deepstack
        )
        with shown:
            out = self.model.language.model(
                inputs_embeds=embeddings,
                use_cache=True,
                logits_to_keep=keep,
                **as_states(self.model.language.model, self.states),
                **places,
            )
        self.states = states_in(out)
        logits: Tensor = out.logits
        return logits

    @property
    def lengths(self) -> Tensor:
        """(B,) tokens of each row, padding not counted."""
        return self._mask.sum(dim=1)

    def embedded(self) -> Tensor:
        """Embeddings (B, L, D) of the prompts behind the prefix, visual tokens in their places."""
        embeddings = self.model.special_tokens.embed(self._ids)
        if self._new:
            is_image = self._ids == self.model.special_tokens.image_id
            embeddings = self.model.fusion.embed(embeddings, is_image, self._new)
        return embeddings

    def acts(self, row: int) -> tuple[list[bool], bool]:
        """Whether adapters act on each token of one row, padding left out, and on those to come."""
        past = self._mask.shape[1] - self._ids.shape[1]
        own = self._mask[row, past:].bool()
        if self._adapted is None:
            return [False] * int(own.sum()), False
        here: list[bool] = self._adapted.prompt[row, past:][own].tolist()
        return here, bool(self._adapted.then[row])

    def prefill(self) -> Tensor:
        """Logits (B, V) after the prompts."""
        embeddings, deepstack = self.embedded(), None
        is_image = self._ids == self.model.special_tokens.image_id
        if self._new:
            past = self._mask.shape[1] - self._ids.shape[1]
            deepstack = deepstack_of(self.model.fusion, F.pad(is_image, (past, 0)), self._new)
        mask = self.model.language.mask(self._mask, is_image, states=self.states)
        positions = self._positions.tokens
        return self._forward(embeddings, mask, positions, 1, deepstack)[:, -1]

    def step(self, ids: Tensor) -> Tensor:
        """Logits (B, V) after one more token for each row, ids (B,)."""
        positions = self._positions.behind(self.lengths[:, None])
        self._mask = torch.cat([self._mask, torch.ones_like(positions)], dim=1)
        embeddings = self.model.special_tokens.embed(ids[:, None])
        return self._forward(embeddings, self._mask, positions, keep=1)[:, -1]

    def append(self, ids: Tensor, depth: Tensor, sees: Tensor) -> Tensor:
        """Logits (B, N, V) after tokens that are no one sequence, such as the nodes of a tree.

        Args:
            ids: (B, N) token ids.
            depth: (B, N) how far behind the prompt each stands, from 0.
            sees: (B, N, A + N) bool, which of the A tokens appended before, and of these, each
                sees; all see the prompt.
        """
        prompt = self._mask[:, : self._mask.shape[1] - (sees.shape[2] - ids.shape[1])]
        whole = prompt.bool()[:, None, :].expand(-1, ids.shape[1], -1)
        allowed = torch.cat([whole, sees], dim=2)
        embeddings = self.model.special_tokens.embed(ids)
        lowest = torch.finfo(embeddings.dtype).min
        mask = torch.zeros(allowed.shape, dtype=embeddings.dtype, device=ids.device)
        mask = mask.masked_fill(~allowed, lowest)[:, None]
        positions = self._positions.behind(prompt.sum(dim=1, keepdim=True) + depth)
        self._mask = torch.cat([self._mask, torch.ones_like(ids)], dim=1)
        return self._forward(embeddings, mask, positions, keep=0)

    def select(self, rows: Tensor) -> None:
        """Keeps some rows, or repeats them: (B',) row numbers."""
        self.states.batch_select_indices(rows)
        self._mask = self._mask[rows]
        self._positions = self._positions.select(rows)
        if self._may_end is not None:
            self._may_end = self._may_end[rows]
        if self._sight is not None:
            self._sight.select(rows)
        if self._adapted is not None:
            self._adapted = self._adapted.select(rows)

    def keys_values(self, row: int) -> list[tuple[Tensor, Tensor]]:
        """One row's keys and values (H, L, D_head), layer by layer, without padding."""
        real = self._mask[row].bool()
        if bool(real.all()):
            return [(layer.keys[row], layer.values[row]) for layer in self.states.layers]
        return [(s.keys[row][:, real], s.values[row][:, real]) for s in self.states.layers]

    def lag(self, row: int) -> int:
        """How many positions one row has fewer than tokens (`Positions.lag`)."""
        return self._positions.lag_of(row)

    def seen(self, row: int) -> tuple[bool, Sight | None]:
        """What tokens decoded behind one row see: whether it has images, and what of them."""
        sight = None if self._sight is None else self._sight.alone(row)
        if sight is not None and self.model.fusion.sees == "last":
            sight.narrow()
        return self._may_end is not None and bool(self._may_end[row]), sight

    def branch(self, row: int, rows: int) -> Rows:
        """So many rows that continue one row of this batch, which stays as it is."""
        other = copy.copy(self)
        other._sight = copy.copy(self._sight)
        if other._sight is not None:
            other._sight.keys_values = dict(other._sight.keys_values)
        other.states = copy.deepcopy(self.states)
        other.select(torch.full((rows,), row, device=self._mask.device))
        return other
