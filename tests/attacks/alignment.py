"""Attacks without a known pair: lay the cloud of sketches over a cloud of vectors of similar text.

A sketch keeps angles, roughly, so both clouds have one shape and differ by the secret rotation.
After Dar, *mini-vec2vec*, arXiv 2510.02348, which aligns embedding spaces with linear maps alone:

1. Principal axes of both clouds, strongest first. Their signs: those under which the third moments
   of the two agree.
2. Match each sketch with the vector at the smallest angle, rotate (orthogonal Procrustes), repeat
   with more axes.
3. Match once more on all axes and regress vectors on sketches, which gives weak axes less weight.
   (Doing this repeatedly makes it worse: the estimates shrink towards the strong axes.)
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.domain import Matrix
from tests.attacks.decoders import ridge

_SIGNED_AXES = 14
_ROTATED_AXES = (14, 14, 16, 18, 20, 24, 28, 32, 36, 42, 48, 56, 64, 72, 84, 96, 110, 128, 128)
_N_MATCHED = 6_000
_N_REGRESSED = 16_000
_N_REFERENCE = 16_000
_STRENGTH = 0.1
_SIGN_STARTS = 200


@dataclass(frozen=True, slots=True)
class Cloud:
    """Points (n, k) with their principal axes as columns (k, k), strongest first, and their
    deviation along each.
    """

    points: Matrix
    axes: Matrix
    spread: Matrix

    @classmethod
    def of(cls, points: Matrix) -> "Cloud":
        """Centre `points` and find their axes."""
        points = points - points.mean(axis=0)
        values, axes = np.linalg.eigh(points.T @ points / len(points))
        return cls(points, axes[:, ::-1], np.sqrt(np.maximum(values[::-1], 1e-9)))

    def on_axes(self, n_axes: int, rows: NDArray[np.intp] | slice = slice(None)) -> Matrix:
        """Coordinates (rows, n_axes) on the strongest axes, each scaled to deviation 1."""
        scaled: Matrix = self.points[rows] @ (self.axes[:, :n_axes] / self.spread[:n_axes])
        return scaled


def align(signs: Matrix, reference: Matrix) -> Matrix:
    """Weights (m, d) that send sketches (n, m) to centred vectors like `reference` (k, d), found by
    matching alone.
    """
    sketches, vectors = Cloud.of(signs), Cloud.of(reference[:_N_REFERENCE])
    weights = _by_third_moments(sketches, vectors)
    rng = np.random.default_rng(0)
    for n_axes in _ROTATED_AXES:
        rows = rng.permutation(len(signs))[:_N_MATCHED]
        matched = _match(sketches.points[rows] @ weights, vectors, n_axes)
        weights = _rotation(sketches, rows, vectors, matched, n_axes)
    rows = rng.permutation(len(signs))[:_N_REGRESSED]
    matched = _match(sketches.points[rows] @ weights, vectors, vectors.points.shape[1])
    (weights,) = ridge(sketches.points[rows], vectors.points[matched], (_STRENGTH,))
    return weights


def _by_third_moments(sketches: Cloud, vectors: Cloud) -> Matrix:
    """Weights (m, d) that send the k-th strongest axis to the k-th strongest, with the signs that
    fit best.
    """
    n_axes = _SIGNED_AXES
    agreement = _third_moments(sketches.on_axes(n_axes)) * _third_moments(vectors.on_axes(n_axes))
    same = _best_signs(agreement) * vectors.spread[:n_axes] / sketches.spread[:n_axes]
    weights: Matrix = (sketches.axes[:, :n_axes] * same) @ vectors.axes[:, :n_axes].T
    return weights.astype(np.float32)


def _third_moments(points: Matrix) -> Matrix:
    """Mean of x_i x_j x_k over the points (n, k): shape (k, k, k)."""
    n_points, n_axes = points.shape
    pairs = (points[:, :, None] * points[:, None, :]).reshape(n_points, -1)
    moments: Matrix = (pairs.T @ points).reshape(n_axes, n_axes, n_axes) / n_points
    return moments


def _best_signs(agreement: Matrix) -> Matrix:
    """The signs s with the largest sum of s_i s_j s_k `agreement`_ijk, by coordinate ascent from
    many starts.
    """
    rng = np.random.default_rng(0)
    best, best_sum = np.ones(len(agreement), np.float32), -np.inf
    for _ in range(_SIGN_STARTS):
        signs = rng.choice([-1.0, 1.0], len(agreement)).astype(np.float32)
        before = None
        while before is None or not np.array_equal(before, signs):
            before = signs.copy()
            for axis in range(len(signs)):
                others = np.where(np.arange(len(signs)) == axis, 0, signs)
                signs[axis] = np.copysign(
                    1, 3 * others @ agreement[axis] @ others + agreement[axis, axis, axis]
                )
        total = float(np.einsum("i,j,k,ijk", signs, signs, signs, agreement))
        if total > best_sum:
            best, best_sum = signs, total
    return best


def _match(estimates: Matrix, vectors: Cloud, n_axes: int) -> NDArray[np.intp]:
    """Row of `vectors` at the smallest angle to each estimate (n, d) on the strongest axes."""
    scale = vectors.axes[:, :n_axes] / np.sqrt(vectors.spread[:n_axes])
    found = vectors.points @ scale
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    rows: NDArray[np.intp] = np.argmax((estimates @ scale) @ found.T, axis=1)
    return rows


def _rotation(
    sketches: Cloud, rows: NDArray[np.intp], vectors: Cloud, matched: NDArray[np.intp], n_axes: int
) -> Matrix:
    """Weights of the rotation that lays the rows best over what they matched (Schönemann,
    Psychometrika 1966).
    """
    n_axes = min(2 * n_axes, len(vectors.spread), len(sketches.spread))
    left, _, right = np.linalg.svd(
        sketches.on_axes(n_axes, rows).T @ vectors.on_axes(n_axes, matched)
    )
    into = sketches.axes[:, :n_axes] / sketches.spread[:n_axes]
    out_of = vectors.axes[:, :n_axes] * vectors.spread[:n_axes]
    weights: Matrix = into @ (left @ right) @ out_of.T
    return weights
