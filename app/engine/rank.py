"""Exact reordering of the candidates that the approximate scan returned."""

import numpy as np
from numpy.typing import NDArray

from app.domain import Matrix, Metric, Vector
from app.engine import distance


def nearest(
    metric: Metric, query: Vector, candidates: Matrix, top_k: int
) -> tuple[NDArray[np.intp], Vector]:
    """Return the rows of `candidates` (n, d) nearest to `query` (d,) and their distances, nearest first.

    Both answers have length min(`top_k`, n); among equal distances the lower row comes first.
    """
    distances = distance.distances(metric, query, candidates)
    order = np.argsort(distances, kind="stable")[:top_k]
    return order, distances[order]
