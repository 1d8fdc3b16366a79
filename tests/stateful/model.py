"""The service as a dictionary: what it must answer to requests that follow each other."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests import naive_filters

Metadata = dict[str, Any]
Vector = tuple[float, ...]

# So few items are searched without lists, whatever a training is asked for.
MIN_TRAINED = 1_000


@dataclass(frozen=True)
class Item:
    """What was stored last under an id."""

    vector: Vector
    contents: str = ""
    metadata: Metadata = field(default_factory=dict)


@dataclass
class Index:
    """An index, and the key that opens it."""

    key: str
    metric: str
    dimension: int | None
    items: dict[str, Item] = field(default_factory=dict)
    n_lists: int = 1

    def describe(self, name: str) -> dict[str, Any]:
        """The answer to describe."""
        return {
            "index_name": name,
            "is_trained": self.n_lists > 1,
            "dimension": self.dimension or 0,
            "metric": self.metric,
            "n_lists": self.n_lists,
        }

    def upsert(self, items: list[tuple[str, Item]]) -> None:
        """Store items in the order given; the first batch fixes the dimension."""
        self.dimension = len(items[0][1].vector)
        self.items.update(items)

    def delete(self, ids: list[str]) -> None:
        """Delete items; unknown ids are fine."""
        for name in ids:
            self.items.pop(name, None)

    def train(self, n_lists: int) -> None:
        """Make lists, if there are enough items to need them."""
        if len(self.items) >= MIN_TRAINED:
            self.n_lists = n_lists

    def matching(self, filters: Metadata | None) -> dict[str, Item]:
        """The items that match; None matches all."""
        return {
            name: item
            for name, item in self.items.items()
            if not filters or naive_filters.matches(filters, item.metadata)
        }

    def distances(self, query: Vector, filters: Metadata | None) -> dict[str, float]:
        """The distance of each item that matches."""
        matching = self.matching(filters)
        if not matching:
            return {}
        found = _distances(self.metric, query, [item.vector for item in matching.values()])
        return dict(zip(matching, found, strict=True))


def _distances(metric: str, query: Vector, vectors: list[Vector]) -> list[float]:
    asked, stored = np.array(query, np.float64), np.array(vectors, np.float64)
    if metric == "cosine":
        norms = np.linalg.norm(stored, axis=1) * np.linalg.norm(asked)
        similarity = np.divide(stored @ asked, norms, out=np.zeros(len(stored)), where=norms > 0)
        return [float(distance) for distance in 1 - similarity]
    squared = ((stored - asked) ** 2).sum(axis=1)
    return [
        float(distance) for distance in (np.sqrt(squared) if metric == "euclidean" else squared)
    ]


def check_nearest(found: list[dict[str, Any]], distances: dict[str, float], top_k: int) -> None:
    """Assert that `found` are the nearest of `distances`, nearest first, ties in any order."""
    names = [match["id"] for match in found]
    assert len(set(names)) == len(names), "an item was found twice"
    assert len(names) == min(top_k, len(distances)), (
        f"{len(names)} items instead of {min(top_k, len(distances))}"
    )
    wanted = sorted(distances.values())[: len(names)]
    for match, nearest in zip(found, wanted, strict=True):
        assert _is_close(match["distance"], distances[match["id"]]), (
            f"not at this distance: {match}"
        )
        assert _is_close(match["distance"], nearest), (
            f"not the nearest: {match}, there is one at {nearest}"
        )


def _is_close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-6)


def is_same_item(found: dict[str, Any], item: Item) -> bool:
    """Whether an answer of get has the item, with JSON's idea of what is the same."""
    return (
        tuple(found["vector"]) == item.vector
        and found["contents"] == item.contents
        and naive_filters.same(found["metadata"], item.metadata)
    )
