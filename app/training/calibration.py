"""Measuring the recall of an ivfflat index, before any query uses it (`search.calibrate` has the arithmetic).

Every number of probes is measured with a few queries, to see where the target lies; then those
about there with many, since what a search costs every day depends on how well that is known.
Searches that go on meanwhile come first.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.ext.asyncio import AsyncEngine

from app.domain import Index
from app.engine import profile
from app.engine.costs import Workload
from app.engine.keyed import KeyedIndex
from app.engine.opening import chunk_items, open_vectors
from app.engine.sketches import samples
from app.settings import Settings
from app.training import recall
from app.training.traffic import Traffic

# Points of a profile for each of `recall.TOP_KS`.
Points: TypeAlias = dict[int, list[profile.Point]]

_N_QUERIES = 200
_N_ROUGHLY = 60
_N_SIZES = 100
_QUERIES_AT_A_TIME = 10
# While searches are under way, the pass over all vectors, which goes on beside the build, rests
# after each chunk for so many times as long as that took.
_REST = 2.0
# Statements under way at once; only one while searches are under way.
_N_STREAMS = 2


@dataclass(frozen=True, slots=True)
class Calibration:
    """Sampled items: their exact neighbours, and their sketches as those of queries."""

    neighbours: recall.Neighbours
    item_keys: Sequence[Sequence[bytes]]
    sketches: Sequence[bytes]


class Calibrator:
    """Finds out how many probes and candidates a search needs."""

    def __init__(self, engine: AsyncEngine, settings: Settings, traffic: Traffic) -> None:
        self._engine = engine
        self._settings = settings
        self._traffic = traffic

    async def neighbours(self, opened: KeyedIndex) -> Calibration:
        """Find the exact neighbours of some items among all others."""
        index, encoder = opened.index, opened.next_encoder or opened.encoder
        assert encoder is not None  # noqa: S101 - an index with items has an encoder
        async with self._engine.connect() as connection:
            rows = await samples.vectors_after(connection, index, b"", _N_QUERIES)
            queries = await open_vectors(opened, rows)
            item_keys = [item_key for item_key, _ in rows]
            parameters = encoder.parameters
            neighbours = recall.Neighbours(
                index.metric, item_keys, queries, parameters.mean, parameters.scale
            )
            async for chunk in samples.all_vectors(
                connection, index, chunk_items(encoder.dimension)
            ):
                began = time.monotonic()
                vectors = await open_vectors(opened, chunk)
                await asyncio.to_thread(
                    neighbours.add, [item_key for item_key, _ in chunk], vectors
                )
                if not self._traffic.is_quiet():
                    await asyncio.sleep(_REST * (time.monotonic() - began))
        sketches = await asyncio.to_thread(encoder.encode_queries, queries)
        return Calibration(neighbours, neighbours.item_keys(), [row.tobytes() for row in sketches])

    async def profile(
        self, index: Index, n_items: int, known: Calibration, advance: Callable[[float], None]
    ) -> dict[str, Any]:
        """Return what the row of `index` keeps of a calibration; `advance` is told which share of it is done."""
        points = await self._measure(index, known, advance)
        async with self._engine.connect() as connection:
            sizes = await samples.list_sizes(connection, index, _N_SIZES)
        workload = Workload(n_items, index.n_lists, index.dimension or 1, index.sketch_bits or 0)
        kept = {top_k: recall.cheapest(measured, workload) for top_k, measured in points.items()}
        at_ten, target = kept[recall.TOP_KS[0]], self._settings.target_recall
        reached = next(
            (point for point in at_ten if point.lower >= target), at_ten[-1] if at_ten else None
        )
        return {
            "n_items": n_items,
            "target": target,
            "recall": reached.recall if reached else None,
            "imbalance": imbalance(sizes, n_items, index.n_lists),
            "points": {
                str(top_k): [list(point) for point in measured]
                for top_k, measured in kept.items()
                if measured
            },
        }

    async def _measure(
        self, index: Index, known: Calibration, advance: Callable[[float], None]
    ) -> Points:
        """Return the recall of searches for each of `recall.TOP_KS`, by probes and pool."""
        points = await self._measure_roughly(index, known, lambda share: advance(0.5 * share))
        targets = {
            top_k: profile.default_target(self._settings.target_recall, top_k)
            for top_k in recall.TOP_KS
        }
        finely: dict[int, Points] = {}

        async def keeps(top_k: int, n_probes: int) -> bool:
            if n_probes not in finely:
                finely[n_probes] = await self._measure_probes(index, known, n_probes, _N_QUERIES)
                recall.replace(points, finely[n_probes])
            return recall.reaches(finely[n_probes][top_k], targets[top_k])

        for top_k, target in targets.items():
            low, counts = recall.about(points[top_k], target, index.n_lists)
            for n_probes in counts:
                if await keeps(top_k, n_probes):
                    await keeps(top_k, recall.between(low, n_probes))
                    break
                low = n_probes
            advance(0.75)
        if not all(recall.reaches(points[top_k], target) for top_k, target in targets.items()):
            # Some data needs large pools: norms that vary much, or much noise.
            recall.add(
                points,
                await self._measure_probes(index, known, index.n_lists, _N_ROUGHLY, is_deep=True),
            )
        return points

    async def _measure_roughly(
        self, index: Index, known: Calibration, advance: Callable[[float], None]
    ) -> Points:
        points: Points = {top_k: [] for top_k in recall.TOP_KS}
        probes = recall.Probes(index.n_lists)
        for counts, is_last in ((probes.down(), recall.is_little), (probes.up(), recall.is_enough)):
            for n_probes in counts:
                measured = await self._measure_probes(index, known, n_probes, _N_ROUGHLY)
                recall.add(points, measured)
                advance(n_probes / index.n_lists)
                # The smaller number of results decides: the larger needs more of everything.
                if is_last(measured[recall.TOP_KS[0]]):
                    break
        return points

    async def _measure_probes(
        self,
        index: Index,
        known: Calibration,
        n_probes: int,
        n_queries: int,
        *,
        is_deep: bool = False,
    ) -> Points:
        """Return the points for a number of probes, measured with the first `n_queries` queries."""
        pool = recall.DEEP_POOL if is_deep else recall.pool_limit(n_probes, index.n_lists)
        neighbours = known.item_keys[:n_queries]
        starts = iter(range(0, len(neighbours), _QUERIES_AT_A_TIME))
        found: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(neighbours)

        async def measure(number: int) -> None:
            async with self._engine.connect() as connection:
                while number == 0 or self._traffic.is_quiet():
                    start = next(starts, None)
                    if start is None:
                        return
                    part = slice(start, min(start + _QUERIES_AT_A_TIME, len(neighbours)))
                    candidates = await samples.candidate_keys(
                        connection, index, known.sketches[part], pool=pool, n_probes=n_probes
                    )
                    found[part] = await asyncio.to_thread(
                        recall.ranks, neighbours[part], candidates
                    )
                    await connection.rollback()

        streams = [asyncio.create_task(measure(number)) for number in range(_N_STREAMS)]
        try:
            await asyncio.gather(*streams)
        finally:
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
        width = max(map(len, found), default=0)
        ranks = np.array(
            [np.pad(row, (0, width - len(row)), constant_values=np.inf) for row in found]
        )
        return {
            top_k: recall.measure(
                n_probes, pool, ranks, known.neighbours.clear(top_k)[:n_queries], top_k
            )
            for top_k in recall.TOP_KS
        }


def imbalance(sizes: Sequence[int], n_items: int, n_lists: int) -> float | None:
    """Return how much larger the list of an average item is than the average list; 1 when all are of one size."""
    if not sizes or not n_items:
        return None
    return round(float(np.mean(sizes)) * n_lists / n_items, 3)
