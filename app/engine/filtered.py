"""Search and count with a filter. Complete: never fewer items than min(top_k, items that match).

Whatever the database preselects, an item is in the answer only if its opened metadata matches. What
differs is the way to the items whose metadata is opened:

- by tokens, when few items have the tokens that the filter asks for: all of these, sorted by sketch;
- by sketch, when many have them or it asks for none: the nearest that have them, more and more until enough match;
- all that have them, when those that match turn out to be few among them.

Then the nearest that match, at least as many as an unfiltered search would open, are ranked by
their exact vectors. Where tokens tell all there is to know, what has them is ranked first, and only
the winners' metadata is opened.
"""

import asyncio
import time
from collections.abc import Sequence

from app import errors, filters
from app.crypto import tokens
from app.domain import Candidates, Match, Matrix
from app.engine import metadata_schema
from app.engine.keyed import KeyedIndex
from app.engine.plan import Scan
from app.engine.search import Winner, best, open_metadata
from app.engine.sketches import filtered_scan, token_scan, token_search
from app.engine.sketches.encoder import Encoder
from app.engine.sketches.estimates import Estimates, are_tokens_cheaper
from app.engine.sketches.filtered_scan import Estimate, Row
from app.engine.sketches.statements import Reach
from app.engine.sketches.token_sets import TokenSets
from app.observe.stages import stage, timed
from app.store.pg.adapters import Tokens
from app.store.pg.connection import Connection
from app.store.pg.pool import Pool

# Rows in work at a time; more queries of a batch go to the database in parts.
_ROWS_AT_A_TIME = 20_000
# Ranking so many items exactly costs little more than choosing among them by sketch.
_MAX_EXACT = 1_000
# Items of one kind, far from the query, are all about as far: where so few are left, more of them
# are opened (docs/decisions/0024 has the measurements).
_FEW = 0.25
_FEW_MULT = 3
_MANY_MULT = 1.5
# Where tokens do not tell what matches: how many times the pool to look at first.
_FIRST_LOOK = 4
# How many times the IVF lists: to read them takes a fraction of the time that it takes to open
# metadata.
_PROBES_MULT = 2
# Looking at so many times more items costs the same in the order of the table as in that of their
# sketches.
_ALL_AT_ONCE = 4
# How much further to look when it was not enough, and what to add to what should be.
_FURTHER = 4
_MARGIN = 1.3


class Known:
    """What is remembered of the filters that were asked for lately."""

    def __init__(self) -> None:
        self.estimates = Estimates()
        self.sets = TokenSets()


class FilteredSearch:
    """One search or count with a filter."""

    def __init__(
        self,
        connections: Pool,
        opened: KeyedIndex,
        tree: filters.nodes.Node,
        known: Known,
        timeout_ms: int,
    ) -> None:
        """`timeout_ms` bounds the time for checking metadata; 0 is no bound."""
        self._connections = connections
        self._known = known
        self._opened = opened
        self._is_match = filters.matching.matcher(tree)
        unfilterable = metadata_schema.unfilterable(opened.schema)
        token = tokens.tokenizer(opened.keys.token_key)
        self._clauses = [
            Tokens(token(filters.terms.message(term)) for term in clause)
            for clause in filters.terms.clauses(tree, unfilterable)
        ]
        self._is_exact = filters.terms.are_exact(tree, unfilterable)
        self._deadline = time.monotonic() + timeout_ms / 1_000 if timeout_ms else float("inf")
        self._verdicts: dict[bytes, tuple[bytes | None, bool]] = {}
        # The keys of all items that match, once they had to be found.
        self._all: list[bytes] | None = None

    async def count(self) -> int:
        """Return the number of items that match."""
        async with stage("sql"), self._connections.lend() as raw:
            return len(await self._all_matches(raw))

    async def search(
        self, encoder: Encoder, queries: Matrix, scan: Scan, include: frozenset[str]
    ) -> list[list[Match]]:
        """Return for each query (n, d) the nearest items that match, nearest first, with the fields of `include`."""
        with stage("sketch"):
            sketches = [row.tobytes() for row in encoder.encode_queries(queries)]
        at_a_time = max(1, _ROWS_AT_A_TIME // (_FEW_MULT * token_search.pool(scan)))
        answer: list[list[Match]] = []
        # Opening and ranking are stages of their own within this one.
        async with stage("sql"), self._connections.lend() as raw:
            estimate = await self._known.estimates.get(raw, self._opened.index, self._clauses)
            by_tokens = token_search.TokenSearch(
                raw, self._opened, encoder, self._clauses, estimate, self._known.sets, scan
            )
            for start in range(0, len(sketches), at_a_time):
                part = slice(start, start + at_a_time)
                found = (
                    await by_tokens.nearest(queries[part], sketches[part])
                    if self._is_exact
                    else None
                )
                # An item that has the tokens and does not match is one with too many values, or a
                # collision.
                if found is None or not self._are_all_matching(found):
                    item_keys = await self._nearest(raw, sketches[part], scan, estimate)
                    found = await self._ranked(raw, queries[part], item_keys, scan.top_k)
                answer += self._answer(found, include)
        return answer

    def _are_all_matching(self, found: list[list[Winner]]) -> bool:
        winners = [
            Row(winner.item_key, winner.sealed_metadata) for some in found for winner in some
        ]
        return len(self._matching(winners)) == len(winners)

    def _pool(self, scan: Scan, estimate: Estimate) -> int:
        """Return how many items that match are to be opened for a query."""
        least = token_search.pool(scan)
        return _FEW_MULT * least if estimate.share < _FEW else int(_MANY_MULT * least)

    async def _nearest(
        self, raw: Connection, sketches: Sequence[bytes], scan: Scan, estimate: Estimate
    ) -> list[list[bytes]]:
        """Return for each sketch the keys of the items nearest by sketch that match: at least `scan.pool`, or all."""
        pool = self._pool(scan, estimate)
        found: list[list[bytes]] = [[] for _ in sketches]
        pending = list(range(len(sketches)))
        limit = pool if self._is_exact else _FIRST_LOOK * pool
        n_candidates = estimate.n_items * estimate.share
        is_first = True
        while pending and self._all is None:
            if limit * _ALL_AT_ONCE > n_candidates and not (self._is_exact and is_first):
                self._all = await self._all_matches(raw)
                break
            seen = await self._look(
                raw, [sketches[position] for position in pending], scan, estimate, limit
            )
            matching = await asyncio.to_thread(self._matching_each, seen)
            for position, keys in zip(pending, matching, strict=True):
                found[position] = keys[: _FEW_MULT * pool]
            unfinished = [
                place
                for place, (rows, keys) in enumerate(zip(seen, matching, strict=True))
                if len(rows) >= limit and len(keys) < pool
            ]
            n_matching = min((len(matching[place]) for place in unfinished), default=0)
            pending = [pending[place] for place in unfinished]
            limit = max(_FURTHER * limit, int(_MARGIN * limit * pool / max(1, n_matching)))
            is_first = False
        if pending and self._all is not None:
            nearest = await self._among(
                raw,
                [sketches[position] for position in pending],
                self._all,
                _FEW_MULT * token_search.pool(scan),
            )
            for position, keys in zip(pending, nearest, strict=True):
                found[position] = keys
        return found

    async def _look(
        self,
        raw: Connection,
        sketches: Sequence[bytes],
        scan: Scan,
        estimate: Estimate,
        limit: int,
    ) -> list[list[Row]]:
        """Return for each sketch the `limit` nearest items that have the tokens, by the cheaper way."""
        index = self._opened.index
        if are_tokens_cheaper(index, self._clauses, estimate, scan, limit):
            return await filtered_scan.by_tokens(raw, index, sketches, self._clauses, limit=limit)
        n_probes = (
            scan.n_probes
            if scan.is_n_probes_given
            else min(index.n_lists, _PROBES_MULT * scan.n_probes)
        )
        reach = Reach(limit, n_probes)
        return await filtered_scan.by_sketch(raw, index, sketches, self._clauses, reach)

    async def _all_matches(self, raw: Connection) -> list[bytes]:
        found: list[bytes] = []
        async for rows in filtered_scan.rows(raw, self._opened.index, self._clauses):
            found += await asyncio.to_thread(self._matching_of_all, rows)
        return found

    async def _among(
        self, raw: Connection, sketches: Sequence[bytes], item_keys: list[bytes], pool: int
    ) -> list[list[bytes]]:
        """Return for each sketch the `pool` nearest of `item_keys`, or all when these are few."""
        if len(item_keys) <= max(pool, _MAX_EXACT):
            return [item_keys] * len(sketches)
        found = await filtered_scan.among(raw, self._opened.index, sketches, item_keys, limit=pool)
        return [[row.item_key for row in rows] for rows in found]

    def _matching_each(self, seen: Sequence[Sequence[Row]]) -> list[list[bytes]]:
        return [self._matching(rows) for rows in seen]

    @timed("open")
    def _matching(self, rows: Sequence[Row]) -> list[bytes]:
        """Return the keys of those that match; queries of a batch share candidates, so verdicts are kept."""
        keys = []
        for item_key, sealed in rows:
            known = self._verdicts.get(item_key)
            if known is None or known[0] != sealed:
                known = self._verdicts[item_key] = (sealed, self._matches(item_key, sealed))
            if known[1]:
                keys.append(item_key)
        return keys

    @timed("open")
    def _matching_of_all(self, rows: Sequence[Row]) -> list[bytes]:
        """Return the keys of those that match, without keeping verdicts on what may be millions."""
        return [row.item_key for row in rows if self._matches(row.item_key, row.sealed_metadata)]

    def _matches(self, item_key: bytes, sealed_metadata: bytes | None) -> bool:
        """Open and check the metadata of an item. Raises `DataCorrupted`, `Unavailable` when it takes too long."""
        if time.monotonic() > self._deadline:
            raise errors.Unavailable(
                "The filter takes too long to check; make it simpler or more selective"
            )
        return self._is_match(open_metadata(self._opened, item_key, sealed_metadata))

    async def _ranked(
        self, raw: Connection, queries: Matrix, item_keys: list[list[bytes]], top_k: int
    ) -> list[list[Winner]]:
        """Return for each query the best `top_k` of its items by exact distance."""
        different = list(dict.fromkeys(key for keys in item_keys for key in keys))
        stored = await token_scan.by_keys(raw, self._opened.index, different)
        metadata = [sealed or None for sealed in stored.sealed_metadata or ()]
        # What has been replaced since it was looked at is looked at again; what has been deleted is
        # gone.
        matching = set(
            self._matching([Row(*row) for row in zip(stored.item_keys, metadata, strict=True)])
        )
        places = {key: place for place, key in enumerate(stored.item_keys) if key in matching}
        candidates = [
            _chosen(stored, [places[key] for key in keys if key in places]) for keys in item_keys
        ]
        return best(self._opened, queries, candidates, top_k)

    def _answer(self, found: list[list[Winner]], include: frozenset[str]) -> list[list[Match]]:
        """Return what was found, with the fields of `include`."""
        return [[self._match(winner, include) for winner in winners] for winners in found]

    def _match(self, winner: Winner, include: frozenset[str]) -> Match:
        if "metadata" not in include:
            return winner.match(include)
        return winner.match(
            include, open_metadata(self._opened, winner.item_key, winner.sealed_metadata)
        )


def _chosen(stored: Candidates, places: Sequence[int]) -> Candidates:
    columns = (
        stored.item_keys,
        stored.sealed_ids,
        stored.sealed_vectors,
        stored.sealed_metadata or (),
    )
    return Candidates(*([column[place] for place in places] for column in columns))
