"""The items that have the tokens of filters asked for again and again, with their sketches, in memory.

To find them in the table means to visit as many pages as there are items, which takes longer than
all the rest of such a search. What is remembered is what the database sees anyway, and is used only
as long as no item of the index has changed: the number of changes is read again by the statement
that reads the candidates.
"""

import time
from collections.abc import Sequence
from typing import TypeAlias
from uuid import UUID

import numpy as np
from cachetools import TTLCache

from app.domain import ITEM_KEY_BYTES, Index
from app.engine.sketches import token_scan
from app.engine.sketches.filtered_scan import Estimate
from app.engine.sketches.token_scan import Everything, Further
from app.store.pg.adapters import PLACE_BYTES, Tokens
from app.store.pg.connection import Connection

# Where more items have the tokens, the ivfflat index leads to enough of them soon enough.
MAX_ITEMS = 20_000
# Of all sets together, and of one.
_MAX_BYTES = 64 * 1024 * 1024
_MAX_SET_BYTES = _MAX_BYTES // 8
_TTL_S = 60
_MAX_ASKED = 10_000
# Where items change all the time, a set is made in vain: so rarely.
_REST_S = 5
_WORD_BYTES = 8

_Name: TypeAlias = tuple[UUID, int, tuple[Tokens, ...]]


class TokenSet:
    """The items that have some tokens. It does not change."""

    def __init__(self, items: Everything) -> None:
        self.n_changes = items.n_changes
        self._item_keys, self._places = items.item_keys, items.places
        padding = -items.sketches.shape[1] % _WORD_BYTES
        self._sketches = np.pad(items.sketches, ((0, 0), (0, padding))).view(np.uint64)

    @property
    def n_bytes(self) -> int:
        """How much memory it takes."""
        return self._sketches.nbytes + len(self._item_keys) + len(self._places)

    def nearest(self, sketch: bytes, limit: int) -> list[Further]:
        """Return the `limit` items whose sketches differ from `sketch` in the fewest bits, nearest first."""
        width = self._sketches.shape[1] * _WORD_BYTES
        query = np.frombuffer(sketch.ljust(width, b"\0"), np.uint64)
        distances = np.bitwise_count(self._sketches ^ query).sum(axis=1, dtype=np.int32)
        rows = (
            np.argpartition(distances, limit - 1)[:limit]
            if limit < len(distances)
            else np.arange(len(distances))
        )
        rows = rows[np.argsort(distances[rows], kind="stable")]
        return [self._item(row, int(distances[row])) for row in rows.tolist()]

    def _item(self, row: int, distance: int) -> Further:
        item_key, place = row * ITEM_KEY_BYTES, row * PLACE_BYTES
        return Further(
            self._item_keys[item_key : item_key + ITEM_KEY_BYTES],
            self._places[place : place + PLACE_BYTES],
            distance,
        )


class TokenSets:
    """The sets of what is asked for more than once."""

    def __init__(self) -> None:
        self._sets: TTLCache[_Name, TokenSet] = TTLCache(
            _MAX_BYTES, _TTL_S, getsizeof=lambda one: one.n_bytes
        )
        # When a set may be made of what was asked for before.
        self._not_before: TTLCache[_Name, float] = TTLCache(_MAX_ASKED, _TTL_S)

    async def get(
        self, raw: Connection, index: Index, clauses: Sequence[Tokens], estimate: Estimate
    ) -> TokenSet | None:
        """Return the set for `clauses`, made now if they were asked for before and few items have them.

        Raises `StaleIndex`.
        """
        name = _name(index, clauses)
        known = self._sets.get(name)
        not_before = self._not_before.get(name)
        if not_before is None:
            self._not_before[name] = 0.0
        if known is not None or not_before is None or time.monotonic() < not_before:
            return known
        most = min(
            MAX_ITEMS,
            _MAX_SET_BYTES // ((index.sketch_bits or 0) // 8 + ITEM_KEY_BYTES + PLACE_BYTES),
        )
        if not clauses or estimate.n_items * estimate.share > most:
            return None
        found = await token_scan.everything(raw, index, clauses, most=most)
        if found is None:
            self._rest(name, _TTL_S)
            return None
        known = TokenSet(found)
        self._sets[name] = known
        return known

    def forget(self, index: Index, clauses: Sequence[Tokens]) -> None:
        """Forget the set for `clauses`, as items have changed."""
        name = _name(index, clauses)
        self._sets.pop(name, None)
        self._rest(name, _REST_S)

    def _rest(self, name: _Name, duration_s: float) -> None:
        self._not_before[name] = time.monotonic() + duration_s


def _name(index: Index, clauses: Sequence[Tokens]) -> _Name:
    return index.id, index.revision, tuple(clauses)
