"""Which share of the items has the tokens that filters ask for: it decides which way is cheaper."""

from typing import Any, NamedTuple

from cachetools import TTLCache

from app.engine.costs import (
    ESTIMATE_TTL_S,
    MAX_ESTIMATES,
    MIN_ESTIMATED_ITEMS,
    SAMPLE_PAGES,
    SAMPLE_TOKENS,
)
from app.engine.sketches import statements
from app.engine.sketches.statements import Clauses, Table
from app.store import indexes
from app.store.pg.pool import Pool


class Estimate(NamedTuple):
    """How many items an index has, and by a small sample the share of them that meets clauses."""

    n_items: int
    share: float


class Estimates:
    """What shares of the items were lately estimated to meet some clauses."""

    def __init__(self) -> None:
        self._known: TTLCache[Any, Estimate] = TTLCache(MAX_ESTIMATES, ESTIMATE_TTL_S)

    async def get(self, connections: Pool, table: Table, clauses: Clauses) -> Estimate:
        """Return the estimate for `clauses`, made now if there is none. Raises `StaleIndex`."""
        name = (table.index.id, tuple(clauses))
        known = self._known.get(name)
        if known is None:
            known = await _estimated(connections, table, clauses)
            if known.n_items >= MIN_ESTIMATED_ITEMS:
                self._known[name] = known
        return known

    async def n_items(self, connections: Pool, table: Table) -> int:
        """Return about how many items an index has. Raises `StaleIndex`."""
        name = (table.index.id, None)
        known = self._known.get(name)
        if known is None:
            known = Estimate(await indexes.n_items(connections, table.index), 1.0)
            if known.n_items >= MIN_ESTIMATED_ITEMS:
                self._known[name] = known
        return known.n_items


async def _estimated(connections: Pool, table: Table, clauses: Clauses) -> Estimate:
    n_tokens = max(SAMPLE_TOKENS, sum(map(len, clauses)))
    n_pages = max(10, SAMPLE_PAGES * SAMPLE_TOKENS // n_tokens)
    async with indexes.trip(connections, table.index) as trip:
        counted = trip.execute(indexes.N_ITEMS, (table.index.id,))
        sampled = trip.execute(statements.sample(table, clauses, n_pages), tuple(clauses))
    n_seen, n_met = sampled.one()
    return Estimate(counted.one()[0], n_met / max(1, n_seen))
