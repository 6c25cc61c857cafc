"""TF-IDF of word and character n-grams: text neighbours without a text encoder."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from isthmus.errors import InputError

WORD = re.compile(r"\w+")


class TfIdf:
    """A text encoder: TF-IDF over words, pairs of words, and 3 to 5 characters within words.

    The weight of an n-gram in a text is (1 + ln tf) (ln((1 + n) / (1 + df)) + 1), with n texts in
    the corpus and df of them with the n-gram. Words and characters each make a vector of length
    1, and stand side by side. Characters find inflected and misspelt words, and texts in scripts
    that do not part words. N-grams that the corpus does not have count for nothing.

    A corpus with more n-grams than `width` has them folded into that many columns by a signed
    hash, which leaves inner products right on average (Weinberger et al. 2009).

    Args:
        corpus: The texts that n-grams are counted in: the support set's questions.
        width: Most columns of words, and of characters; a text's vector has 4 bytes for each.

    Raises:
        InputError: If the corpus is empty.

    Example:
        >>> a, b, c = TfIdf(["a red car", "red cars", "why?"])(["a red car", "red cars", "why?"])
        >>> bool(a @ b > a @ c)
        True
    """

    def __init__(self, corpus: Sequence[str], width: int = 4096) -> None:
        if not corpus:
            raise InputError("TF-IDF needs texts to count n-grams in: the corpus is empty")
        self.width = width
        self._idf = tuple(_inverse_frequencies(corpus, grams) for grams in (words, characters))
        self._columns = tuple({g: i for i, g in enumerate(sorted(idf))} for idf in self._idf)

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (n, D) of length 1; of zeros where a text has no known n-gram."""
        halves = []
        for grams, idf, columns in zip((words, characters), self._idf, self._columns, strict=True):
            folded = len(columns) > self.width
            half = np.zeros((len(texts), self.width if folded else len(columns)), np.float32)
            for row, text in zip(half, texts, strict=True):
                for gram, count in Counter(grams(text)).items():
                    if gram not in idf:
                        continue
                    weight = (1 + np.log(count)) * idf[gram]
                    if folded:
                        code = zlib.crc32(gram.encode())
                        row[(code >> 1) % self.width] += weight if code & 1 else -weight
                    else:
                        row[columns[gram]] = weight
            halves.append(_unit(half))
        return _unit(np.concatenate(halves, axis=1))


def words(text: str) -> Iterator[str]:
    """Words and pairs of neighbouring words, in lower case.

    Example:
        >>> list(words("A red car"))
        ['a', 'red', 'car', 'a red', 'red car']
    """
    found = WORD.findall(text.casefold())
    yield from found
    for pair in pairwise(found):
        yield " ".join(pair)


def characters(text: str) -> Iterator[str]:
    """3 to 5 characters in a row within each word, with a space before and after it.

    Example:
        >>> list(characters("ab"))
        [' ab', 'ab ', ' ab ']
    """
    for word in WORD.findall(text.casefold()):
        padded = f" {word} "
        for size in (3, 4, 5):
            for start in range(len(padded) - size + 1):
                yield padded[start : start + size]


def _inverse_frequencies(
    corpus: Sequence[str], grams: Callable[[str], Iterator[str]]
) -> dict[str, float]:
    texts = Counter(gram for text in corpus for gram in set(grams(text)))
    n = len(corpus)
    return {gram: float(np.log((1 + n) / (1 + df)) + 1) for gram, df in texts.items()}


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32)
