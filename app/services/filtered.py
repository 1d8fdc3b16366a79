"""Search and count with a filter. Complete: never fewer items than min(top_k, items that match).

Whatever the database preselects, an item is in the answer only if its opened metadata matches. What differs is the way
to the items whose metadata is opened:

- by tokens, when few items have the tokens that the filter asks for: all of these, sorted by sketch;
- by sketch, when many have them or it asks for none: the nearest that have them, more and more until enough match;
- all that have them, when those that match turn out to be few among them.

Then the nearest that match, at least as many as an unfiltered search would open, are ranked by their exact vectors.
Where tokens tell all there is to know, what has them is ranked first, and only the winners' metadata is opened.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any, TypeAlias

import psycopg
import sqlalchemy as sa
from cachetools import TTLCache

from app import errors, filters, store
from app.crypto import sketch, tokens
from app.domain import Candidates, Index, Match, Matrix
from app.services import metadata_schema
from app.services.opener import OpenIndex
from app.services.plan import Scan
from app.services.search import Winner, best, open_metadata
from app.stages import stage, timed
from app.store.engine import Tokens, scan_driver
from app.store.filtered import Estimate, FullRow, Reach, Row

# Rows in work at a time; more queries of a batch go to the database in parts.
_ROWS_AT_A_TIME = 20_000
# Ranking so many items exactly costs little more than choosing among them by sketch.
_MAX_EXACT = 1_000
# What it costs to look at an item, in terms of one that was found by its tokens and sorted (measured with 60,000 items
# of 384 dimensions): scanning its sketch in the ivfflat index, and fetching its row from there.
_SKETCH_COST = 0.15
_FETCH_COST = 1.2
# Items of one kind, far from the query, are all about as far: where so few are left, more of them are opened
# (docs/filters.md has the measurements).
_FEW = 0.25
_FEW_MULT = 3
_MANY_MULT = 1.5
# What a training has found to be enough for unfiltered searches may be less than that.
_MIN_POOL = 200
# How long an estimate is good for: it decides on the way only, never on the answer.
_ESTIMATE_TTL_S = 30
_MAX_ESTIMATES = 10_000
_WORTH_KEEPING = 10_000
# Where tokens do not tell what matches: how many times the pool to look at first.
_FIRST_LOOK = 4
# Looking at so many times more items costs the same in the order of the table as in that of their sketches.
_ALL_AT_ONCE = 4
# How much further to look when it was not enough, and what to add to what should be.
_FURTHER = 4
_MARGIN = 1.3


_Found: TypeAlias = tuple[Winner, FullRow]


class Estimates:
    """What shares of the items were lately estimated to meet some clauses. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: TTLCache[Any, Estimate] = TTLCache(_MAX_ESTIMATES, _ESTIMATE_TTL_S)

    def get(self, raw: psycopg.Connection[Any], index: Index, clauses: Sequence[Tokens]) -> Estimate:
        """Return the estimate for `clauses` on `index`, made now if there is none. Raises `StaleIndex`."""
        name = (index.id, tuple(clauses))
        with self._lock:
            known = self._known.get(name)
        if known is None:
            known = store.filtered.estimate(raw, index, clauses)
            # A small index may soon be a large one.
            if known.n_items >= _WORTH_KEEPING:
                with self._lock:
                    self._known[name] = known
        return known


class FilteredSearch:
    """One search or count with a filter. It blocks, and belongs to one thread."""

    def __init__(
        self, engine: sa.Engine, opened: OpenIndex, tree: filters.nodes.Node, estimates: Estimates, timeout_ms: int
    ) -> None:
        """`timeout_ms` bounds the time for checking metadata; 0 is no bound."""
        self._engine = engine
        self._estimates = estimates
        self._opened = opened
        self._is_match = filters.matching.matcher(tree)
        unfilterable = metadata_schema.unfilterable(opened.schema)
        self._clauses = [
            Tokens(tokens.token(opened.keys.token_key, filters.terms.message(term)) for term in clause)
            for clause in filters.terms.clauses(tree, unfilterable)
        ]
        self._is_exact = filters.terms.are_exact(tree, unfilterable)
        self._deadline = time.monotonic() + timeout_ms / 1_000 if timeout_ms else float("inf")
        self._verdicts: dict[bytes, tuple[bytes | None, bool]] = {}
        # The keys of all items that match, once they had to be found.
        self._all: list[bytes] | None = None

    def count(self) -> int:
        """Return the number of items that match."""
        with stage("sql"), scan_driver(self._engine) as raw:
            found = store.filtered.rows(raw, self._opened.index, self._clauses)
            return sum(len(self._matching_of_all(rows)) for rows in found)

    def search(
        self, encoder: sketch.Encoder, queries: Matrix, scan: Scan, include: frozenset[str]
    ) -> list[list[Match]]:
        """Return for each query (n, d) the nearest items that match, nearest first, with the fields of `include`."""
        with stage("sketch"):
            sketches = [row.tobytes() for row in encoder.encode_queries(queries)]
        at_a_time = max(1, _ROWS_AT_A_TIME // (_FEW_MULT * max(_MIN_POOL, scan.pool)))
        answer: list[list[Match]] = []
        # Opening and ranking are stages of their own within this one.
        with stage("sql"), scan_driver(self._engine) as raw:
            estimate = self._estimates.get(raw, self._opened.index, self._clauses)
            for start in range(0, len(sketches), at_a_time):
                part = slice(start, start + at_a_time)
                found = self._at_once(raw, queries[part], sketches[part], scan, estimate) if self._is_exact else None
                if found is None:
                    item_keys = self._nearest(raw, sketches[part], scan, estimate)
                    found = self._ranked(raw, queries[part], item_keys, scan.top_k)
                answer += self._answer(found, include)
        return answer

    def _at_once(
        self,
        raw: psycopg.Connection[Any],
        queries: Matrix,
        sketches: Sequence[bytes],
        scan: Scan,
        estimate: Estimate,
    ) -> list[list[_Found]] | None:
        """Return for each query the best items that have the tokens, or None if one of these does not match.

        Where tokens tell all there is to know, an item that has them and does not match is one with too many values,
        or a collision. So it is enough to check the metadata of the winners.
        """
        index, limit = self._opened.index, self._pool(scan, estimate)
        if self._is_by_tokens(scan, estimate, limit):
            rows = store.filtered.full_by_tokens(raw, index, sketches, self._clauses, limit=limit)
        else:
            reach = Reach(limit, scan.n_probes)
            rows = store.filtered.full_by_sketch(raw, index, sketches, self._clauses, reach)
        found = self._best(queries, rows, scan.top_k)
        winners = [Row(row.item_key, row.sealed_metadata) for matches in found for _, row in matches]
        return found if len(self._matching(winners)) == len(winners) else None

    def _best(self, queries: Matrix, rows: list[list[FullRow]], top_k: int) -> list[list[_Found]]:
        """Return for each query the best `top_k` of its rows by exact distance, with their rows."""
        stored = {row.item_key: row for some in rows for row in some}
        candidates = [
            Candidates(
                [row.item_key for row in some], [row.sealed_id for row in some], [row.sealed_vector for row in some]
            )
            for some in rows
        ]
        return [
            [(winner, stored[winner.item_key]) for winner in winners]
            for winners in best(self._opened, queries, candidates, top_k)
        ]

    def _pool(self, scan: Scan, estimate: Estimate) -> int:
        """Return how many items that match are to be opened for a query."""
        least = max(_MIN_POOL, scan.pool)
        return _FEW_MULT * least if estimate.share < _FEW else int(_MANY_MULT * least)

    def _nearest(
        self, raw: psycopg.Connection[Any], sketches: Sequence[bytes], scan: Scan, estimate: Estimate
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
                self._all = self._all_matches(raw)
                break
            seen = self._look(raw, [sketches[position] for position in pending], scan, estimate, limit)
            matching = [self._matching(rows) for rows in seen]
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
            nearest = self._among(
                raw, [sketches[position] for position in pending], self._all, _FEW_MULT * max(_MIN_POOL, scan.pool)
            )
            for position, keys in zip(pending, nearest, strict=True):
                found[position] = keys
        return found

    def _look(
        self,
        raw: psycopg.Connection[Any],
        sketches: Sequence[bytes],
        scan: Scan,
        estimate: Estimate,
        limit: int,
    ) -> list[list[Row]]:
        """Return for each sketch the `limit` nearest items that have the tokens, by the cheaper way."""
        index = self._opened.index
        if self._is_by_tokens(scan, estimate, limit):
            return store.filtered.by_tokens(raw, index, sketches, self._clauses, limit=limit)
        return store.filtered.by_sketch(raw, index, sketches, self._clauses, Reach(limit, scan.n_probes))

    def _is_by_tokens(self, scan: Scan, estimate: Estimate, limit: int) -> bool:
        """Whether finding all items that have the tokens is cheaper than scanning sketches for those among them."""
        token_cost = estimate.n_items * estimate.share
        n_scanned = estimate.n_items * scan.n_probes / self._opened.index.n_lists
        sketch_cost = _SKETCH_COST * n_scanned + _FETCH_COST * limit / max(estimate.share, 1e-6)
        return bool(self._clauses) and token_cost < sketch_cost

    def _all_matches(self, raw: psycopg.Connection[Any]) -> list[bytes]:
        return [
            item_key
            for rows in store.filtered.rows(raw, self._opened.index, self._clauses)
            for item_key in self._matching_of_all(rows)
        ]

    def _among(
        self, raw: psycopg.Connection[Any], sketches: Sequence[bytes], item_keys: list[bytes], pool: int
    ) -> list[list[bytes]]:
        """Return for each sketch the `pool` nearest of `item_keys`, or all when these are few."""
        if len(item_keys) <= max(pool, _MAX_EXACT):
            return [item_keys] * len(sketches)
        found = store.filtered.among(raw, self._opened.index, sketches, item_keys, limit=pool)
        return [[row.item_key for row in rows] for rows in found]

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
            raise errors.Unavailable("The filter takes too long to check; make it simpler or more selective")
        return self._is_match(open_metadata(self._opened, item_key, sealed_metadata))

    def _ranked(
        self, raw: psycopg.Connection[Any], queries: Matrix, item_keys: list[list[bytes]], top_k: int
    ) -> list[list[_Found]]:
        """Return for each query the best `top_k` of its items by exact distance."""
        different = list(dict.fromkeys(key for keys in item_keys for key in keys))
        if not different:
            return [[] for _ in item_keys]
        stored = store.filtered.by_keys(raw, self._opened.index, different)
        # What has been replaced since it was looked at is looked at again; what has been deleted is gone.
        matching = set(self._matching([Row(row.item_key, row.sealed_metadata) for row in stored.values()]))
        rows = [[stored[key] for key in keys if key in matching] for keys in item_keys]
        return self._best(queries, rows, top_k)

    def _answer(self, found: list[list[_Found]], include: frozenset[str]) -> list[list[Match]]:
        """Return what was found, with the fields of `include`."""
        return [
            [
                Match(
                    winner.id,
                    winner.distance if "distance" in include else None,
                    open_metadata(self._opened, row.item_key, row.sealed_metadata) if "metadata" in include else None,
                    winner.vector if "vector" in include else None,
                )
                for winner, row in matches
            ]
            for matches in found
        ]
