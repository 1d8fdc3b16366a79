"""An exact search: every item is read once, for all queries together, a slice at a time.

What is held in memory is a slice of the items and the winners so far, whatever the size of the
index. The read is one statement, so it sees the items as of one moment.
"""

from collections.abc import Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import NamedTuple

import numpy as np

from app import store
from app.domain import Candidates, Vector
from app.engine import costs, distance
from app.engine.kind import Wanted
from app.engine.opening import chunk_items, open_rows
from app.engine.rank import Winner
from app.engine.threads import computed
from app.observe.stages import timed
from app.store.pg.pool import Pool


class Near(NamedTuple):
    """An item that is among the nearest so far; its id stays sealed until it has won."""

    distance: float
    item_key: bytes
    sealed_id: bytes
    vector: Vector
    sealed_metadata: bytes | None


class ExactSearch:
    """The nearest of all items, or of all that `kept` leaves of candidates."""

    def __init__(
        self,
        wanted: Wanted,
        connections: Pool,
        kept: Callable[[Candidates], Candidates] | None = None,
    ) -> None:
        self._wanted, self._connections, self._kept = wanted, connections, kept

    async def nearest(self, positions: Sequence[int]) -> list[list[Winner]]:
        """Return for each of the queries at `positions` its nearest, nearest first."""
        keyed, shape, _, _ = self._wanted
        near: dict[int, list[Near]] = {position: [] for position in positions}
        at_a_time = chunk_items(shape.dimension)
        rows = store.items.everything(self._connections, keyed.index, at_a_time)
        # If a slice cannot be opened, the cursor must be closed before its connection goes back.
        async with aclosing(rows) as slices:
            async for found in slices:
                n_numbers = len(found.item_keys) * (1 + len(positions))
                cost_us = costs.opening_us(n_numbers, shape.dimension)
                await computed(cost_us, partial(self._add, near, found))
        return [self._opened(near[position]) for position in positions]

    @timed("rerank")
    def _add(self, near: dict[int, list[Near]], found: Candidates) -> None:
        """Let the items of a slice join the nearest so far."""
        keyed, shape, queries, ask = self._wanted
        if self._kept is not None:
            found = self._kept(found)
        vectors = open_rows(keyed, shape, found.item_keys, found.sealed_vectors)
        metadata = found.sealed_metadata or [b""] * len(found.item_keys)
        for position, best in near.items():
            distances = distance.unbounded(keyed.index.metric, queries[position], vectors)
            order = np.argsort(distances, kind="stable")[: ask.top_k]
            if len(best) == ask.top_k:
                order = order[distances[order] < best[-1].distance]
            best += [
                Near(
                    float(distances[row]),
                    found.item_keys[row],
                    found.sealed_ids[row],
                    vectors[row].copy(),
                    metadata[row] or None,
                )
                for row in order.tolist()
            ]
            best.sort(key=lambda one: one.distance)
            del best[ask.top_k :]

    def _opened(self, near: Sequence[Near]) -> list[Winner]:
        sealer = self._wanted.keyed.keys.ids
        ids = sealer.open_all((one.item_key for one in near), (one.sealed_id for one in near))
        distances = distance.bounded(np.array([one.distance for one in near])).tolist()
        return [
            Winner(one.item_key, item_id.decode(), far, one.vector, one.sealed_metadata)
            for one, item_id, far in zip(near, ids, distances, strict=True)
        ]
