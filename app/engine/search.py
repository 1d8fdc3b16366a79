"""A search: look for candidates, open them, keep what matches, rank, look on until it is enough.

With a filter and without, the loop is the same. It runs on the event loop; what takes longer than a
few milliseconds runs in threads (docs/decisions/0076, 0081).
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import numpy as np

from app import errors, store
from app.domain import Candidates, Match, Metadata
from app.engine import costs, rank
from app.engine.exact import ExactSearch
from app.engine.keyed import KeyedIndex, Shape
from app.engine.kind import FilteredScan, Kind, Scan, Wanted
from app.engine.kinds import Kinds
from app.engine.matches import Matches, MatchingScan, all_matching
from app.engine.opening import open_metadata
from app.engine.rank import Winner
from app.engine.small import SmallIndexes
from app.engine.threads import computed
from app.filters.nodes import Node
from app.observe.stages import SCAN_QUEUE, stage
from app.settings import Settings
from app.store.pg.pool import Pool


class Searcher:
    """Makes searches, as many at a time as there are connections; others wait for their turn."""

    def __init__(self, connections: Pool, settings: Settings) -> None:
        self._connections = connections
        self._kinds = Kinds()
        self._small = SmallIndexes(connections)
        self._turns = asyncio.Semaphore(settings.pool_size)
        self._exact_turns = asyncio.Semaphore(costs.EXACT_AT_A_TIME)
        self._patience_s = settings.pool_timeout_s
        self._timeout_ms = settings.statement_timeout_ms

    async def search(
        self, wanted: Wanted, where: Node | None, include: frozenset[str]
    ) -> list[list[Match]]:
        """Return for each query its nearest items that match, nearest first."""
        if wanted.ask.is_exact:
            async with self._turn(self._exact_turns):
                found = await self._exact(wanted, where).nearest(range(len(wanted.queries)))
                return await self._answer(wanted.keyed, found, include)
        async with self._turn(self._turns):
            wanted = await self._small.settled(wanted)
            search = await self._begin(wanted, where)
            answer: list[list[Match]] = []
            for part in _parts(wanted, is_filtered=where is not None):
                answer += await self._answer(wanted.keyed, await search.nearest(part), include)
            return answer

    async def count(self, keyed: KeyedIndex, shape: Shape, where: Node) -> int:
        """Return the number of items that match."""
        async with self._turn(self._turns):
            nothing = np.empty((0, shape.dimension), np.float32)
            ask = costs.Ask(top_k=1, pool=1, n_probes=1, target_recall=1)
            wanted = Wanted(keyed, shape, nothing, ask)
            scan = self._kind(keyed).filtered(wanted, where, self._connections)
            return len(await all_matching(scan, Matches(keyed, where, self._timeout_ms)))

    def _kind(self, keyed: KeyedIndex) -> Kind:
        return self._kinds.of(keyed.index)

    async def _begin(self, wanted: Wanted, where: Node | None) -> "Search":
        """Return the search, with the queries' sketches made."""
        cost_us = costs.opening_us(len(wanted.queries), wanted.shape.dimension)
        kind = self._kind(wanted.keyed)
        if where is None:
            scan = await computed(cost_us, lambda: kind.scan(wanted, self._connections))
            return Search(wanted, scan, ExactSearch(wanted, self._connections))
        filtered = await computed(cost_us, lambda: kind.filtered(wanted, where, self._connections))
        matches = Matches(wanted.keyed, where, self._timeout_ms)
        exact = ExactSearch(wanted, self._connections, matches.kept_of_many)
        return FilteredSearch(wanted, filtered, matches, exact)

    def _exact(self, wanted: Wanted, where: Node | None) -> ExactSearch:
        if where is None:
            return ExactSearch(wanted, self._connections)
        matches = Matches(wanted.keyed, where, self._timeout_ms)
        return ExactSearch(wanted, self._connections, matches.kept_of_many)

    @asynccontextmanager
    async def _turn(self, turns: asyncio.Semaphore) -> AsyncIterator[None]:
        with stage(SCAN_QUEUE):
            await self._take_turn(turns)
        try:
            yield
        finally:
            turns.release()

    async def _take_turn(self, turns: asyncio.Semaphore) -> None:
        if not turns.locked():
            # At once, and without a timer, which costs more than all the rest of it.
            await turns.acquire()
            return
        try:
            async with asyncio.timeout(self._patience_s):
                await turns.acquire()
        except TimeoutError:
            raise errors.Overloaded("All search connections are busy; try again later") from None

    async def _answer(
        self, keyed: KeyedIndex, found: Sequence[Sequence[Winner]], include: frozenset[str]
    ) -> list[list[Match]]:
        if "metadata" not in include:
            return [[winner.match(include) for winner in winners] for winners in found]
        metadata = await self._metadata(keyed, found)
        return [
            # An item that was deleted since it was found is gone from the answer, too.
            [
                winner.match(include, metadata[winner.item_key])
                for winner in winners
                if winner.item_key in metadata
            ]
            for winners in found
        ]

    async def _metadata(
        self, keyed: KeyedIndex, found: Sequence[Sequence[Winner]]
    ) -> dict[bytes, Metadata]:
        keys = [winner.item_key for winners in found for winner in winners]
        async with store.indexes.trip(self._connections, keyed.index) as trip:
            sealed = store.items.sealed_metadata(trip, keyed.index, keys)
        sealer = keyed.keys.metadata
        return await computed(
            len(keys) * costs.METADATA_US,
            lambda: {key: open_metadata(sealer, key, value) for key, value in sealed.rows},
        )


class Search:
    """One search, for whichever of its queries are asked for at a time."""

    def __init__(self, wanted: Wanted, scan: Scan, exact: ExactSearch) -> None:
        self._wanted = wanted
        self._scan = scan
        self._exact = exact

    async def nearest(self, positions: Sequence[int]) -> list[list[Winner]]:
        """Return for each of the queries at `positions` its best, nearest first."""
        winners: dict[int, list[Winner]] = {position: [] for position in positions}
        pending = list(positions)
        while pending:
            if self._n_numbers(pending) > costs.MAX_NUMBERS_OPENED:
                exact = await self._exact.nearest(pending)
                winners.update(zip(pending, exact, strict=True))
                break
            for part in self._portions(pending):
                if not await self._look(part, winners):
                    # What was found so far does not match: begin again.
                    return await self.nearest(positions)
            pending = [one for one in pending if not await self._is_enough(one, winners[one])]
        return [winners[position] for position in positions]

    async def _look(self, positions: Sequence[int], winners: dict[int, list[Winner]]) -> bool:
        """Let each query look once. Whether what it has found may be in the answer."""
        ranked = await self._ranked(positions, await self._scan.look(positions))
        if not await self._keep(ranked):
            return False
        for position, more in zip(positions, ranked, strict=True):
            winners[position] = rank.merged(winners[position], more, self._wanted.ask.top_k)
        return True

    def _n_numbers(self, positions: Sequence[int]) -> int:
        n_candidates = sum(self._scan.n_wanted(position) for position in positions)
        return n_candidates * self._wanted.shape.dimension

    def _portions(self, positions: Sequence[int]) -> Iterator[list[int]]:
        """Yield the queries in parts whose next candidates fit into memory together."""
        part: list[int] = []
        for position in positions:
            if part and self._n_numbers([*part, position]) > costs.NUMBERS_AT_A_TIME:
                yield part
                part = []
            part.append(position)
        yield part

    async def _ranked(
        self, positions: Sequence[int], candidates: Sequence[Candidates]
    ) -> list[list[Winner]]:
        keyed, shape, queries, ask = self._wanted
        n_items = sum(len(found.item_keys) for found in candidates)
        # The wait for a thread is part of the stage.
        async with stage("rerank"):
            return await computed(
                costs.opening_us(n_items, shape.dimension),
                lambda: rank.best(keyed, shape, queries[positions], candidates, ask.top_k),
            )

    async def _keep(self, ranked: Sequence[Sequence[Winner]]) -> bool:
        """Whether what was ranked may be in the answer; if not, the search takes another way."""
        del ranked
        return True

    async def _is_enough(self, position: int, winners: Sequence[Winner]) -> bool:
        dimension = self._wanted.shape.dimension
        vectors = [winner.vector for winner in winners]
        matrix = np.array(vectors, np.float32) if vectors else np.empty((0, dimension), np.float32)
        worst = winners[-1].distance if winners else 0.0
        return await self._scan.is_enough(position, matrix, worst)


class FilteredSearch(Search):
    """A search with a filter: opened metadata decides what the kind of index cannot."""

    def __init__(
        self, wanted: Wanted, scan: FilteredScan, matches: Matches, exact: ExactSearch
    ) -> None:
        first = scan if scan.decides else _matching(wanted, scan, matches)
        super().__init__(wanted, first, exact)
        self._filtered, self._matches = scan, matches
        self._is_decided = scan.decides

    async def _keep(self, ranked: Sequence[Sequence[Winner]]) -> bool:
        # An item that has the tokens and does not match has too many values, or a token collides.
        if not self._is_decided or self._matches.are_all(ranked):
            return True
        self._is_decided = False
        self._scan = _matching(self._wanted, self._filtered, self._matches)
        return False


def _matching(wanted: Wanted, scan: FilteredScan, matches: Matches) -> MatchingScan:
    return MatchingScan(scan, matches, wanted.ask.pool)


def _parts(wanted: Wanted, *, is_filtered: bool) -> Iterator[range]:
    """Yield the queries in parts whose candidates fit into memory together."""
    n_candidates = wanted.ask.pool * (costs.FEW_MULT if is_filtered else 1)
    at_a_time = max(1, costs.NUMBERS_AT_A_TIME // (n_candidates * wanted.shape.dimension))
    n_queries = len(wanted.queries)
    for start in range(0, n_queries, at_a_time):
        yield range(start, min(start + at_a_time, n_queries))
