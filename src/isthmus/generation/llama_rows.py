"""Rows whose keys and values llama.cpp keeps: `rows.Rows` and `decoding.Decoding` on it.

What stands before the language model is computed here: embeddings of tokens and visual tokens. They
are handed over as they are, prompt by prompt; decoded tokens go in as ids, all rows' in one pass,
or in two where adapters act on some of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import finalize

import torch
from torch import Tensor

from isthmus.generation.llama_cpp import CacheFull, LlamaCpp
from isthmus.generation.rows import Encoded, Rows
from isthmus.model.backbones.added_tokens import AddedTokens
from isthmus.model.vlm import VisionLanguageModel


class Held:
    """Sequences of llama.cpp's, let go when nobody holds them any more: `prefix.KeptElsewhere`.

    Args:
        at: Where they are.
        sequences: Their numbers, one for each row.
        lengths: Tokens of each.
    """

    def __init__(self, at: LlamaCpp, sequences: Sequence[int], lengths: Sequence[int]) -> None:
        self.at, self.sequences, self.lengths = at, tuple(sequences), list(lengths)
        finalize(self, at.drop, self.sequences).atexit = False

    @property
    def bytes(self) -> int:
        """What they take; at least a share of what there is, since sequences are counted too."""
        return sum(max(self.at.least, n) for n in self.lengths) * self.at.cell_bytes

    def fork(self, length: int, rows: int) -> Held:
        """As `prefix.fork`."""
        first = self.sequences[0]
        return Held(self.at, self.at.copy(first, length, rows), [length] * rows)

    def alone(self, row: int) -> Held:
        """One row, ready to be appended to, these left as they are."""
        length = self.lengths[row]
        return Held(self.at, self.at.copy(self.sequences[row], length), [length])


class LlamaRows:
    """Rows that continue one prefix, until they join those that are decoded: as `rows.Rows`.

    Args:
        at: The language model.
        model: The model, whose strip is used.
        prompts, visual, past: As for `rows.Rows`.
        states: The sequences that hold the prefix, one for each row; None for none.

    Attributes:
        states: The sequences, which grow.
        model, prompts: As above.
        acts: Of each row, whether adapters act on what is decoded behind it.
    """

    def __init__(
        self,
        at: LlamaCpp,
        model: VisionLanguageModel,
        prompts: Sequence[Encoded],
        visual: Mapping[str, Tensor],
        states: Held | None = None,
        past: int = 0,
    ) -> None:
        self.model, self.prompts = model, prompts
        if states is None:
            states = Held(at, at.take(len(prompts)), [0] * len(prompts))
        self.states = states
        self._embedded = Rows(model, prompts, visual, None, past)
        self.acts = [self._embedded.acts(row)[1] for row in range(len(prompts))]

    def prefill(self) -> Tensor:
        """Logits (B, V) after the prompts."""
        embeddings, found = self._embedded.embedded(), []
        for row, sequence in enumerate(self.states.sequences):
            acts, _ = self._embedded.acts(row)
            own = embeddings[row, embeddings.shape[1] - len(acts) :]
            past = self.states.lengths[row]
            found.append(self.states.at.read(sequence, past, own, acts))
            self.states.lengths[row] = past + len(own)
        return offered(self.model, found, [bool(p.images) for p in self.prompts])


class LlamaDecoding:
    """Rows that are decoded by llama.cpp: `decoding.Decoding`.

    Args:
        at: The language model.
        model: The model.
    """

    def __init__(self, at: LlamaCpp, model: VisionLanguageModel) -> None:
        self._at, self._model = at, model
        self._rows: list[tuple[Held, bool, bool]] = []  # with adapters; may end a chunk

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row."""
        return [held.lengths[0] for held, _, _ in list(self._rows)]

    @property
    def bytes(self) -> int:
        """Bytes of the rows' cells, those counted twice that rows share."""
        return sum(self.lengths) * self._at.cell_bytes

    def join(self, rows: Any, which: Sequence[int]) -> None:
        """Takes rows of a batch that was prefilled."""
        assert isinstance(rows, LlamaRows)
        for row in which:
            images = bool(rows.prompts[row].images)
            self._rows.append((rows.states.alone(row), rows.acts[row], images))

    def leave(self, row: int) -> None:
        """Lets a row go; the last one takes its number."""
        self._rows[row] = self._rows[-1]
        self._rows.pop()

    def states(self, row: int) -> Held:
        """A row's sequence."""
        return self._rows[row][0]

    def step(self, ids: Sequence[int]) -> Tensor:
        """Logits (B, V) after one more token for each row.

        Raises:
            CacheFull: If there is no room for all of them; no row has its token then.
        """
        before = self.lengths
        try:
            return self._step(ids)
        except CacheFull:  # those with adapters, or those without, may have theirs
            for (held, _, _), length in zip(self._rows, before, strict=True):
                self._at.cut(held.sequences[0], length)
                held.lengths[0] = length
            raise

    def _step(self, ids: Sequence[int]) -> Tensor:
        found: list[Tensor | None] = [None] * len(ids)
        for adapted in (False, True):
            own = [n for n, (_, acts, _) in enumerate(self._rows) if acts == adapted]
            places = [(self._rows[n][0].sequences[0], self._rows[n][0].lengths[0]) for n in own]
            logits = self._at.step([ids[n] for n in own], places, adapted)
            for n, values in zip(own, logits, strict=True):
                found[n] = values
                self._rows[n][0].lengths[0] += 1
        rows = [values for values in found if values is not None]
        return offered(self._model, rows, [images for _, _, images in self._rows])


def offered(model: VisionLanguageModel, rows: Sequence[Tensor], ends: Sequence[bool]) -> Tensor:
    """Logits (B, V) of rows, -inf where a token is none that may come.

    Args:
        model: The model.
        rows: What llama.cpp found, (V,) each.
        ends: Whether each row may end a chunk, as those with images do.
    """
    logits, tokens = torch.stack(list(rows)), model.special_tokens
    if isinstance(tokens, AddedTokens):
        logits[:, tokens.image_id] = -torch.inf
        logits[~torch.tensor(ends), tokens.end_id] = -torch.inf
    return logits.to(model.device)
