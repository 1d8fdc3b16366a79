"""The way from the sketches of queries to candidates: by the ivfflat index, or by tokens.

How far a query looks follows from its winners (`bound`). With a filter there are three ways to the
items that have its tokens, and the cheapest is taken: the set of them that is remembered, the index
of tokens, or the ivfflat index, whose scan PostgreSQL filters.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import numpy as np

from app.crypto import tokens
from app.domain import Candidates, Matrix
from app.engine import metadata_schema
from app.engine.costs import (
    ALL_AT_ONCE_MULT,
    KNOWN_MULT,
    LOOK_PROBES_MULT,
    ROWS_AT_A_TIME,
    Workload,
)
from app.engine.kind import Row, Wanted
from app.engine.sketches import bound, statements
from app.engine.sketches.bound import Hammings, Look
from app.engine.sketches.estimates import Estimate, Estimates
from app.engine.sketches.reading import Outdated, places, rows, rows_at, rows_of
from app.engine.sketches.statements import Places, Reach, Table
from app.engine.sketches.token_sets import TokenSet, TokenSets
from app.filters import terms
from app.filters.nodes import Node
from app.observe.stages import stage, timed
from app.store import indexes
from app.store.pg import packed_rows
from app.store.pg.adapters import ItemKeys, Tokens
from app.store.pg.pool import Pool

_NO_HAMMINGS: Hammings = np.empty(0, np.int32)


@dataclass(slots=True)
class Progress:
    """How far one query has looked: its next look, and the Hamming distances of what was seen."""

    look: Look
    # Everything nearer than this has been opened.
    opened_up_to: int = 0
    hammings: Hammings = field(default_factory=lambda: _NO_HAMMINGS)
    # Where the items are that have the tokens of a filter, and how many of them were opened.
    known: Places | None = None
    n_opened: int = 0


class SketchScan:
    """Candidates by sketch alone, for a search without a filter."""

    def __init__(self, wanted: Wanted, connections: Pool, estimates: Estimates) -> None:
        self._wanted = wanted
        self._connections = connections
        self._estimates = estimates
        self._index = wanted.keyed.index
        shape = wanted.shape
        self._table = Table(self._index, shape.sketch_bits, shape.dimension)
        self._sketches = _sketches(wanted)
        first = Look(shape.sketch_bits, wanted.ask.pool)
        self._progress = [Progress(first) for _ in self._sketches]

    async def look(self, positions: Sequence[int]) -> list[Candidates]:
        """Return for each of the queries at `positions` candidates that it has not seen before."""
        return await self._by_lists(positions, None)

    def n_wanted(self, position: int) -> int:
        """Return about how many candidates the next look of a query brings."""
        return self._progress[position].look.n_candidates

    async def is_enough(self, position: int, winners: Matrix, worst: float) -> bool:
        """Whether hardly any item that was not seen is nearer than the winners of a query."""
        progress, wanted = self._progress[position], self._wanted
        opened = bound.Opened(winners, worst, progress.look, progress.hammings)
        asked = (wanted.shape.encoder, wanted.queries[position], opened)
        target = wanted.ask.target_recall
        # How many items there are decides how far to look, not whether.
        if bound.further(*asked, n_items=1, target=target) is None:
            return True
        n_opened, n_items = len(progress.hammings), await self._n_in_reach()
        if n_opened >= n_items and self._reads_some_lists():
            # The lists that were asked for hold nothing more.
            return True
        # The number is an estimate: if it is too low, the looks grow all the same.
        n_items = max(round(n_items), 2 * n_opened)
        look = bound.further(*asked, n_items=n_items, target=target)
        if look is None:
            return True
        progress.opened_up_to = progress.look.reach(progress.hammings)
        progress.look = look
        return False

    async def _by_lists(
        self, positions: Sequence[int], clauses: Sequence[Tokens] | None
    ) -> list[Candidates]:
        progress = [self._progress[position] for position in positions]
        most = max(one.look.n_candidates for one in progress)
        statement = statements.by_lists(self._table, clauses, most)
        reaches = [Reach(one.opened_up_to, one.look.limit, most) for one in progress]
        values = (*self._queries(positions, reaches), self._index.id, *(clauses or ()), most)
        async with indexes.trip(self._connections, self._index) as trip:
            trip.execute(statements.LIST_SETTINGS, (str(self._wanted.ask.n_probes),))
            found = trip.execute(statement, values)
        with stage("open"):
            parts = statements.grouped(found.rows, len(progress))
            seen = [statements.seen(part) for part in parts]
        for one, new in zip(progress, seen, strict=True):
            one.hammings = new.hammings
        return [one.rows for one in seen]

    async def _n_in_reach(self) -> float:
        """Return about how many items the lists hold that this search reads."""
        n_items = await self._estimates.n_items(self._connections, self._table)
        return n_items * min(1.0, self._wanted.ask.n_probes / self._index.n_lists)

    def _reads_some_lists(self) -> bool:
        return self._wanted.ask.n_probes < self._index.n_lists

    def _queries(
        self, positions: Sequence[int], reaches: Sequence[Reach] | None = None
    ) -> tuple[object, ...]:
        sketches = [self._sketches[position] for position in positions]
        everywhere = Reach(0, self._table.sketch_bits, 0)
        return statements.queries(sketches, reaches or [everywhere] * len(positions))


class FilteredSketchScan(SketchScan):
    """Candidates that have the tokens of a filter."""

    def __init__(
        self,
        wanted: Wanted,
        where: Node,
        connections: Pool,
        estimates: Estimates,
        sets: TokenSets,
    ) -> None:
        super().__init__(wanted, connections, estimates)
        self._sets = sets
        unfilterable = metadata_schema.unfilterable(wanted.keyed.schema)
        token = tokens.tokenizer(wanted.keyed.keys.token_key)
        self._clauses = [
            Tokens(token(terms.message(term)) for term in clause)
            for clause in terms.clauses(where, unfilterable)
        ]
        self._decides = terms.are_exact(where, unfilterable)

    @property
    def decides(self) -> bool:
        """Whether tokens tell all that there is to know about a match."""
        return self._decides

    async def share(self) -> float:
        """Return about which share of the items has the tokens."""
        return (await self._estimate()).share

    async def look(self, positions: Sequence[int]) -> list[Candidates]:
        """Return for each query candidates that it has not seen before, with their metadata."""
        estimate = await self._estimate()
        known = await self._sets.get(self._connections, self._table, self._clauses, estimate)
        if known is not None:
            try:
                return await self._in_set(positions, known)
            except Outdated:
                self._sets.forget(self._index, self._clauses)
        if self._are_tokens_cheaper(estimate, self._n_wanted(positions)):
            return await self._by_tokens(positions)
        return await self._by_lists(positions, self._clauses)

    async def peek(self, positions: Sequence[int], n_items: int) -> list[list[Row]] | None:
        """Return for each query the nearest `n_items` that have the tokens, or all."""
        estimate = await self._estimate()
        if n_items * ALL_AT_ONCE_MULT > estimate.n_items * estimate.share:
            return None
        uses_tokens = self._are_tokens_cheaper(estimate, n_items)
        statement = statements.peeked(self._table, self._clauses, n_items, uses_tokens=uses_tokens)
        values = (*self._queries(positions), self._index.id, *self._clauses)
        async with indexes.trip(self._connections, self._index) as trip:
            if uses_tokens:
                trip.execute(statements.GIN_SETTINGS)
            else:
                trip.execute(statements.LIST_SETTINGS, (str(self._n_probes_to_peek()),))
            found = trip.execute(statement, values)
        return [
            [Row(*row) for row in packed_rows.metadata(*part)] if part[0] else []
            for (part,) in statements.grouped(found.rows, len(positions))
        ]

    def everything(self) -> AsyncGenerator[list[Row], None]:
        """Return all items that have the tokens, some thousands at a time, as of one moment."""
        return rows(self._connections, self._table, self._clauses, ROWS_AT_A_TIME)

    async def among(
        self, positions: Sequence[int], item_keys: Sequence[bytes], n_items: int
    ) -> list[list[bytes]]:
        """Return for each query which of `item_keys` are the nearest `n_items` by sketch."""
        statement = statements.among(self._table, n_items)
        values = (*self._queries(positions), self._index.id, ItemKeys(item_keys))
        found = await places(self._connections, self._table, statement, values, len(positions))
        return [list(one.item_keys) for one in found]

    async def read(self, item_keys: Sequence[bytes]) -> Candidates:
        """Return the items with these keys that are still there, with their metadata."""
        return await rows_of(self._connections, self._table, item_keys)

    async def _in_set(self, positions: Sequence[int], known: TokenSet) -> list[Candidates]:
        for position in positions:
            progress = self._progress[position]
            n_wanted = self._n_to_know(progress)
            progress.known = known.nearest(self._sketches[position], n_wanted)
        return await self._read_known(positions, known.n_changes)

    async def _by_tokens(self, positions: Sequence[int]) -> list[Candidates]:
        most = max(self._n_to_know(self._progress[position]) for position in positions)
        statement = statements.by_tokens(self._table, self._clauses, most)
        values = (*self._queries(positions), self._index.id, *self._clauses)
        found = await places(self._connections, self._table, statement, values, len(positions))
        for position, one in zip(positions, found, strict=True):
            self._progress[position].known = one
        return await self._read_known(positions)

    async def _read_known(
        self, positions: Sequence[int], n_changes: int | None = None
    ) -> list[Candidates]:
        """Read the next of the items that are known, as far as the looks go. Raises `Outdated`."""
        wanted, ends = [], []
        for position in positions:
            progress = self._progress[position]
            assert progress.known is not None  # noqa: S101 - the callers have filled it in
            within = np.searchsorted(progress.known.hammings, progress.look.limit, "right")
            end = min(int(within), progress.look.n_candidates)
            wanted.append((progress.known, slice(progress.n_opened, end)))
            ends.append(end)
        read = await rows_at(self._connections, self._table, wanted, n_changes)
        for position, (known, _), end in zip(positions, wanted, ends, strict=True):
            progress = self._progress[position]
            progress.n_opened, progress.hammings = end, known.hammings[:end]
        return read

    def _n_to_know(self, progress: Progress) -> int:
        return max(progress.look.n_candidates, KNOWN_MULT * self._wanted.ask.pool)

    def _n_wanted(self, positions: Sequence[int]) -> int:
        return max(self._progress[position].look.n_candidates for position in positions)

    def _are_tokens_cheaper(self, estimate: Estimate, n_wanted: int) -> bool:
        table, shape = self._table, self._wanted.shape
        workload = Workload(
            estimate.n_items, table.index.n_lists, shape.dimension, shape.sketch_bits
        )
        n_tokens = sum(map(len, self._clauses))
        n_probes = self._wanted.ask.n_probes
        return bool(self._clauses) and workload.are_tokens_cheaper(
            n_tokens, estimate.share, n_probes, n_wanted
        )

    def _n_probes_to_peek(self) -> int:
        ask = self._wanted.ask
        if ask.is_n_probes_given:
            return ask.n_probes
        return min(self._index.n_lists, LOOK_PROBES_MULT * ask.n_probes)

    async def _estimate(self) -> Estimate:
        return await self._estimates.get(self._connections, self._table, self._clauses)

    def _reads_some_lists(self) -> bool:
        # With a filter a scan goes on through the lists until it has found enough.
        return False

    async def _n_in_reach(self) -> float:
        estimate = await self._estimate()
        return estimate.n_items * estimate.share


@timed("sketch")
def _sketches(wanted: Wanted) -> list[bytes]:
    return [row.tobytes() for row in wanted.shape.encoder.encode_queries(wanted.queries)]
