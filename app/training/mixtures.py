"""Queries for a calibration that are no stored items, and yet are like them.

A query's sketch goes to the database as it is, while a stored item's has noise. So a calibration
must not search for stored items. Each of its queries is a mixture of two: a is turned towards b
about the mean of all, x = μ + cos(φ)·(a - μ) + sin(φ)·(b - μ). Of vectors that are normally
distributed this is one more, with the same mean and spread. φ is such that the sketches of x and a
differ in as many bits as the noise flips, φ/π of all (Charikar, STOC 2002). b is the nearest of a
few items that are drawn at random: real vectors lie in clusters, which most mixtures of two random
items leave (docs/decisions/0091).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.domain import Matrix, Metric

_N_DRAWN = 8
# With less noise than this, there is little for a query to disclose.
_MIN_NOISE = 0.1
# Beyond this angle the mixture would be nearer to b than to a.
_MAX_ANGLE = math.pi / 4
_MAX_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Mixtures:
    """Queries (n, d), and for each the rows of the two items in it: (n,)."""

    vectors: Matrix
    first: NDArray[np.intp]
    second: NDArray[np.intp]

    def without(self, is_out: NDArray[np.bool_]) -> "Mixtures":
        """Return those that are not out."""
        return Mixtures(self.vectors[~is_out], self.first[~is_out], self.second[~is_out])


def mixtures(
    metric: Metric, items: Matrix, n_queries: int, noise: float, rng: np.random.Generator
) -> Mixtures:
    """Return up to `n_queries` mixtures of `items` (m, d), none of items that are all alike."""
    rows = directions(metric, items)
    first = np.arange(min(n_queries, len(rows)))
    second, distances = _nearest_of_few(rows, first, rng)
    angle = min(_MAX_ANGLE, math.pi * max(_MIN_NOISE, noise))
    mean = mean_of(rows)
    mixed = mean + math.cos(angle) * (rows[first] - mean) + math.sin(angle) * (rows[second] - mean)
    vectors = np.clip(mixed, -_MAX_FLOAT32, _MAX_FLOAT32).astype(np.float32)
    return Mixtures(vectors, first, second).without(~np.isfinite(distances))


def mean_of(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of rows (n, d), zero where there is none: (d,)."""
    mean: NDArray[np.float64] = rows.sum(axis=0) / max(1, len(rows))
    return mean


def directions(metric: Metric, vectors: Matrix) -> NDArray[np.float64]:
    """Return rows whose Euclidean distances are in the order of `metric`; zero rows stay zero."""
    rows = vectors.astype(np.float64)
    if metric is Metric.COSINE:
        norms = np.sqrt(np.vecdot(rows, rows))[:, None]
        norms[norms == 0] = 1
        rows /= norms
    return rows


def _nearest_of_few(
    rows: NDArray[np.float64], first: NDArray[np.intp], rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return for each row a near one that differs, and the squared distance; infinite if none."""
    nearest = np.full(len(first), np.inf)
    second = first.copy()
    for _ in range(_N_DRAWN if len(rows) > 1 else 0):
        drawn = (first + rng.integers(1, len(rows), len(first))) % len(rows)
        difference = rows[drawn] - rows[first]
        distances = np.vecdot(difference, difference)
        is_nearer = (distances > 0) & (distances < nearest)
        second[is_nearer], nearest[is_nearer] = drawn[is_nearer], distances[is_nearer]
    return second, nearest
