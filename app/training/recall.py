"""Recall by probes and pool, measured on stored items: which setting of a search is the cheapest that keeps a promise.

The exact neighbours of a few sampled items are found by looking at every vector once
(`Neighbours`); PostgreSQL then says at which place of the candidates each of them comes, for a
growing number of probes. A pool of P candidates finds those whose place is at most P, so one scan
tells the recall of every pool.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from app.domain import Matrix, Metric
from app.engine.costs import Workload
from app.engine.profile import Point

# A search is measured for these, and taken to lie between them for every other number of results.
TOP_KS = (10, 100)
MAX_POOL = 2_000
# Measured with all lists only, where no smaller pool keeps the promise.
DEEP_POOL = 10_000

_POOL_STEP = 1.2
# Recall measured on a sample is uncertain; a promise is kept if the recall is above it by so many
# standard errors.
_STANDARD_ERRORS = 1.5
# With few queries, the best of many settings owes more to luck.
_STANDARD_ERRORS_OF_FEW = 2.0
_FEW_QUERIES = 100
# Outside these, a recall is not worth measuring.
_LITTLE, _ENOUGH = 0.75, 0.985
_PROBE_STEP = 1.6
_FINE_STEP = _PROBE_STEP**0.5
_N_FINE_STEPS = 5
# The middle of the range is one list in so many.
_MIDDLE = 10
# Distances this close are equal: then it is a matter of taste which item is the nearer.
_TIE = 1e-6
_MIN_CLEAR_QUERIES = 30


class Neighbours:
    """The exact nearest neighbours of a few items among all, which are shown a chunk at a time.

    Memory does not grow with the number of items. Vectors are compared after `mean` and `scale` are
    taken out, which changes no order and keeps float32 from overflowing or cancelling.
    """

    def __init__(
        self,
        metric: Metric,
        item_keys: Sequence[bytes],
        queries: Matrix,
        mean: Matrix,
        scale: float,
    ) -> None:
        self._metric, self._mean, self._scale = metric, mean, scale
        self._own = {item_key: row for row, item_key in enumerate(item_keys)}
        self._queries = self._prepared(queries)
        # One more than is asked for shows whether the last place is shared.
        shape = (len(queries), max(TOP_KS) + 1)
        self._distances = np.full(shape, np.inf, np.float32)
        self._item_keys = np.zeros(shape, "V16")

    def add(self, item_keys: Sequence[bytes], vectors: Matrix) -> None:
        """Look at some items: their keys and vectors (n, d)."""
        rows = self._prepared(vectors)
        distances = -2 * (self._queries @ rows.T)
        distances += np.vecdot(rows, rows)
        for position, item_key in enumerate(item_keys):
            if item_key in self._own:
                distances[self._own[item_key], position] = np.inf
        n_kept = self._distances.shape[1]
        if len(item_keys) > n_kept:
            near = np.argpartition(distances, n_kept - 1, axis=1)[:, :n_kept]
        else:
            near = np.broadcast_to(np.arange(len(item_keys)), distances.shape)
        keys = np.frombuffer(b"".join(item_keys), "V16")[near]
        together = np.concatenate(
            [self._distances, np.take_along_axis(distances, near, axis=1)], axis=1
        )
        keys = np.concatenate([self._item_keys, keys], axis=1)
        order = np.argsort(together, axis=1, kind="stable")[:, :n_kept]
        self._distances = np.take_along_axis(together, order, axis=1)
        self._item_keys = np.take_along_axis(keys, order, axis=1)

    def item_keys(self) -> list[list[bytes]]:
        """Return the keys of the neighbours of each item, nearest first, as many as `TOP_KS` asks for at most."""
        counts = np.isfinite(self._distances[:, :-1]).sum(axis=1)
        return [
            [key.tobytes() for key in row[:n]]
            for row, n in zip(self._item_keys, counts, strict=True)
        ]

    def clear(self, top_k: int) -> NDArray[np.bool_]:
        """Return for which items it is clear who the `top_k` nearest are: shape (n,).

        Among copies of one item it is not, and whether a search returns this or that copy says
        nothing of its recall.
        """
        last, following = self._distances[:, top_k - 1], self._distances[:, top_k]
        spread = np.maximum(np.abs(last), 1)
        clear: NDArray[np.bool_] = ~(np.isfinite(following) & (following - last <= _TIE * spread))
        return clear if clear.sum() >= _MIN_CLEAR_QUERIES else np.ones_like(clear)

    def _prepared(self, vectors: Matrix) -> Matrix:
        rows = vectors.astype(np.float64)
        if self._metric is Metric.COSINE:
            norms = np.sqrt(np.vecdot(rows, rows))[:, None]
            norms[norms == 0] = 1
            # Half the squared distance of unit vectors is the cosine distance, with or without
            # their mean.
            rows /= norms
        else:
            rows = (rows - self._mean) / self._scale
        prepared: Matrix = rows.astype(np.float32)
        return prepared


class Probes:
    """Which numbers of probes to measure: from the middle of the range down while recall is high, then up.

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
    """Return the largest pool worth measuring: a search that reads few lists gains nothing by many candidates."""
    return min(MAX_POOL, max(4 * max(TOP_KS), MAX_POOL * 2 * n_probes // n_lists))


def ranks(
    neighbours: Sequence[Sequence[bytes]], candidates: Sequence[bytes]
) -> NDArray[np.float32]:
    """Return the place of each neighbour among the candidates of its query, from 1; infinite for one not among them.

    `neighbours` are the item keys of each query's, `candidates` the item keys of each query's
    joined to one value. Shape (queries, most neighbours).
    """
    answer = np.full((len(neighbours), max(map(len, neighbours), default=0)), np.inf, np.float32)
    for query, (wanted, joined) in enumerate(zip(neighbours, candidates, strict=True)):
        places = {
            joined[start : start + 16]: start // 16 + 1 for start in range(0, len(joined), 16)
        }
        answer[query, : len(wanted)] = [places.get(item_key, np.inf) for item_key in wanted]
    return answer


def measure(
    n_probes: int, limit: int, found: NDArray[np.float32], clear: NDArray[np.bool_], top_k: int
) -> list[Point]:
    """Return the recall@`top_k` with `n_probes` for every pool up to `limit` that is worth asking for.

    `found` are the `ranks` of the neighbours; queries that are not `clear` do not count.
    """
    near = found[clear, :top_k]
    if not near.size:
        return []
    n_errors = _STANDARD_ERRORS_OF_FEW if len(near) < _FEW_QUERIES else _STANDARD_ERRORS
    points = []
    for pool in _pools(top_k, limit):
        recalls = (near <= pool).mean(axis=1)
        error = n_errors * float(recalls.std()) / len(recalls) ** 0.5
        recall = float(recalls.mean())
        points.append(Point(n_probes, pool, round(recall, 4), round(recall - error, 4)))
    return points


def is_little(points: Sequence[Point]) -> bool:
    """Whether fewer probes would find too little."""
    return not points or max(point.recall for point in points) < _LITTLE


def is_enough(points: Sequence[Point]) -> bool:
    """Whether more probes would find hardly more."""
    return not points or max(point.lower for point in points) >= _ENOUGH


def reaches(points: Sequence[Point], target_recall: float) -> bool:
    """Whether some setting keeps `target_recall`."""
    return any(point.lower >= target_recall for point in points)


def about(points: Sequence[Point], target_recall: float, n_lists: int) -> tuple[int, list[int]]:
    """Return a number of probes that is too low to keep `target_recall`, as `points` roughly tell, and which to try.

    These grow until they are surely enough; none is worth a try when no point has the recall.
    """
    reached = {point.n_probes for point in points if point.recall >= target_recall}
    if not reached:
        return 1, []
    high = min(reached)
    low = max((point.n_probes for point in points if point.n_probes < high), default=1)
    return low, sorted(
        {min(n_lists, round(high * _FINE_STEP**power)) for power in range(_N_FINE_STEPS)}
    )


def between(low: int, high: int) -> int:
    """Return the number of probes in the middle of two."""
    return round(math.sqrt(low * high))


def add(points: dict[int, list[Point]], measured: Mapping[int, Sequence[Point]]) -> None:
    """Add what was `measured` to `points`, by numbers of results."""
    for top_k, new in measured.items():
        points[top_k] += new


def replace(points: dict[int, list[Point]], measured: Mapping[int, Sequence[Point]]) -> None:
    """Add what was `measured` with more queries, and forget what fewer queries said of as many probes."""
    for top_k, new in measured.items():
        better = {point.n_probes for point in new}
        points[top_k][:] = [point for point in points[top_k] if point.n_probes not in better]
    add(points, measured)


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
