"""The true nearest items, by plain arithmetic in float64 that shares no code with the service."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.domain import Matrix, Metric

# What the service's float32 may be wrong by: a share of the distance, and for cosine a part of one.
_ROUNDING = 1e-5
_COSINE_ROUNDING = 2e-6
# No distance is answered that float32 does not have.
_MAX_DISTANCE = float(np.finfo(np.float32).max)


def distances(metric: Metric, query: Matrix, vectors: Matrix) -> NDArray[np.float64]:
    """Return the distance of each of `vectors` (n, d) from `query` (d,): shape (n,)."""
    rows, point = vectors.astype(np.float64), query.astype(np.float64)
    if metric is Metric.COSINE:
        exact = 1 - _unit(rows) @ _unit(point[None])[0]
    else:
        squared = ((rows - point) ** 2).sum(axis=1)
        exact = np.sqrt(squared) if metric is Metric.EUCLIDEAN else squared
    limited: NDArray[np.float64] = np.minimum(exact, _MAX_DISTANCE)
    return limited


def recall(exact: NDArray[np.float64], metric: Metric, found: Sequence[int], top_k: int) -> float:
    """Return the share of the `top_k` nearest that is in the rows `found`.

    What is as near as the last of them counts. `exact` (n,) are the true distances of all items.
    """
    n_true = min(top_k, len(exact))
    farthest = np.partition(exact, n_true - 1)[n_true - 1]
    limit = farthest + _ROUNDING * abs(farthest)
    if metric is Metric.COSINE:
        limit += _COSINE_ROUNDING
    different = list(dict.fromkeys(found))[:top_k]
    return int((exact[different] <= limit).sum()) / n_true


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.sqrt((rows**2).sum(axis=1, keepdims=True))
    unit: NDArray[np.float64] = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return unit
