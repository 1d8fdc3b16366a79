"""Measuring the recall of what a training has built, before any search uses it (`recall` counts).

Every number of probes is measured with a few queries, to see where the target lies; those about
there with more, to see which is the cheapest; and that one with many, since what a search costs
every day depends on how well its recall is known. No query is a stored item (`mixtures`). Searches
that go on meanwhile come first.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.ext.asyncio import AsyncEngine

from app.domain import ITEM_KEY_BYTES, Index, Matrix
from app.engine.costs import Workload
from app.engine.keyed import KeyedIndex
from app.engine.kinds import trainable
from app.engine.opening import chunk_items, open_vectors
from app.engine.profile import Point, SearchProfile, default_target
from app.engine.sketches import samples
from app.engine.sketches.samples import SealedVector
from app.settings import Settings
from app.training import drift, mixtures, recall
from app.training.traffic import Traffic

N_QUERIES = 1_000
_N_ROUGHLY = 40
# Recall of 100 results differs less from query to query than that of 10, so fewer are as exact.
_N_QUERIES_OF = {10: N_QUERIES, 100: 400}
# Of these, this share finds out which number of probes is the cheapest.
_SHARE_OF_CHOICE = 4
_N_SIZES = 100
_QUERIES_AT_A_TIME = 10
# Statements under way at once; only one while searches are under way.
_N_STREAMS = 2
_SAMPLE_BYTES = 32 * 1024 * 1024
# A pool that a rough measurement takes for enough may be too small by half.
_POOL_TO_SPARE = 1.5
# Smaller pools save next to nothing.
_MIN_POOL = 200


@dataclass(frozen=True, slots=True)
class Examination:
    """Queries whose exact neighbours are known, as they are put to what was built."""

    questions: Sequence[bytes]
    item_keys: Sequence[Sequence[bytes]]
    clear: dict[int, NDArray[np.bool_]]


class Calibrator:
    """Finds out how many probes and candidates a search needs."""

    def __init__(self, engine: AsyncEngine, settings: Settings, traffic: Traffic) -> None:
        self._engine = engine
        self._settings = settings
        self._traffic = traffic

    async def examination(self, opened: KeyedIndex) -> Examination:
        """Make up queries and find their exact neighbours among all items."""
        item_keys, vectors = await self._sample(opened)
        queries, questions = await asyncio.to_thread(_queries, opened, vectors)
        neighbours = _neighbours(opened.index, item_keys, vectors, queries)
        await self._show_all(opened, neighbours)
        clear = {top_k: neighbours.clear(top_k) for top_k in recall.TOP_KS}
        return Examination(questions, neighbours.item_keys(), clear)

    async def _sample(self, opened: KeyedIndex) -> tuple[list[bytes], Matrix]:
        """Return keys and vectors of items, others each time: two for each query if there are any.

        Item keys are pseudo-random, so those that follow any key are a fair sample.
        """
        dimension = opened.index.dimension or 1
        n_wanted = min(2 * N_QUERIES, max(2, _SAMPLE_BYTES // (4 * dimension)))
        start = secrets.token_bytes(ITEM_KEY_BYTES)
        rows = await self._rows_after(opened, start, n_wanted)
        if len(rows) < n_wanted:
            # The end of the keys is followed by their beginning.
            known = {item_key for item_key, _ in rows}
            first = await self._rows_after(opened, b"", n_wanted)
            rows += [row for row in first if row[0] not in known][: n_wanted - len(rows)]
        return [item_key for item_key, _ in rows], await open_vectors(opened, rows)

    async def _rows_after(
        self, opened: KeyedIndex, item_key: bytes, limit: int
    ) -> list[SealedVector]:
        async with self._engine.connect() as connection:
            return await samples.vectors_after(connection, opened.index, item_key, limit)

    async def _show_all(self, opened: KeyedIndex, neighbours: recall.Neighbours) -> None:
        """Show every item to `neighbours`, while the build goes on beside it."""
        at_a_time = chunk_items(opened.index.dimension or 1)
        async with self._engine.connect() as connection:
            async for rows in samples.all_vectors(connection, opened.index, at_a_time):
                began = time.monotonic()
                await self._show(opened, neighbours, rows)
                await self._traffic.rest_after(time.monotonic() - began)

    @staticmethod
    async def _show(
        opened: KeyedIndex, neighbours: recall.Neighbours, rows: Sequence[SealedVector]
    ) -> None:
        vectors = await open_vectors(opened, rows)
        await asyncio.to_thread(neighbours.add, [item_key for item_key, _ in rows], vectors)

    async def profile(
        self, target: Index, n_items: int, known: Examination, advance: Callable[[float], None]
    ) -> SearchProfile:
        """Return what was measured of `target`; `advance` is told which share of it is done."""
        search = _Search(_Measurement(self._engine, self._traffic, target, known), n_items)
        await search.measure(self._settings.target_recall, advance)
        async with self._engine.connect() as connection:
            sizes = await trainable(target).list_sizes(connection, target, _N_SIZES)
        return SearchProfile(
            n_lists=target.n_lists,
            points=search.cheapest(),
            n_items=n_items,
            target=self._settings.target_recall,
            recall=search.promised(self._settings.target_recall),
            imbalance=drift.imbalance(sizes, n_items, target.n_lists),
        )


class _Ranks(NamedTuple):
    """The places of the neighbours of some queries (n, neighbours) among `pool` candidates."""

    pool: int
    ranks: NDArray[np.float32]


class _Measurement:
    """What was measured of `target`: by number of probes, the places of the neighbours."""

    def __init__(
        self, engine: AsyncEngine, traffic: Traffic, target: Index, known: Examination
    ) -> None:
        self.target = target
        self._engine = engine
        self._traffic = traffic
        self._known = known
        self._roughly: dict[int, _Ranks] = {}
        self._finely: dict[int, dict[int, _Ranks]] = {top_k: {} for top_k in recall.TOP_KS}

    def points(self, top_k: int, n_probes: int | None = None) -> list[Point]:
        """Return what was measured for `top_k` results, of one number of probes or of all."""
        finely = self._finely[top_k]
        found: list[Point] = []
        for probes in sorted({*self._roughly, *finely}):
            if n_probes in {None, probes}:
                fine = self._points(finely.get(probes), probes, top_k)
                # Few queries say something only of the pools that many were not measured with.
                rough = self._points(self._roughly.get(probes), probes, top_k)[len(fine) :]
                found += [*fine, *rough]
        return found

    def _points(self, measured: "_Ranks | None", n_probes: int, top_k: int) -> list[Point]:
        if measured is None:
            return []
        clear = self._known.clear[top_k][: len(measured.ranks)]
        return recall.measure(n_probes, measured.pool, measured.ranks, clear, top_k)

    async def measure_roughly(self, n_probes: int, pool: int) -> None:
        """Measure for all numbers of results, with a few queries."""
        n_queries = min(_N_ROUGHLY, len(self._known.questions))
        ranks = await self._ranks(n_probes, range(n_queries), pool)
        self._roughly[n_probes] = _Ranks(pool, ranks)

    async def measure(self, top_k: int, n_probes: int, n_queries: int, pool: int) -> None:
        """Measure for `top_k` results, going on from the queries that were measured before."""
        n_queries = min(n_queries, len(self._known.questions))
        known = self._finely[top_k].get(n_probes)
        if known is None:
            ranks = await self._ranks(n_probes, range(n_queries), pool)
        else:
            pool = known.pool
            more = await self._ranks(n_probes, range(len(known.ranks), n_queries), pool)
            ranks = np.vstack([known.ranks, more])
        self._finely[top_k][n_probes] = _Ranks(pool, ranks)

    async def _ranks(self, n_probes: int, queries: range, pool: int) -> NDArray[np.float32]:
        """Return the ranks of the neighbours of some queries, which a few streams take turns at."""
        found = np.full((len(queries), max(recall.TOP_KS)), np.inf, np.float32)

        async def ask(part: slice) -> None:
            place = slice(part.start - queries.start, part.stop - queries.start)
            found[place] = await self._ask(part, n_probes, pool)

        parts = _parts(queries)
        await _all_of(
            self._stream(ask, parts, is_first=number == 0) for number in range(_N_STREAMS)
        )
        return found

    async def _stream(
        self, ask: Callable[[slice], Awaitable[None]], parts: Iterator[slice], *, is_first: bool
    ) -> None:
        """Ask part after part; all streams but the first end once searches are under way."""
        while is_first or self._traffic.is_quiet():
            part = next(parts, None)
            if part is None:
                return
            await ask(part)

    async def _ask(self, part: slice, n_probes: int, pool: int) -> NDArray[np.float32]:
        async with self._engine.connect() as connection:
            candidates = await trainable(self.target).candidates(
                connection, self.target, self._known.questions[part], pool=pool, n_probes=n_probes
            )
        return await asyncio.to_thread(recall.ranks, self._known.item_keys[part], candidates)


class _Search:
    """Looks for the cheapest settings that keep a target, and measures those best."""

    def __init__(self, measurement: _Measurement, n_items: int) -> None:
        target = measurement.target
        self._measurement = measurement
        self._n_lists = target.n_lists
        self._workload = Workload(
            n_items, target.n_lists, target.dimension or 1, target.sketch_bits or 0
        )

    async def measure(self, target_recall: float, advance: Callable[[float], None]) -> None:
        """Measure what must be known to choose settings for any target, and best for this one."""
        await self._roughly(lambda share: advance(0.4 * share))
        kept = []
        for top_k in recall.TOP_KS:
            kept.append(await self._finely(top_k, default_target(target_recall, top_k)))
            advance(0.7)
        if not all(kept):
            # Some data needs large pools: norms that vary much, or much noise.
            await self._measurement.measure_roughly(self._n_lists, recall.DEEP_POOL)

    def cheapest(self) -> dict[int, list[Point]]:
        """Return the settings worth using, by numbers of results."""
        found = {
            top_k: recall.cheapest(self._measurement.points(top_k), self._workload)
            for top_k in recall.TOP_KS
        }
        return {top_k: points for top_k, points in found.items() if points}

    def promised(self, target_recall: float) -> float | None:
        """Return the recall of the setting that is used for 10 results by default."""
        points = self.cheapest().get(recall.TOP_KS[0], [])
        reached = (point.recall for point in points if point.lower >= target_recall)
        return next(reached, points[-1].recall if points else None)

    async def _roughly(self, advance: Callable[[float], None]) -> None:
        """Measure from little recall to almost all."""
        probes = recall.Probes(self._n_lists)
        # The smaller number of results decides: the larger needs more of everything.
        top_k = recall.TOP_KS[0]
        for counts, is_last in ((probes.down(), recall.is_little), (probes.up(), recall.is_enough)):
            for n_probes in counts:
                pool = recall.pool_limit(n_probes, self._n_lists)
                await self._measurement.measure_roughly(n_probes, pool)
                advance(n_probes / self._n_lists)
                if is_last(self._measurement.points(top_k, n_probes)):
                    break

    async def _finely(self, top_k: int, target_recall: float) -> bool:
        """Measure the cheapest number of probes with many queries; return whether it will do.

        One that will not is followed by the next.
        """
        roughly = self._measurement.points(top_k)
        counts = recall.about(roughly, target_recall, self._n_lists)
        cheapest = await self._cheapest_count(counts, top_k, target_recall)
        for n_probes in counts[cheapest:]:
            await self._measure_for(top_k, target_recall, n_probes, _N_QUERIES_OF[top_k])
            if recall.reaches(self._measurement.points(top_k, n_probes), target_recall):
                return True
        return False

    async def _cheapest_count(self, counts: Sequence[int], top_k: int, target_recall: float) -> int:
        """Return at which place the number of probes is that seems to be the cheapest."""
        costs: list[float] = []
        for n_probes in counts:
            n_queries = _N_QUERIES_OF[top_k] // _SHARE_OF_CHOICE
            await self._measure_for(top_k, target_recall, n_probes, n_queries)
            points = self._measurement.points(top_k, n_probes)
            likely = recall.with_more_queries(points, _SHARE_OF_CHOICE)
            costs.append(recall.cost_us(likely, target_recall, self._workload))
            if np.isfinite(min(costs)) and costs[-1] > min(costs):
                break
        return int(np.argmin(costs)) if costs else 0

    async def _measure_for(
        self, top_k: int, target_recall: float, n_probes: int, n_queries: int
    ) -> None:
        """Measure one number of probes, with a pool that is surely enough for `top_k` results."""
        pools = [
            point.pool
            for point in self._measurement.points(top_k)
            if point.recall >= target_recall and point.n_probes >= n_probes
        ]
        limit = recall.pool_limit(n_probes, self._n_lists)
        enough = max(_MIN_POOL, round(_POOL_TO_SPARE * min(pools, default=limit)))
        await self._measurement.measure(top_k, n_probes, n_queries, min(limit, enough))


def _neighbours(
    index: Index, item_keys: Sequence[bytes], vectors: Matrix, queries: mixtures.Mixtures
) -> recall.Neighbours:
    """Return the neighbours of `queries`, to be shown every item; those in a query do not count."""
    rows = mixtures.directions(index.metric, vectors)
    mean = mixtures.mean_of(rows)
    parents = [
        (item_keys[first], item_keys[second])
        for first, second in zip(queries.first, queries.second, strict=True)
    ]
    return recall.Neighbours(index.metric, queries.vectors, parents, mean, _scale(rows - mean))


def _parts(queries: range) -> Iterator[slice]:
    """Yield a few queries at a time."""
    for start in range(queries.start, queries.stop, _QUERIES_AT_A_TIME):
        yield slice(start, min(start + _QUERIES_AT_A_TIME, queries.stop))


async def _all_of(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for all works; when one fails, end the others."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _queries(opened: KeyedIndex, vectors: Matrix) -> tuple[mixtures.Mixtures, Sequence[bytes]]:
    """Return queries, and what the database is asked for each: nothing that is asked of an item."""
    index, kind = opened.index, trainable(opened.index)
    made = mixtures.mixtures(
        index.metric, vectors, N_QUERIES, index.sketch_noise, np.random.default_rng()
    )
    of_items = set(kind.questions(opened, vectors))
    is_of_item = np.array(
        [question in of_items for question in kind.questions(opened, made.vectors)], bool
    )
    kept = made.without(is_of_item)
    return kept, kind.questions(opened, kept.vectors)


def _scale(centred: NDArray[np.float64]) -> float:
    """Return a typical length of the rows, 1 where there is none."""
    scale = float(np.sqrt(np.mean(np.vecdot(centred, centred)))) if centred.size else 1.0
    return scale if 0 < scale < np.inf else 1.0
