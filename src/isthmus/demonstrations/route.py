"""A few sets of shots for many queries, so that retrieval and shared prefixes go together.

Shots retrieved for each query make a prefix of each query's own, which is computed for it alone.
Here similar queries share one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from isthmus.demonstrations.diversity import kmeans, squared_distances
from isthmus.demonstrations.embed import embedded, unit_rows
from isthmus.demonstrations.retrieve import Nearest, ranked
from isthmus.prompts.prompt import Example


class Routed:
    """A few fixed sets of shots: queries are clustered, and each cluster has one set.

    All queries of a cluster then share their prefix, which an engine computes once. A set is made
    of the demonstrations nearest to the cluster's centre, less those that would give away any of
    the cluster's queries. A query that was not among those clustered goes to the nearest centre;
    if a shot of its set would give it away, that shot alone is replaced.

    Args:
        near: Neighbours to choose from, such as `rices(...)` or `text_neighbours(...)`.
        queries: What will be asked.
        sets: How many sets.
        seed: Seed of the clusters.
        query_ids: The queries' ids, if the support set has ids.

    Attributes:
        labels: (queries,) the set of each query: ask in this order to keep few prefixes alive.

    Raises:
        ConfigError: If there are fewer different queries than sets.

    Example:
        >>> from isthmus.demonstrations.retrieve import text_neighbours
        >>> near = text_neighbours([Example((), "How many cats?", "2"), Example((), "Why?", "")])
        >>> queries = [Example((), "How many dogs?"), Example((), "Why not?")]
        >>> [Routed(near, queries, sets=2).select(q, 1)[0].answer for q in queries]
        ['2', '']
    """

    def __init__(
        self,
        near: Nearest,
        queries: Sequence[Example],
        sets: int,
        *,
        seed: int = 0,
        query_ids: Sequence[Any] = (),
    ) -> None:
        self.near = near
        self.labels, self._centres = kmeans(embedded(near.embed, queries), sets, seed)
        self._rankings: list[list[int]] = []
        for c, centre in enumerate(self._centres):
            own = np.flatnonzero(self.labels == c).tolist()
            ids = [query_ids[i] for i in own] if query_ids else []
            ranking = ranked(near.vectors @ unit_rows(centre))
            members = [queries[i] for i in own]
            self._rankings.append(near.support.allowed(ranking, members, len(ranking), ids))

    def select(self, query: Example, k: int, query_id: Any = None) -> list[Example]:
        """The first k of the query's set, the nearest to the cluster's centre first."""
        vector = embedded(self.near.embed, [query]).astype(float)
        cluster = int(squared_distances(vector, self._centres)[0].argmin())
        return self.near.support.take(self._rankings[cluster], query, k, query_id)
