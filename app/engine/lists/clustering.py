"""k-means: the centroids of lists, and the list of each point.

Lloyd, *Least Squares Quantization in PCM*, IEEE Transactions on Information Theory 28, 1982. On the
unit sphere a point belongs to the centroid with the nearest direction (Dhillon & Modha, *Concept
Decompositions for Large Sparse Text Data using Clustering*, Machine Learning 42, 2001), elsewhere
to the nearest one. Either way a centroid is the plain mean of its points.

Nearly all the time goes into one matrix product a pass, so the arithmetic is BLAS in float32.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from app.domain import Matrix, Vector

# More points a list than these make hardly better lists (60,000 MiniLM embeddings, 512 lists).
SAMPLE_A_LIST = 58
_N_PASSES = 8
# Rows whose products with all centroids are in work at a time: they stay in the second-level cache.
_NUMBERS_AT_A_TIME = 1 << 20


@dataclass(frozen=True, eq=False)
class Centroids:
    """The centroids of lists (k, d), in the order of the lists' numbers; there is at least one."""

    points: Matrix
    is_spherical: bool

    def __len__(self) -> int:
        """Return the number of lists."""
        return len(self.points)

    @cached_property
    def _axes(self) -> Matrix:
        """What a point is multiplied with to see which list is its own."""
        if not self.is_spherical:
            return self.points
        norms = np.sqrt(np.vecdot(self.points, self.points))[:, None]
        norms[norms == 0] = 1
        axes: Matrix = self.points / norms
        return axes

    @cached_property
    def _halves(self) -> Vector:
        """Half the squared length of each axis: |x - c|² orders as -x·c + |c|²/2 does."""
        axes = self._axes
        if self.is_spherical:
            return np.zeros(len(axes), np.float32)
        squared: Vector = np.vecdot(axes, axes)
        return squared / np.float32(2)

    def lists_of(self, points: Matrix) -> NDArray[np.int32]:
        """Return the number of the list that each of `points` (n, d) belongs to."""
        lists = np.empty(len(points), np.int32)
        step = max(1, _NUMBERS_AT_A_TIME // len(self))
        nearness = np.empty((min(step, len(points)), len(self)), np.float32)
        for start in range(0, len(points), step):
            rows = points[start : start + step]
            near = np.matmul(rows, self._axes.T, out=nearness[: len(rows)])
            near -= self._halves
            lists[start : start + step] = near.argmax(axis=1)
        return lists

    def nearest_lists(self, point: Vector, n_lists: int) -> NDArray[np.intp]:
        """Return the `n_lists` lists whose centroids are nearest to `point` (d,), nearest first."""
        farness = self._halves - self._axes @ point
        if n_lists >= len(self):
            return np.argsort(farness, kind="stable")
        nearest = np.argpartition(farness, n_lists - 1)[:n_lists]
        return nearest[np.argsort(farness[nearest], kind="stable")]


def fit(
    sample: Matrix, n_lists: int, *, is_spherical: bool, random: np.random.Generator
) -> Centroids:
    """Return the centroids of at most `n_lists` lists, fitted to the points `sample` (n, d).

    There are fewer where the sample has fewer different points.
    """
    sample = sample[random.permutation(len(sample))]
    centroids = Centroids(_first(sample, n_lists), is_spherical)
    for _ in range(_N_PASSES):
        means, sizes = _means(sample, centroids)
        is_empty = sizes == 0
        if is_empty.any():
            means[is_empty] = _split(sample, centroids, sizes, random)
        centroids = Centroids(means, is_spherical)
    means, sizes = _means(sample, centroids)
    return Centroids(means[sizes > 0], is_spherical)


def automatic_n_lists(n_items: int, max_lists: int) -> int:
    """Return how many lists serve `n_items` best: twice their square root, as measured."""
    return max(1, min(max_lists, round(2 * math.sqrt(n_items))))


def _first(sample: Matrix, n_lists: int) -> Matrix:
    """Return different points to begin with, as many as there are up to `n_lists`."""
    # Twice as many as are wanted hold them as a rule, and are sorted sooner than all.
    different = _different(sample[: 2 * n_lists])
    if len(different) < n_lists:
        different = _different(sample)
    return sample[different[:n_lists]].copy()


def _different(rows: Matrix) -> NDArray[np.intp]:
    """Return the places of the first of each of the different `rows`, in order."""
    _, places = np.unique(rows, axis=0, return_index=True)
    return np.sort(places)


def _means(sample: Matrix, centroids: Centroids) -> tuple[Matrix, NDArray[np.intp]]:
    """Return mean and number of the points of each list; an empty list keeps its centroid."""
    lists = centroids.lists_of(sample)
    order = np.argsort(lists, kind="stable")
    ends = np.searchsorted(lists[order], np.arange(len(centroids) + 1)).tolist()
    means = centroids.points.copy()
    # A list at a time: sixteen times as fast as `np.add.reduceat` on all rows (measured).
    for number, (start, end) in enumerate(pairwise(ends)):
        if start < end:
            np.mean(sample[order[start:end]], axis=0, out=means[number])
    return means, np.diff(ends)


def _split(
    sample: Matrix, centroids: Centroids, sizes: NDArray[np.intp], random: np.random.Generator
) -> Matrix:
    """Return a point of each of the largest lists, one for each list that is empty."""
    lists = centroids.lists_of(sample)
    largest = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes == 0)]
    rows = [random.choice(np.flatnonzero(lists == number)) for number in largest if sizes[number]]
    return sample[np.resize(rows, len(largest))]
