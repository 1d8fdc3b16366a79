"""Candidates opened and put in the order of their exact distances."""

from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.domain import Candidates, Match, Matrix, Metadata, Metric, Vector
from app.engine import distance
from app.engine.keyed import KeyedIndex, Shape
from app.engine.opening import open_rows
from app.observe.stages import timed


class Winner(NamedTuple):
    """A candidate that made it into the answer, opened."""

    item_key: bytes
    id: str
    distance: float
    vector: Vector
    # Where the candidates have come with it.
    sealed_metadata: bytes | None = None

    def match(self, include: frozenset[str], metadata: Metadata | None = None) -> Match:
        """Return the fields of `include`; its opened metadata is given if it is one of them."""
        return Match(
            self.id,
            self.distance if "distance" in include else None,
            metadata,
            self.vector if "vector" in include else None,
        )


def nearest(
    metric: Metric, query: Vector, candidates: Matrix, top_k: int
) -> tuple[NDArray[np.intp], Vector]:
    """Return the rows of `candidates` (n, d) nearest to `query` (d,) and their distances.

    Both answers have length min(`top_k`, n), nearest first; among equal distances the lower row
    comes first.
    """
    distances = distance.unbounded(metric, query, candidates)
    order = np.argsort(distances, kind="stable")[:top_k]
    return order, distance.bounded(distances[order])


@timed("rerank")
def best(
    keyed: KeyedIndex,
    shape: Shape,
    queries: Matrix,
    candidates: Sequence[Candidates],
    top_k: int,
) -> list[list[Winner]]:
    """Return for each query the `top_k` of its candidates with the smallest exact distances."""
    if len(queries) == 1:
        found = candidates[0]
        vectors = open_rows(keyed, shape, found.item_keys, found.sealed_vectors)
        return [_best_of(keyed, queries[0], found, vectors, top_k)]
    # Queries of a batch may share candidates: each is opened once.
    different = {
        item_key: sealed
        for found in candidates
        for item_key, sealed in zip(found.item_keys, found.sealed_vectors, strict=True)
    }
    vectors = open_rows(keyed, shape, list(different), list(different.values()))
    places = {item_key: place for place, item_key in enumerate(different)}
    return [
        _best_of(keyed, query, found, vectors[[places[key] for key in found.item_keys]], top_k)
        for query, found in zip(queries, candidates, strict=True)
    ]


@timed("rerank")
def merged(winners: Sequence[Winner], more: Sequence[Winner], top_k: int) -> list[Winner]:
    """Return the best of two lists. An item that was stored again meanwhile may be in both."""
    if not winners:
        return list(more)
    different = {winner.item_key: winner for winner in [*winners, *more]}
    return sorted(different.values(), key=lambda winner: winner.distance)[:top_k]


def _best_of(
    keyed: KeyedIndex, query: Vector, found: Candidates, vectors: Matrix, top_k: int
) -> list[Winner]:
    order, distances = nearest(keyed.index.metric, query, vectors, top_k)
    rows = order.tolist()
    item_keys = [found.item_keys[row] for row in rows]
    ids = keyed.keys.ids.open_all(item_keys, (found.sealed_ids[row] for row in rows))
    sealed = found.sealed_metadata
    metadata = [sealed[row] or None for row in rows] if sealed else repeat(None)
    return list(
        map(Winner, item_keys, map(bytes.decode, ids), distances.tolist(), vectors[order], metadata)
    )
