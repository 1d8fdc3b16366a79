"""Small indexes: while an index is untrained and has few items, all of them are ranked."""

from dataclasses import replace
from uuid import UUID

from cachetools import TTLCache

from app import store
from app.engine import costs
from app.engine.kind import Wanted
from app.store.pg.pool import Pool


class SmallIndexes:
    """Tells small indexes by their number of items, and remembers for a while which are large."""

    def __init__(self, connections: Pool) -> None:
        self._connections = connections
        self._large: TTLCache[UUID, bool] = TTLCache(
            costs.MAX_LARGE_INDEXES, costs.LARGE_INDEX_TTL_S
        )

    async def settled(self, wanted: Wanted) -> Wanted:
        """Return the search, with all items as candidates if the index is small."""
        index, dimension = wanted.keyed.index, wanted.shape.dimension
        if index.is_trained or index.id in self._large:
            return wanted
        n_items = await store.indexes.n_items(self._connections, index)
        if n_items > 2 * costs.SMALL_INDEX_ITEMS:
            self._large[index.id] = True
        is_small = n_items <= costs.SMALL_INDEX_ITEMS
        if not is_small or 4 * n_items * dimension > costs.SMALL_INDEX_BYTES:
            return wanted
        # One more than there are, so that the first look knows that it has seen them all.
        pool = max(wanted.ask.pool, n_items + 1)
        return wanted._replace(ask=replace(wanted.ask, pool=pool))
