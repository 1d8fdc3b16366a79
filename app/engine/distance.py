"""Exact distances between a query and the rows of a matrix, by the contract's formulas.

All arithmetic is float32 where that is sound and float64 where float32 would overflow or underflow;
answers are float32. An identical vector has distance exactly 0, and copies of a vector have the
same distance: each row is multiplied on its own, because a matrix product rounds a row by its place
in the matrix.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.domain import Matrix, Metric, Vector

_MAX_FLOAT32 = np.finfo(np.float32).max

# Squared norms in this range lose nothing in float32; outside it, products may overflow or vanish.
_SAFE_SQUARED_NORM = (1e-25, 1e25)

# Rounding may leave a vector so far away from itself; what is nearer is compared.
_NEARLY_SAME = 1e-6


def distances(metric: Metric, query: Vector, candidates: Matrix) -> Vector:
    """Distance by `metric` from `query` (d,) to each row of `candidates` (n, d): shape (n,)."""
    return bounded(unbounded(metric, query, candidates))


def unbounded(metric: Metric, query: Vector, candidates: Matrix) -> NDArray[np.floating]:
    """Return what candidates are ranked by: distances, in float64 where float32 is too small."""
    if metric is Metric.COSINE:
        return cosine(query, candidates)
    squared = _squared_euclidean(query, candidates)
    return np.sqrt(squared) if metric is Metric.EUCLIDEAN else squared


def bounded(distances: NDArray[np.floating]) -> Vector:
    """Return distances as they are answered: float32, and never infinite."""
    answer: Vector = np.minimum(distances, _MAX_FLOAT32).astype(np.float32)
    return answer


def cosine(query: Vector, candidates: Matrix) -> Vector:
    """1 - q·v / (|q||v|) from `query` (d,) to each of `candidates` (n, d), within 0..2: (n,).

    The zero vector is at distance exactly 1 from everything.
    """
    with np.errstate(over="ignore"):
        query_norm, norms = float(np.vecdot(query, query)), np.vecdot(candidates, candidates)
    if _are_safe(query_norm, query_norm) and _are_safe(norms.min(initial=1), norms.max(initial=1)):
        # Not the root of the product, which may be out of range.
        similarity = np.vecdot(candidates, query) / (math.sqrt(query_norm) * np.sqrt(norms))
    else:
        similarity = np.vecdot(_unit(candidates), _unit(query[None]))
    answer: Vector = np.clip(1 - similarity, 0, 2).astype(np.float32, copy=False)
    near = np.flatnonzero(answer < _NEARLY_SAME)
    if near.size:
        answer[near[(candidates[near] == query).all(axis=1)]] = 0
    return answer


def _squared_euclidean(query: Vector, candidates: Matrix) -> Vector:
    # A sum of squared differences. The expanded form |x|² - 2xy + |y|² is one matrix product, but
    # cancels badly for near neighbours, the only ones that reranking is for.
    with np.errstate(over="ignore"):
        difference = candidates - query
        squared: Vector = np.vecdot(difference, difference)
    is_positive = squared > 0
    has_vanished = difference[~is_positive].any()
    if not has_vanished and _are_safe(
        squared.min(where=is_positive, initial=1), squared.max(initial=1)
    ):
        return squared
    exact = candidates.astype(np.float64) - query
    widened: Vector = np.vecdot(exact, exact)
    return widened


def _are_safe(smallest: float, largest: float) -> bool:
    """Whether squared norms from `smallest` to `largest` are."""
    low, high = _SAFE_SQUARED_NORM
    return low < smallest and largest < high


def _unit(rows: Matrix) -> Any:
    """Return `rows` (n, d) in float64, each scaled to length 1; zero rows stay zero."""
    largest = np.abs(rows).max(axis=1, keepdims=True).astype(np.float64)
    scaled = np.divide(rows, largest, out=np.zeros(rows.shape), where=largest > 0)
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    np.divide(scaled, norms, out=scaled, where=norms > 0)
    return scaled
