"""The items that have the tokens of filters asked for again and again, with their sketches.

To find them in the table means to visit as many pages as there are items, which takes longer than
all the rest of such a search. What is remembered is what the database sees anyway, and is used only
as long as no item of the index has changed: the number of changes is read again by the statement
that reads the candidates.
"""

import time
from typing import TypeAlias
from uuid import UUID

import numpy as np
from cachetools import TTLCache

from app.domain import ITEM_KEY_BYTES, Index
from app.engine import costs
from app.engine.sketches import statements
from app.engine.sketches.estimates import Estimate
from app.engine.sketches.statements import Clauses, Everything, Places, Table
from app.store import indexes
from app.store.pg.adapters import PLACE_BYTES, Tokens
from app.store.pg.pool import Pool

_WORD_BYTES = 8

_Name: TypeAlias = tuple[UUID, int, tuple[Tokens, ...]]


class TokenSet:
    """The items that have some tokens. It does not change."""

    def __init__(self, items: Everything) -> None:
        self.n_changes = items.n_changes
        self._item_keys = np.frombuffer(items.item_keys, f"V{ITEM_KEY_BYTES}")
        self._places = np.frombuffer(items.places, f"V{PLACE_BYTES}")
        padding = -items.sketches.shape[1] % _WORD_BYTES
        self._sketches = np.pad(items.sketches, ((0, 0), (0, padding))).view(np.uint64)

    @property
    def n_bytes(self) -> int:
        """How much memory it takes."""
        return self._sketches.nbytes + self._item_keys.nbytes + self._places.nbytes

    def nearest(self, sketch: bytes, limit: int) -> Places:
        """Return the `limit` items whose sketches differ from `sketch` in the fewest bits."""
        width = self._sketches.shape[1] * _WORD_BYTES
        query = np.frombuffer(sketch.ljust(width, b"\0"), np.uint64)
        hammings = np.bitwise_count(self._sketches ^ query).sum(axis=1, dtype=np.int32)
        rows = np.arange(len(hammings))
        if limit < len(hammings):
            rows = np.argpartition(hammings, limit - 1)[:limit]
        rows = rows[np.argsort(hammings[rows], kind="stable")]
        return Places(self._item_keys[rows].tolist(), self._places[rows].tolist(), hammings[rows])


class TokenSets:
    """The sets of what is asked for more than once."""

    def __init__(self) -> None:
        self._sets: TTLCache[_Name, TokenSet] = TTLCache(
            costs.MAX_SETS_BYTES, costs.SET_TTL_S, getsizeof=lambda one: one.n_bytes
        )
        # When a set may be made of what was asked for before.
        self._not_before: TTLCache[_Name, float] = TTLCache(
            costs.MAX_FILTERS_ASKED, costs.SET_TTL_S
        )

    async def get(
        self, connections: Pool, table: Table, clauses: Clauses, estimate: Estimate
    ) -> TokenSet | None:
        """Return the set for `clauses`, made now if they were asked for before and few have them.

        Raises `StaleIndex`.
        """
        name = _name(table.index, clauses)
        known, not_before = self._sets.get(name), self._not_before.get(name)
        if not_before is None:
            self._not_before[name] = 0.0
        if known is not None or not_before is None or time.monotonic() < not_before:
            return known
        most = _most(table)
        if not clauses or estimate.n_items * estimate.share > most:
            return None
        found = await _everything(connections, table, clauses, most)
        if found is None:
            self._rest(name, costs.SET_TTL_S)
            return None
        known = self._sets[name] = TokenSet(found)
        return known

    def forget(self, index: Index, clauses: Clauses) -> None:
        """Forget the set for `clauses`, as items have changed."""
        name = _name(index, clauses)
        self._sets.pop(name, None)
        self._rest(name, costs.SET_REST_S)

    def _rest(self, name: _Name, duration_s: float) -> None:
        self._not_before[name] = time.monotonic() + duration_s


def _name(index: Index, clauses: Clauses) -> _Name:
    return index.id, index.revision, tuple(clauses)


def _most(table: Table) -> int:
    """Return how many items a set may have."""
    item_bytes = table.sketch_bits // 8 + ITEM_KEY_BYTES + PLACE_BYTES
    return min(costs.MAX_SET_ITEMS, costs.MAX_SET_BYTES // item_bytes)


async def _everything(
    connections: Pool, table: Table, clauses: Clauses, most: int
) -> Everything | None:
    """Return all items that meet the clauses; None when there are more than `most`, or none."""
    async with indexes.trip(connections, table.index) as trip:
        trip.execute(statements.GIN_SETTINGS)
        # Before the items: a change in between makes the number outdated, never the items.
        changes = trip.execute(statements.N_CHANGES, (table.index.id,))
        found = trip.execute(
            statements.everything(table, clauses, most), (table.index.id, *clauses)
        )
    return statements.all_of(found.one(), changes.one()[0], most)
