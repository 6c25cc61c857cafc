"""Visual tokens as the words nearest to them: at the input, and by the logit lens behind layers.

At the input a visual token is compared with the word embeddings. Behind a layer it goes through
the final norm and the head as if that layer were the last (the logit lens, nostalgebraist 2020),
which says which words the model would write there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from isthmus.explaining.explanation import NearWords
from isthmus.explaining.recording import Recorded
from isthmus.model.backbones.language import LanguageModel

NEAREST = 3
"""Words for each visual token."""
AT_ONCE = 128
"""Visual tokens that are compared with all words at a time: a vocabulary is large."""

Words = tuple[tuple[str, float], ...]


def depths_for(layers: int, most: int) -> list[int]:
    """Behind how many layers to look: evenly, the last one among them.

    Example:
        >>> depths_for(30, 5), depths_for(2, 5)
        ([6, 12, 18, 24, 30], [1, 2])
    """
    steps = min(most, layers)
    return [round((step + 1) * layers / steps) for step in range(steps)]


def nearest_inputs(language: LanguageModel, states: Tensor) -> list[Words]:
    """The words whose embeddings are nearest to vectors (S, D), by the cosine."""
    table = language.input_embedding.weight.detach()
    norms = table.float().norm(dim=-1).clamp(min=1e-12)
    found = []
    for some in torch.split(states, AT_ONCE):
        cosine = F.normalize(some.float(), dim=-1) @ table.float().T / norms
        found += _words(language, cosine)
    return found


def lens(language: LanguageModel, recorded: Recorded, states: Tensor) -> list[Words]:
    """The words that the head would write for hidden states (S, D), with their probability."""
    found = []
    head = language.output_embedding
    for some in torch.split(states, AT_ONCE):
        logits = F.linear(through_tail(recorded, some), head.weight, head.bias)
        found += _words(language, logits.float().softmax(dim=-1))
    return found


def through_tail(recorded: Recorded, states: Tensor) -> Tensor:
    """Hidden states (..., D) through what lies between the last layer and the head."""
    for module in recorded.tail:
        states = module(states)
    return states


def tail_is_whole(recorded: Recorded) -> bool:
    """Whether the modules behind the last layer are all that happens before the head.

    Families that also scale there, or add something, have no lens.
    """
    if recorded.last is None or recorded.head_input is None:
        return False
    made, given = through_tail(recorded, recorded.last), recorded.head_input
    made = made[:, -given.shape[1] :]
    return made.shape == given.shape and torch.allclose(made, given, rtol=1e-4, atol=1e-5)


def near_words(
    language: LanguageModel, recorded: Recorded, visual: Sequence[Tensor], in_text: bool
) -> list[NearWords | None]:
    """The words nearest to the visual tokens of each image; None where they are no words' vectors.

    Args:
        language: The language model.
        recorded: Whose `states` are those of all visual tokens in the text, image after image.
        visual: Visual tokens (M_i, D_visual) of each image.
        in_text: Whether they stand in the text.
    """
    if any(own.shape[-1] != language.width for own in visual):
        return [None] * len(visual)
    layers, tables = ["input"], [nearest_inputs(language, torch.cat(list(visual)))]
    if in_text and tail_is_whole(recorded):
        for depth, states in sorted(recorded.states.items()):
            layers.append(f"after {depth} layers" if depth > 1 else "after 1 layer")
            tables.append(lens(language, recorded, states))
    found: list[NearWords | None] = []
    start = 0
    for own in visual:
        words = tuple(tuple(table[start : start + len(own)]) for table in tables)
        found.append(NearWords(tuple(layers), words))
        start += len(own)
    return found


def _words(language: LanguageModel, scores: Tensor) -> list[Words]:
    """The best words of scores (S, V)."""
    rows = min(scores.shape[1], len(language.tokenizer))  # tables may be padded beyond the words
    best = scores[:, :rows].topk(min(NEAREST, rows), dim=-1)
    return [
        tuple((_text(language, i), round(v, 4)) for i, v in zip(ids, values, strict=True))
        for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _text(language: LanguageModel, token: int) -> str:
    return str(language.tokenizer.decode([token]))
