"""From a support set to shots: fixed, random, balanced, retrieved, or diverse.

A selector returns the shots for a query best first; `order.arrange` then puts them in place.
Retrieval for each query gives each its own prefix, which is then computed for it alone; `Fixed`,
`RandomShots(per_query=False)` and `route.Routed` keep prefixes shared.

Letters: n demonstrations, k shots, D the width of a vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from isthmus.demonstrations.diversity import dpp, dpp_kernel, mmr
from isthmus.demonstrations.embed import (
    Embedder,
    ImageEmbedder,
    Pooling,
    TextEncoder,
    embedded,
    on_questions,
)
from isthmus.demonstrations.support import Support, identity
from isthmus.demonstrations.tfidf import TfIdf
from isthmus.errors import ConfigError, InputError, suggestion
from isthmus.model.backbones.vision import VisionEncoder
from isthmus.prompts.prompt import Example

Floats = NDArray[np.float32]
ALIKE = 0.99
"""Cosine of two encodings of one image, at least: half precision and the size of a batch move
it by less than 0.001."""


class Selector(Protocol):
    """Anything that chooses shots for a query."""

    def select(self, query: Example, k: int, query_id: Any = None) -> list[Example]:
        """Shots for a query, best first, and never one that gives its answer away.

        Args:
            query: What will be asked.
            k: How many; a larger k begins with the shots of a smaller one (as long as k is no
                larger than the pool, where there is one).
            query_id: What names the query in its data set, if the support set has ids.

        Raises:
            InputError: If k is negative, or the support set has too few that may be shown.
        """
        ...


def as_support(support: Support | Sequence[Example]) -> Support:
    """A support set of plain examples, or the support set given."""
    return support if isinstance(support, Support) else Support(support)


def ranked(similarity: Floats) -> NDArray[np.int64]:
    """Numbers (n,) by similarity (n,), the largest first, the first of equals first."""
    # A matrix product rounds the same vector differently at another row
    return np.argsort(-similarity.round(6), kind="stable")


# --- Without looking at the query ----------------------------------------------------------------


class Fixed:
    """The support set's first demonstrations, in its own order.

    Args:
        support: The support set.

    Example:
        >>> Fixed([Example((), "2 + 2?", "4")]).select(Example((), "1 + 1?"), 1)[0].answer
        '4'
    """

    def __init__(self, support: Support | Sequence[Example]) -> None:
        self.support = as_support(support)

    def select(self, query: Example, k: int, query_id: Any = None) -> list[Example]:
        """The first k."""
        return self.support.take(range(len(self.support)), query, k, query_id)


class RandomShots:
    """Demonstrations drawn without replacement.

    What is drawn depends on the seed and on the query's question and pixels alone: neither on the
    other queries nor on their order.

    Args:
        support: The support set.
        seed: Seed of the draws.
        per_query: Whether each query has its own draw; if not, all share one, and its prefix.

    Example:
        >>> shots = RandomShots([Example((), f"{i} + 1?", f"{i + 1}") for i in range(9)], seed=3)
        >>> shots.select(Example((), "Why?"), 4) == shots.select(Example((), "Why?"), 4)
        True
    """

    def __init__(
        self, support: Support | Sequence[Example], seed: int = 0, *, per_query: bool = True
    ) -> None:
        self.support = as_support(support)
        self.seed = seed
        self.per_query = per_query

    def select(self, query: Example, k: int, query_id: Any = None) -> list[Example]:
        """The first k of the query's permutation."""
        random = generator(self.seed, identity(query) if self.per_query else "")
        return self.support.take(random.permutation(len(self.support)), query, k, query_id)


class Balanced:
    """Demonstrations drawn in rounds, one of each class to a round, classes in random order.

    Every class has k / classes of the shots, give or take one, until a class has no more; then
    the others go on.

    Args:
        support: The support set.
        seed: Seed of the draws, as for `RandomShots`.
        per_query: Whether each query has its own draw.
        label: What a demonstration's class is; its answer by default.

    Raises:
        InputError: If a demonstration has no class.

    Example:
        >>> shots = Balanced([Example((), f"{i}?", "AAAAB"[i]) for i in range(5)])
        >>> sorted(shot.answer for shot in shots.select(Example((), "Why?"), 2))
        ['A', 'B']
    """

    def __init__(
        self,
        support: Support | Sequence[Example],
        seed: int = 0,
        *,
        per_query: bool = True,
        label: Callable[[Example], Any] = lambda example: example.answer,
    ) -> None:
        self.support = as_support(support)
        self.seed = seed
        self.per_query = per_query
        self._classes: dict[Any, list[int]] = {}
        for number, example in enumerate(self.support.examples):
            name = label(example)
            if name is None:
                raise InputError(
                    f"demonstration {number} has no answer: classes cannot be balanced"
                )
            self._classes.setdefault(name, []).append(number)

    def select(self, query: Example, k: int, query_id: Any = None) -> list[Example]:
        """The first k of the query's rounds."""
        random = generator(self.seed, identity(query) if self.per_query else "")
        members = [random.permutation(numbers).tolist() for numbers in self._classes.values()]
        # The guard comes before the rounds: a demonstration that it takes away is replaced by
        # one of the same class
        members = [
            self.support.allowed(numbers, [query], len(numbers), [query_id]) for numbers in members
        ]
        ranking: list[int] = []
        for turn in range(max(map(len, members))):
            for c in random.permutation(len(members)):
                ranking += members[c][turn : turn + 1]
        return self.support.pick(ranking, k)


def generator(seed: int, key: str) -> np.random.Generator:
    """A random generator of a seed and a text, the same on every machine."""
    digest = hashlib.sha256(f"{seed} {key}".encode(errors="backslashreplace")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


# --- Nearest neighbours --------------------------------------------------------------------------


class Nearest:
    """The demonstrations most similar to the query, by the cosine of their vectors.

    With images this is RICES (Yang et al. 2022; Flamingo, Alayrac et al. 2022, appendix A),
    see `rices`; with questions kNN prompting (KATE, Liu et al. 2021), see `text_neighbours`.

    Args:
        support: The support set, embedded now.
        embed: Examples to vectors.

    Attributes:
        vectors: (n, D) of the support set, of length 1.
    """

    def __init__(self, support: Support | Sequence[Example], embed: Embedder) -> None:
        self.support = as_support(support)
        self.embed = embed
        self.vectors = embedded(embed, self.support.examples)

    def similarity(self, query: Example) -> Floats:
        """(n,) cosines of the query with each demonstration."""
        found: Floats = self.vectors @ embedded(self.embed, [query])[0]
        return found

    def select(self, query: Example, k: int, query_id: Any = None) -> list[Example]:
        """The k most similar, the most similar first."""
        found = self.similarity(query)
        return self.support.take(ranked(found), query, k, query_id, self.alike(found))

    def alike(self, similarity: Floats) -> NDArray[np.bool_] | None:
        """(n,) which demonstrations can show the query's very images, for the leak guard.

        The same pixels have nearly the same features, so all others need not be opened to see
        that they are other images. None where vectors are not known to be of images.
        """
        return similarity > ALIKE if isinstance(self.embed, ImageEmbedder) else None


def rices(
    support: Support | Sequence[Example],
    encoder: VisionEncoder,
    folder: str | Path | None = None,
    *,
    pooling: Pooling = "mean",
) -> Nearest:
    """Retrieval of demonstrations with similar images, each image encoded once.

    Args:
        support: The support set.
        encoder: The frozen encoder that compares; `model.vision`.
        folder: Where images' vectors are kept for later runs; None keeps them in memory.
        pooling: See `ImageEmbedder`.

    Example:
        >>> from PIL import Image
        >>> import isthmus as im
        >>> red, blue = (Image.new("RGB", (8, 8), c) for c in ("red", "blue"))
        >>> shots = rices([Example(red, "", "red"), Example(blue, "", "blue")],
        ...               im.load_vision("tiny-vit"))
        >>> shots.select(Example(Image.new("RGB", (8, 8), (250, 5, 5))), 1)[0].answer
        'red'
    """
    return Nearest(support, ImageEmbedder(encoder, folder, pooling=pooling))


def text_neighbours(
    support: Support | Sequence[Example], encode: TextEncoder | None = None
) -> Nearest:
    """Retrieval of demonstrations with similar questions.

    Args:
        support: The support set.
        encode: Texts to vectors, such as `SentenceTransformer(...).encode` or
            `MeanHiddenState(model.language)`; None takes TF-IDF over the support set.

    Example:
        >>> shots = text_neighbours([Example((), "How many cats?", "2"), Example((), "Why?", "")])
        >>> shots.select(Example((), "How many dogs?"), 1)[0].answer
        '2'
    """
    support = as_support(support)
    if encode is None:
        encode = TfIdf([example.question for example in support.examples])
    return Nearest(support, on_questions(encode))


class ImageThenText:
    """Neighbours by image, re-ranked by question: MMICES (Chen et al. 2023, arXiv 2311.18021).

    Args:
        support: The support set, embedded now.
        images: Embeds images.
        texts: Embeds questions; None takes TF-IDF over the support set.
        pool: How many neighbours by image the question chooses from, the paper's K.

    Example:
        >>> embed = on_questions(lambda texts: [[len(t), 1] for t in texts])
        >>> both = ImageThenText([Example((), q, q) for q in ("cat", "dog", "horses")], embed)
        >>> both.select(Example((), "dogs"), 1)[0].answer
        'dog'
    """

    def __init__(
        self,
        support: Support | Sequence[Example],
        images: Embedder,
        texts: Embedder | None = None,
        pool: int = 100,
    ) -> None:
        self.support = as_support(support)
        self.by_image = Nearest(self.support, images)
        if texts is None:
            texts = text_neighbours(self.support).embed
        self.by_text = Nearest(self.support, texts)
        self.pool = pool

    def select(self, query: Example, k: int, query_id: Any = None) -> list[Example]:
        """The k of the pool with the most similar questions, the most similar first."""
        found = self.by_image.similarity(query)
        near = self.support.allowed(
            ranked(found), [query], max(self.pool, k), [query_id], self.by_image.alike(found)
        )
        # Equal questions stay in the order of their images
        return self.support.pick([near[i] for i in ranked(self.by_text.similarity(query)[near])], k)


# --- Diverse -------------------------------------------------------------------------------------


class Diverse:
    """Neighbours of the query that are unlike each other.

    Args:
        near: Neighbours to choose from, such as `rices(...)` or `text_neighbours(...)`.
        method: "mmr" (Carbonell and Goldstein 1998) or "dpp" (Chen et al. 2018, greedy MAP).
        balance: For MMR, relevance against diversity, 1 being relevance alone.
        scale: For the DPP, how much relevance counts; the smaller, the more.
        pool: How many neighbours are looked at.

    Raises:
        ConfigError: If the method is unknown.

    Example:
        >>> near = text_neighbours([Example((), q, q) for q in ("a cat", "A cat!", "a dog")])
        >>> [shot.answer for shot in Diverse(near).select(Example((), "a cat"), 1)]
        ['A cat!']
    """

    def __init__(
        self,
        near: Nearest,
        method: Literal["mmr", "dpp"] = "mmr",
        *,
        balance: float = 0.5,
        scale: float = 0.1,
        pool: int = 100,
    ) -> None:
        if method not in ("mmr", "dpp"):
            raise ConfigError(f'unknown method "{method}": {suggestion(method, ("mmr", "dpp"))}')
        self.near = near
        self.method = method
        self.balance = balance
        self.scale = scale
        self.pool = pool

    def select(self, query: Example, k: int, query_id: Any = None) -> list[Example]:
        """The k chosen from the pool, in the order of choice."""
        near = self.near
        relevance = near.similarity(query)
        pool = near.support.allowed(
            ranked(relevance), [query], max(self.pool, k), [query_id], near.alike(relevance)
        )
        vectors, count = near.vectors[pool], min(k, len(pool))
        between = vectors @ vectors.T
        if self.method == "mmr":
            chosen = mmr(relevance[pool], between, max(count, 0), self.balance)
        else:
            kernel = dpp_kernel(relevance[pool], between, self.scale)
            chosen = dpp(kernel, max(count, 0))
        return near.support.pick([pool[i] for i in chosen], k)
