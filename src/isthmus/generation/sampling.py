"""The next token of each row of a batch, each row by its own options and its own chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

COLDEST = 1e-5
"""A temperature below this is greedy: dividing by it overflows."""
LIKELIEST = 256
"""Tokens that are looked through for top_p first, since to sort all takes long."""


@dataclass(frozen=True)
class Draw:
    """How one row's next token is found.

    Attributes:
        temperature, top_p, top_k: As in `GenerationRequest`.
        chance: A number from [0, 1), this token's share of the row's random numbers.
    """

    temperature: float
    top_p: float
    top_k: int
    chance: float


def penalized(
    logits: Tensor,
    counts: Sequence[Mapping[int, int]],
    presence: Sequence[float],
    frequency: Sequence[float],
) -> Tensor:
    """Logits (B, V) less OpenAI's penalties on tokens that each row has generated.

    A token's logit loses `count * frequency + (count > 0) * presence`.
    """
    if not any(presence) and not any(frequency):
        return logits
    logits = logits.clone()
    for row, own in enumerate(counts):
        if own and (presence[row] or frequency[row]):
            ids = torch.tensor(list(own), device=logits.device)
            often = torch.tensor(list(own.values()), device=logits.device, dtype=logits.dtype)
            logits[row, ids] -= often * frequency[row] + presence[row]
    return logits


def choose(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """A token for each row.

    A row's token depends on its own logits, options and chance alone. It is where the chance falls
    among the tokens' shares, in the order of their ids: noise in the last bits of logits, such as
    another batch brings, moves the borders by as little.

    Args:
        logits: (B, V) fp32.
        draws: How, row by row.

    Example:
        >>> logits = torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 0.0]])
        >>> choose(logits, [Draw(0.0, 1.0, 0, 0.5), Draw(1.0, 1.0, 0, 0.9)])
        [1, 2]
    """
    drawn = [row for row, draw in enumerate(draws) if draw.temperature >= COLDEST]
    if not drawn:
        return [int(i) for i in logits.argmax(dim=-1).tolist()]
    found = logits.argmax(dim=-1).tolist() if len(drawn) < len(draws) else [0] * len(draws)
    own = [draws[row] for row in drawn]
    some = logits if len(drawn) == len(draws) else logits[drawn]
    heat = torch.tensor([d.temperature for d in own], device=logits.device)
    shares = (some / heat[:, None]).softmax(dim=-1)
    for place, row in enumerate(drawn):
        found[row] = _drawn(shares[place], draws[row])
    return found


def _drawn(shares: Tensor, draw: Draw) -> int:
    """The token (V,) that a row's chance falls on, after `top_k`, then `top_p`."""
    ids = None
    if 0 < draw.top_k < len(shares):
        shares, ids = shares.topk(draw.top_k)
        shares = shares / shares.sum()
    if draw.top_p < 1:
        looked = LIKELIEST
        ordered, places = shares.topk(min(looked, len(shares)))
        while looked < len(shares) and float(ordered.sum()) < draw.top_p:
            looked *= 8
            ordered, places = shares.topk(min(looked, len(shares)))
        # a token stays while what is likelier than it holds less than the share
        stays = ordered.cumsum(dim=-1) - ordered < draw.top_p
        shares = ordered[stays]
        ids = places[stays] if ids is None else ids[places[stays]]
    if ids is not None:
        ids, order = ids.sort()
        shares = shares[order]
    borders = shares.double().cumsum(dim=-1)
    picked = torch.searchsorted(borders, draw.chance * borders[-1:], right=True)
    picked = picked.clamp(max=len(shares) - 1)
    return int(picked if ids is None else ids[picked])
