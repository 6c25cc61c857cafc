"""Reading one printed word from an early feature map, in the language model's own word pieces.

Letters are small, and the last map of an encoder has forgotten them; an early one has not. The
reader goes over its columns from left to right, and says of each which letter stands there, or that
none does (connectionist temporal classification: Graves et al. 2006; over convolutional features:
CRNN, Shi et al. 2017, arXiv 1507.05717). Attention over the rows of a column finds the line that is
read, wherever it is and however it is turned.

Letters: B images, C channels, (h, w) rows and columns of the map, L letters of a word.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from isthmus.errors import ConfigError

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
"""What can be read. Letter `i` of it is number i + 1; 0 is none."""
DIGITS = len(string.digits)
LONGEST = 8
"""Letters of the longest word."""
BITS = 6
"""Bits of a letter or a space: a word behind a space is one number of 54."""
NEVER = 1 << 62
MIXED = 6.0
"""How much less likely, in nats, a word is that mixes small letters, capitals or digits."""


def _table(form: Callable[[str], str]) -> Tensor:
    """(1 + alphabet,) the number of each letter's form, 0 where it has none."""
    return torch.tensor([0, *(ALPHABET.find(form(letter)) + 1 for letter in ALPHABET)])


LIKE = dict(zip(f"{string.digits}OoIliZzSsBg", f"{string.digits}00111225589", strict=True))
"""Which digit a letter looks like."""
SMALL, CAPITAL, DIGIT = _table(str.lower), _table(str.upper), _table(lambda c: LIKE.get(c, " "))


def _convolution(channels: int, width: int, stride: tuple[int, int] = (1, 1)) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


class Along(nn.Module):
    """A residual convolution along the columns.

    Args:
        width: Width of a column.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, 5, padding=2, bias=False)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, columns: Tensor) -> Tensor:
        """(B, width, w) of the same."""
        return columns + cast(Tensor, self.norm(self.convolution(columns))).relu()


class Reader(nn.Module):
    """Which letter stands in each column of a feature map, and whether there is text at all.

    Args:
        channels: Channels C of the map.
        width: Width of the columns; a multiple of the heads.
        heads: Attention heads over the rows of a column.

    Example:
        >>> letters, text = Reader(channels=6, width=8).eval()(torch.zeros(2, 6, 9, 9))
        >>> letters.shape, text.shape
        (torch.Size([2, 9, 63]), torch.Size([2]))
    """

    def __init__(self, channels: int, width: int, heads: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"reader is {width}: expected a multiple of {heads}, its heads")
        self.heads = heads
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.body = nn.Sequential(
            _convolution(channels, 3 * width // 4, (2, 1)),
            _convolution(3 * width // 4, width, (2, 1)),
            _convolution(width, width),
        )
        self.rows = nn.Conv2d(width, heads, 1)
        self.along = nn.Sequential(Along(width), Along(width))
        self.letters = nn.Linear(width, 1 + len(ALPHABET))
        self.text = nn.Linear(width, 1)

    def forward(self, fine: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of letters (B, w, 1 + alphabet) and of text (B,) in maps (B, C, h, w)."""
        columns = self.columns(fine)
        text: Tensor = self.text(columns.amax(dim=-1)).squeeze(-1)
        return self.letters(columns.transpose(1, 2)), text

    def columns(self, fine: Tensor) -> Tensor:
        """What is seen in each column (B, width, w) of maps (B, C, h, w)."""
        seen = self.body(self.norm(fine))
        weights = self.rows(seen).softmax(dim=-2)[:, :, None]  # (B, heads, 1, h, w)
        found = (weights * seen.unflatten(1, (self.heads, -1))).sum(dim=-2).flatten(1, 2)
        columns: Tensor = self.along(found)
        return columns

    @torch.no_grad()
    def read(self, fine: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest letters (B, L) of maps (B, C, h, w), and how likely (B,) there is text.

        Behind a word's last letter stand zeros.
        """
        logits, text = self(fine)
        return likeliest(logits), text.sigmoid()


def likeliest(logits: Tensor) -> Tensor:
    """The words (B, L) that columns (B, w, 1 + alphabet) say: each run of one letter is one.

    A small o, a capital O and a zero look alike, and what stands beside them tells which it is. So
    words in small letters, with a capital first, or in capitals are held for likelier than others,
    and those without digits, or of digits alone, for likelier than those that have both.

    Example:
        >>> columns = torch.tensor([[0, 12, 12, 0, 12, 11]])
        >>> likeliest(9.0 * functional.one_hot(columns, 63))
        tensor([[12, 12, 11,  0,  0,  0,  0,  0]])
    """
    shares = logits.float().log_softmax(dim=-1)
    best = shares.argmax(dim=-1)
    kept = (best != 0) & (best != functional.pad(best, (1, 0))[:, :-1])
    order = kept.logical_not().long().argsort(dim=-1, stable=True)  # those kept come first
    said = (best * kept).gather(-1, order)[:, :LONGEST]
    shares = shares.take_along_dim(order[:, :LONGEST, None], dim=1)
    small, capital, digit = (table.to(said.device)[said] for table in (SMALL, CAPITAL, DIGIT))
    titled = torch.cat([capital[:, :1], small[:, 1:]], dim=1)
    words = torch.stack([said, small, titled, capital, digit], dim=-1)  # (B, L, 5)
    each = shares.gather(-1, words).masked_fill(words == 0, float("-inf"))
    each = each.masked_fill(said[..., None] == 0, 0.0)
    digits = ((said > 0) & (said <= DIGITS)).any(dim=1) & (said > DIGITS).any(dim=1)
    scores = each.sum(dim=1)
    scores[:, :4] -= MIXED * digits[:, None]
    scores[:, 0] -= MIXED
    letters = words.take_along_dim(scores.argmax(dim=-1)[:, None, None], dim=-1).squeeze(-1)
    return functional.pad(letters, (0, LONGEST))[:, :LONGEST]


def as_text(letters: Tensor) -> list[str]:
    """The words that letters (B, L) are.

    Example:
        >>> as_text(torch.tensor([[12, 1, 37, 0]]))
        ['B0a']
    """
    return ["".join(ALPHABET[n - 1] for n in row if n) for row in letters.tolist()]


class Pieces(nn.Module):
    """A word in the word pieces of a tokenizer of byte pairs, as that tokenizer splits it.

    Neighbours are joined, those first whose piece was learned first, which its number tells
    (Sennrich et al. 2016, arXiv 1508.07909; so does tiktoken). A word stands behind a space.

    Args:
        count: Word pieces V of the language model.

    Attributes:
        spelled: (V,) int64, what each word piece spells as one number; 0 where it is in no word.
    """

    spelled: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("spelled", torch.zeros(count, dtype=torch.long))
        self._known: dict[str, int] | None = None

    def set(self, pieces: Mapping[str, int]) -> None:
        """Says which word piece each string is; what cannot be in a word is left out.

        Args:
            pieces: What each word piece spells, a leading space included, to its number.

        Raises:
            ConfigError: If a letter has no piece of its own, or a piece has no row.
        """
        known = {text: token for text, token in pieces.items() if _in_a_word(text)}
        lacking = [letter for letter in f" {ALPHABET}" if letter not in known]
        if lacking or max(known.values()) >= len(self.spelled):
            raise ConfigError(
                f"pieces: got {len(known)} that can be in a word, without {lacking!r}: expected "
                f"each letter, each digit and the space, numbered below {len(self.spelled)}"
            )
        self.spelled.fill_(0)
        for text, token in known.items():
            self.spelled[token] = _number(text)
        self._known = known

    def split(self, word: str) -> list[int]:
        """The word pieces of a word, with the space in front of it; none before `set`."""
        known = self._known = self._known or self._read()
        if not known:
            return []
        parts = [" ", *word]
        while len(parts) > 1:
            ranks = [known.get(left + right, NEVER) for left, right in pairwise(parts)]
            first = min(range(len(ranks)), key=ranks.__getitem__)
            if ranks[first] == NEVER:
                break
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        return [known[part] for part in parts]

    def _read(self) -> dict[str, int]:
        numbers = enumerate(self.spelled.tolist())
        return {_text(number): token for token, number in numbers if number}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._known = None
        super()._load_from_state_dict(*args, **kwargs)


def _in_a_word(text: str) -> bool:
    letters = text.removeprefix(" ")
    return len(text) > 0 and len(letters) <= LONGEST and all(one in ALPHABET for one in letters)


def _number(text: str) -> int:
    """Letters as one number, six bits each, the last one lowest; a space is 63."""
    number = 0
    for letter in text:
        number = number << BITS | f"{ALPHABET} ".index(letter) + 1
    return number


def _text(number: int) -> str:
    """The letters of a number."""
    text = ""
    while number:
        text = f"{ALPHABET} "[(number & (1 << BITS) - 1) - 1] + text
        number >>= BITS
    return text
