"""Recall by probes and pool: which setting of a search is the cheapest that keeps a promise.

The exact neighbours of queries are found by looking at every vector once (`Neighbours`); a search
then says at which place of its candidates each of them comes, for a growing number of probes. A
pool of P candidates finds those whose place is at most P, so one search tells the recall of every
pool.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from app.domain import ITEM_KEY_BYTES, Matrix, Metric
from app.engine.costs import Workload
from app.engine.profile import Point
from app.training.mixtures import directions

# A search is measured for these, and taken to lie between them for every other number of results.
TOP_KS = (10, 100)
MAX_POOL = 2_000
# Measured with all lists only, where no smaller pool keeps the promise.
DEEP_POOL = 10_000

_ITEM_KEY = f"V{ITEM_KEY_BYTES}"
_POOL_STEP = 1.1
# Recall measured on a sample is uncertain. A promise is kept if the recall is above it by this many
# standard errors: with two, hardly one in forty samples is that lucky.
_STANDARD_ERRORS = 2.0
# Outside these, a recall is not worth measuring.
_LITTLE, _ENOUGH = 0.75, 0.985
_PROBE_STEP = 1.6
_FINE_STEP = _PROBE_STEP ** (1 / 2)
_N_TRIED = 7
# The middle of the range is one list in ten.
_MIDDLE = 10
# Distances this close are equal: then it is a matter of taste which item is the nearer.
_TIE = 1e-6
_MIN_CLEAR_QUERIES = 30


class Neighbours:
    """The exact nearest neighbours of queries among all items, which are shown a chunk at a time.

    The items that a query is made of do not count: `parents` names for each query theirs. Memory
    does not grow with the number of items. Vectors are compared after `mean` and `scale` are taken
    out, which changes no order and keeps float32 from overflowing or cancelling.
    """

    def __init__(
        self,
        metric: Metric,
        queries: Matrix,
        parents: Sequence[Sequence[bytes]],
        mean: NDArray[np.float64],
        scale: float,
    ) -> None:
        self._metric, self._mean, self._scale = metric, mean, scale
        self._queries_of: dict[bytes, list[int]] = {}
        for query, item_keys in enumerate(parents):
            for item_key in item_keys:
                self._queries_of.setdefault(item_key, []).append(query)
        self._queries = self._prepared(queries)
        # One more than is asked for shows whether the last place is shared.
        shape = (len(queries), max(TOP_KS) + 1)
        self._distances = np.full(shape, np.inf, np.float32)
        self._item_keys = np.zeros(shape, _ITEM_KEY)

    def add(self, item_keys: Sequence[bytes], vectors: Matrix) -> None:
        """Look at some items: their keys and vectors (n, d)."""
        distances = self._distances_to(item_keys, vectors)
        n_kept = self._distances.shape[1]
        positions, nearer = _smaller(distances, self._distances[:, -1:], n_kept)
        if positions.size:
            keys = np.frombuffer(b"".join(item_keys), _ITEM_KEY)[positions]
            self._keep_nearest(nearer, keys)

    def _keep_nearest(self, distances: NDArray[np.float32], keys: NDArray[np.void]) -> None:
        """Keep the nearest of those known so far and of new ones: (queries, new)."""
        n_kept = self._distances.shape[1]
        together = np.concatenate([self._distances, distances], axis=1)
        order = np.argsort(together, axis=1, kind="stable")[:, :n_kept]
        self._distances = np.take_along_axis(together, order, axis=1)
        keys = np.concatenate([self._item_keys, keys], axis=1)
        self._item_keys = np.take_along_axis(keys, order, axis=1)

    def item_keys(self) -> list[list[bytes]]:
        """Return the keys of the neighbours of each query, nearest first, at most as `TOP_KS`."""
        counts = np.isfinite(self._distances[:, :-1]).sum(axis=1)
        return [
            [key.tobytes() for key in row[:n]]
            for row, n in zip(self._item_keys, counts, strict=True)
        ]

    def clear(self, top_k: int) -> NDArray[np.bool_]:
        """Return for which queries it is clear who the `top_k` nearest are: shape (n,).

        Among copies of one item it is not, and whether a search returns this or that copy says
        nothing of its recall.
        """
        last, following = self._distances[:, top_k - 1], self._distances[:, top_k]
        spread = np.maximum(np.abs(last), 1)
        clear: NDArray[np.bool_] = ~(np.isfinite(following) & (following - last <= _TIE * spread))
        return clear if clear.sum() >= _MIN_CLEAR_QUERIES else np.ones_like(clear)

    def _distances_to(self, item_keys: Sequence[bytes], vectors: Matrix) -> NDArray[np.float32]:
        """Return what orders items as their distances do, infinite for parents: (queries, n)."""
        rows = self._prepared(vectors)
        distances: NDArray[np.float32] = self._queries @ (-2 * rows).T
        distances += np.vecdot(rows, rows)
        for position, item_key in enumerate(item_keys):
            for query in self._queries_of.get(item_key, ()):
                distances[query, position] = np.inf
        return distances

    def _prepared(self, vectors: Matrix) -> Matrix:
        rows = directions(self._metric, vectors)
        if self._metric is not Metric.COSINE:
            # Half the squared distance of unit vectors is the cosine distance, with or without
            # their mean.
            rows = (rows - self._mean) / self._scale
        prepared: Matrix = rows.astype(np.float32)
        return prepared


def _smaller(
    values: NDArray[np.float32], limits: NDArray[np.float32], n_most: int
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return positions and values of the smallest in each row, up to `n_most`, all below its limit.

    Rows that have fewer are filled up with infinity. Soon hardly any value is below: looking for
    those is cheaper than ordering all.
    """
    is_below = values < limits
    if is_below.sum(axis=1).max(initial=0) > n_most:
        positions = np.argpartition(values, n_most - 1, axis=1)[:, :n_most]
        return positions, np.take_along_axis(values, positions, axis=1)
    return _gathered(values, is_below)


def _gathered(
    values: NDArray[np.float32], is_wanted: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return positions and values of what is wanted in each row, filled up with infinity."""
    rows, columns = np.nonzero(is_wanted)
    counts = is_wanted.sum(axis=1)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = (len(values), int(counts.max(initial=0)))
    positions, found = np.zeros(shape, np.intp), np.full(shape, np.inf, np.float32)
    positions[rows, places], found[rows, places] = columns, values[rows, columns]
    return positions, found


class Probes:
    """Which numbers of probes to measure: from the middle down while recall is high, then up.

    Few probes cost little to measure and many cost much, so the way up ends as soon as recall is
    high enough.
    """

    def __init__(self, n_lists: int) -> None:
        counts = {1, n_lists} | {min(n_lists, round(_PROBE_STEP**power)) for power in range(1, 40)}
        self._counts = sorted(counts)
        self._middle = next(i for i, count in enumerate(self._counts) if count * _MIDDLE >= n_lists)

    def down(self) -> list[int]:
        """Return the counts from the middle down to 1."""
        return self._counts[self._middle :: -1]

    def up(self) -> list[int]:
        """Return the counts above the middle."""
        return self._counts[self._middle + 1 :]


def pool_limit(n_probes: int, n_lists: int) -> int:
    """Return the largest pool worth measuring: few lists hold few good candidates."""
    return min(MAX_POOL, max(4 * max(TOP_KS), MAX_POOL * 2 * n_probes // n_lists))


def ranks(
    neighbours: Sequence[Sequence[bytes]], candidates: Sequence[bytes]
) -> NDArray[np.float32]:
    """Return the place of each neighbour among the candidates, from 1; infinite if not among them.

    `neighbours` are the item keys of each query's, `candidates` the item keys of each query's
    joined to one value. Shape (queries, largest of `TOP_KS`).
    """
    answer = np.full((len(neighbours), max(TOP_KS)), np.inf, np.float32)
    for query, (wanted, joined) in enumerate(zip(neighbours, candidates, strict=True)):
        places = {
            joined[start : start + ITEM_KEY_BYTES]: start // ITEM_KEY_BYTES + 1
            for start in range(0, len(joined), ITEM_KEY_BYTES)
        }
        answer[query, : len(wanted)] = [places.get(item_key, np.inf) for item_key in wanted]
    return answer


def measure(
    n_probes: int, limit: int, found: NDArray[np.float32], clear: NDArray[np.bool_], top_k: int
) -> list[Point]:
    """Return recall@`top_k` with `n_probes` for each pool up to `limit` that is worth asking for.

    `found` are the `ranks` of the neighbours; queries that are not `clear` do not count.
    """
    near = found[clear, :top_k]
    if not near.size:
        return []
    return [_point(n_probes, pool, near) for pool in _pools(top_k, limit)]


def _point(n_probes: int, pool: int, near: NDArray[np.float32]) -> Point:
    recalls = (near <= pool).mean(axis=1)
    recall = float(recalls.mean())
    margin = _STANDARD_ERRORS * float(recalls.std()) / len(recalls) ** 0.5
    return Point(n_probes, pool, round(recall, 4), round(recall - margin, 4))


def is_little(points: Sequence[Point]) -> bool:
    """Whether fewer probes would find too little."""
    return not points or max(point.recall for point in points) < _LITTLE


def is_enough(points: Sequence[Point]) -> bool:
    """Whether more probes would find hardly more."""
    return not points or max(point.lower for point in points) >= _ENOUGH


def reaches(points: Sequence[Point], target_recall: float) -> bool:
    """Whether some setting keeps `target_recall`."""
    return any(point.lower >= target_recall for point in points)


def about(points: Sequence[Point], target_recall: float, n_lists: int) -> list[int]:
    """Return which numbers of probes to try for `target_recall`, as `points` roughly tell.

    The numbers grow, from one that is rather too low to one that is surely enough. None is worth a
    try when no point has the recall.
    """
    reached = [point.n_probes for point in points if point.recall >= target_recall]
    if not reached:
        return []
    low = min(reached) / _FINE_STEP
    return sorted(
        {max(1, min(n_lists, round(low * _FINE_STEP**power))) for power in range(_N_TRIED)}
    )


def with_more_queries(points: Sequence[Point], times: float) -> list[Point]:
    """Return `points` as they would promise, had as many times more queries found the same."""
    return [
        point._replace(lower=point.recall - (point.recall - point.lower) / math.sqrt(times))
        for point in points
    ]


def cost_us(points: Sequence[Point], target_recall: float, workload: Workload) -> float:
    """Return the time of the cheapest setting that keeps `target_recall`; infinite if none does."""
    costs = (
        workload.cost_us(point.n_probes, point.pool)
        for point in points
        if point.lower >= target_recall
    )
    return min(costs, default=math.inf)


def cheapest(points: Sequence[Point], workload: Workload) -> list[Point]:
    """Return the points of which no other has more recall for less time, in the order of both."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: workload.cost_us(point.n_probes, point.pool)):
        if not kept or point.lower > kept[-1].lower:
            kept.append(point)
    return kept


def _pools(top_k: int, limit: int) -> Iterator[int]:
    pool = float(top_k)
    while pool < limit:
        yield round(pool)
        pool *= _POOL_STEP
    yield limit
