"""What shares of the items have the tokens that filters ask for: which way to them is the cheaper."""

from collections.abc import Sequence
from typing import Any

from cachetools import TTLCache

from app.domain import Index
from app.engine.plan import Scan
from app.engine.sketches import filtered_scan
from app.engine.sketches.filtered_scan import Estimate
from app.store.pg.adapters import Tokens
from app.store.pg.connection import Connection

# What it costs to look at an item, in terms of one that was found by its tokens and sorted
# (measured with 60,000 items of 384 dimensions): scanning its sketch in the ivfflat index, and
# fetching its row from there. Then its tokens are compared with those asked for; so many of these
# cost as much again.
_SKETCH_COST = 0.12
_FETCH_COST = 1.6
_TOKENS_A_FETCH = 50
# How long an estimate is good for: it decides on the way only, never on the answer.
_ESTIMATE_TTL_S = 30
_MAX_ESTIMATES = 10_000
_WORTH_KEEPING = 10_000


class Estimates:
    """What shares of the items were lately estimated to meet some clauses."""

    def __init__(self) -> None:
        self._known: TTLCache[Any, Estimate] = TTLCache(_MAX_ESTIMATES, _ESTIMATE_TTL_S)

    async def get(self, raw: Connection, index: Index, clauses: Sequence[Tokens]) -> Estimate:
        """Return the estimate for `clauses` on `index`, made now if there is none. Raises `StaleIndex`."""
        name = (index.id, tuple(clauses))
        known = self._known.get(name)
        if known is None:
            known = await filtered_scan.estimate(raw, index, clauses)
            # A small index may soon be a large one.
            if known.n_items >= _WORTH_KEEPING:
                self._known[name] = known
        return known


def are_tokens_cheaper(
    index: Index, clauses: Sequence[Tokens], estimate: Estimate, scan: Scan, limit: int
) -> bool:
    """Whether finding all items that have the tokens is cheaper than scanning sketches for `limit` of them."""
    token_cost = estimate.n_items * estimate.share
    n_scanned = estimate.n_items * scan.n_probes / index.n_lists
    fetch_cost = _FETCH_COST * (1 + sum(map(len, clauses)) / _TOKENS_A_FETCH)
    sketch_cost = _SKETCH_COST * n_scanned + fetch_cost * limit / max(estimate.share, 1e-6)
    return bool(clauses) and token_cost < sketch_cost
