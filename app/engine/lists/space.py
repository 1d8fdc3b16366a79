"""The space that lists lie in: points whose squared Euclidean distances order as the metric does.

    cosine                         x/|x|, whose squared distances are twice the cosine distances
    euclidean, squared_euclidean   (x - μ)/s, so that float32 neither overflows nor cancels

μ is `mean`, s is `scale`. The zero vector has cosine distance 1 from everything, but no place on
the sphere: its point is the centre, and whoever compares it says so (`is_nowhere`).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from app.domain import Matrix, Metric, Vector

# The squared distance on the unit sphere that the zero vector has from everything.
NOWHERE = 2.0
# Points farther out than this keep their direction only: their squares fit float32.
_MAX_NORM = 1e15
_ROWS_AT_A_TIME = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """A metric with a mean (d,) and a scale; for cosine they only say where most points lie."""

    metric: Metric
    mean: Vector = field(repr=False)
    scale: float = field(repr=False)

    @property
    def dimension(self) -> int:
        """Length of the vectors, and of the points."""
        return len(self.mean)

    @property
    def is_spherical(self) -> bool:
        """Whether all points have length 1."""
        return self.metric is Metric.COSINE

    @property
    def origin(self) -> Vector:
        """The point (d,) that stands in for the centroid of a list where there is no list."""
        return self.mean if self.is_spherical else np.zeros_like(self.mean)

    def points(self, vectors: Matrix) -> Matrix:
        """Return the point of each of `vectors` (n, d)."""
        points = np.empty(vectors.shape, np.float32)
        for start in range(0, len(vectors), _ROWS_AT_A_TIME):
            rows = slice(start, start + _ROWS_AT_A_TIME)
            points[rows] = self._place(vectors[rows].astype(np.float64))
        return points

    def _place(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.is_spherical:
            norms = _norms(rows)
            return rows / np.where(norms > 0, norms, 1)
        rows -= self.mean
        rows /= self.scale
        norms = _norms(rows)
        return rows * np.where(norms > _MAX_NORM, _MAX_NORM / np.maximum(norms, 1), 1)

    def is_nowhere(self, points: Matrix) -> NDArray[np.bool_]:
        """Whether each of `points` (n, d) is that of a zero vector which has no place."""
        if not self.is_spherical:
            return np.zeros(len(points), np.bool_)
        is_nowhere: NDArray[np.bool_] = np.logical_not(points.any(axis=1))
        return is_nowhere


def _norms(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the length of each row (n, d): shape (n, 1). In float64 no float32 overflows."""
    norms: NDArray[np.float64] = np.sqrt(np.vecdot(rows, rows))[:, None]
    return norms


def distances_to(point: Vector, points: Matrix) -> Vector:
    """Return the squared distance from `point` (d,) to each of `points` (n, d).

    A sum of squared differences, since the expanded form cancels for near points.
    """
    difference = points - point
    squared: Vector = np.vecdot(difference, difference)
    return squared
