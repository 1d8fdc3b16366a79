"""Search with a filter of which tokens tell all there is to know: what has the tokens is ranked as if all matched.

How many candidates it takes depends on the filter: among the few items of one kind, far from the
query, all are about as far. So a query opens as many as an unfiltered one at first. From the
distance of the worst of its winners follows how far away the sketches of other items may be that
are as near; as long as nearer ones have not been opened, more are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.domain import Matrix, Vector
from app.engine.keyed import KeyedIndex
from app.engine.plan import Scan
from app.engine.search import Winner, best
from app.engine.sketches import token_scan
from app.engine.sketches.encoder import Encoder
from app.engine.sketches.estimates import are_tokens_cheaper
from app.engine.sketches.filtered_scan import Estimate
from app.engine.sketches.statements import Reach
from app.engine.sketches.token_scan import Found, Outdated
from app.engine.sketches.token_sets import TokenSet, TokenSets
from app.store.pg.adapters import Tokens
from app.store.pg.connection import Connection

# Of items as near as the worst of the winners, one in nine has a sketch farther away than this many
# standard deviations above the expected distance; of those that are nearer, fewer
# (docs/decisions/0024 has the measurements).
_N_DEVIATIONS = 1.2
# What a training has found to be enough for unfiltered searches may be less than that.
MIN_POOL = 200
# How many times the first candidates are looked at, where it takes more.
_TIMES = (1, 5)


def pool(scan: Scan) -> int:
    """Return how many items that match are opened for a query at first."""
    return max(MIN_POOL, scan.pool)


@dataclass(frozen=True, slots=True)
class TokenSearch:
    """Finds for queries the nearest items that have the tokens of `clauses`."""

    raw: Connection
    opened: KeyedIndex
    encoder: Encoder
    clauses: Sequence[Tokens]
    estimate: Estimate
    sets: TokenSets
    scan: Scan

    async def nearest(self, queries: Matrix, sketches: Sequence[bytes]) -> list[list[Winner]]:
        """Return for each query (n, d) the best `scan.top_k`, nearest first. Raises `StaleIndex`."""
        winners: list[list[Winner]] = [[] for _ in sketches]
        pending = list(range(len(sketches)))
        for limit in (times * pool(self.scan) for times in _TIMES):
            if not pending:
                break
            found = await self._look([sketches[position] for position in pending], limit)
            ranked = best(
                self.opened, queries[pending], [one.candidates for one in found], self.scan.top_k
            )
            unfinished = []
            for position, one, new in zip(pending, found, ranked, strict=True):
                winners[position] = new
                if len(one.candidates.item_keys) < limit:
                    # These are all.
                    continue
                bound = self._bound(queries[position], new)
                if one.farthest < bound:
                    unfinished.append((position, one, bound))
            await self._look_further(
                queries, winners, [each for each in unfinished if each[1].further]
            )
            pending = [position for position, one, _ in unfinished if not one.further]
        return winners

    async def _look(self, sketches: Sequence[bytes], limit: int) -> list[Found]:
        """Return for each sketch the `limit` nearest items that have the tokens, by the cheapest way."""
        raw, index, clauses = self.raw, self.opened.index, self.clauses
        if known := await self.sets.get(raw, index, clauses, self.estimate):
            try:
                return await self._look_in(known, sketches, limit)
            except Outdated:
                self.sets.forget(index, clauses)
        if are_tokens_cheaper(index, clauses, self.estimate, self.scan, limit):
            reach = Reach(limit, n_further=_TIMES[-1] * pool(self.scan) - limit)
            return await token_scan.by_tokens(raw, index, sketches, clauses, reach)
        reach = Reach(limit, self.scan.n_probes)
        return await token_scan.by_sketch(raw, index, sketches, clauses, reach)

    async def _look_in(self, known: TokenSet, sketches: Sequence[bytes], limit: int) -> list[Found]:
        nearest = [known.nearest(sketch, _TIMES[-1] * pool(self.scan)) for sketch in sketches]
        wanted = [items[:limit] for items in nearest]
        read = await token_scan.at_places(self.raw, self.opened.index, wanted, known.n_changes)
        return [
            Found(candidates, items[-1].distance, further[limit:])
            for candidates, items, further in zip(read, wanted, nearest, strict=True)
        ]

    def _bound(self, query: Vector, winners: Sequence[Winner]) -> float:
        if not winners:
            return 0
        vectors = np.array([winner.vector for winner in winners])
        return self.encoder.distance_bound(query, vectors, _N_DEVIATIONS)

    async def _look_further(
        self,
        queries: Matrix,
        winners: list[list[Winner]],
        unfinished: Sequence[tuple[int, Found, float]],
    ) -> None:
        """Rank for each of the `unfinished` queries those further items, too, that its bound asks for."""
        if not unfinished:
            return
        wanted = [
            [item for item in found.further if item.distance <= bound]
            for _, found, bound in unfinished
        ]
        candidates = await token_scan.at_places(self.raw, self.opened.index, wanted)
        positions = [position for position, _, _ in unfinished]
        ranked = best(self.opened, queries[positions], candidates, self.scan.top_k)
        for position, more in zip(positions, ranked, strict=True):
            # An item that was stored again meanwhile may have been found at both its places.
            different = {winner.item_key: winner for winner in [*winners[position], *more]}
            winners[position] = sorted(different.values(), key=lambda winner: winner.distance)[
                : self.scan.top_k
            ]
