"""Attacks with known pairs: from sketches whose vectors are known to vectors of all others.

Every attacker here has more than a real one: the mean of the vectors, and the strength of
regularisation that turns out best on the very items that are judged.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from app.domain import Matrix

_STRENGTHS = (0.003, 0.03, 0.1, 0.3, 1.0, 3.0, 30.0)
# Of .003, .03 and .3, and of 25 and 60 steps, none is better by more than .001 (measured at 200 and
# 2,000 pairs).
_LOGISTIC_STRENGTH = 0.03
_LOGISTIC_STEPS = 25


def mean_cosine(estimates: Matrix, truth: Matrix) -> float:
    """Mean cosine between rows (n, d); the rows of `truth` have length 1, an estimate of length 0
    counts 0.
    """
    norms = np.linalg.norm(estimates, axis=1)
    products = np.vecdot(estimates, truth)
    return float(np.mean(np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)))


def ridge_cosine(known: tuple[Matrix, Matrix], unseen: tuple[Matrix, Matrix]) -> float:
    """Centred cosine that linear regression from signs (n, m) to vectors (n, d) reaches on unseen
    pairs.
    """
    return max(mean_cosine(unseen[0] @ weights, unseen[1]) for weights in ridge(*known))


def ridge(
    signs: Matrix, vectors: Matrix, strengths: tuple[float, ...] = _STRENGTHS
) -> Iterator[Matrix]:
    """Weights (m, d) of ridge regression for each strength, in units of the mean eigenvalue."""
    if not len(signs):
        yield np.zeros((signs.shape[1], vectors.shape[1]), np.float32)
        return
    is_wide = len(signs) < signs.shape[1]
    gram = signs @ signs.T if is_wide else signs.T @ signs
    unit = np.trace(gram) / len(gram)
    for strength in strengths:
        regular = gram + strength * unit * np.eye(len(gram), dtype=np.float32)
        if is_wide:
            yield signs.T @ np.linalg.solve(regular, vectors)
        else:
            yield np.linalg.solve(regular, signs.T @ vectors)


def hyperplane_cosine(
    known: tuple[Matrix, Matrix], unseen: tuple[Matrix, Matrix], covariance: Matrix
) -> float:
    """Centred cosine reached by recovering each bit's hyperplane first, then solving for the
    vector.

    `covariance` (d, d) of the vectors is what the attacker expects of a vector before seeing its
    sketch.
    """
    if not len(known[0]):
        return 0.0
    planes = hyperplanes(*known, covariance)
    return max(
        mean_cosine(estimates, unseen[1]) for estimates in _decode(unseen[0], planes, covariance)
    )


def hyperplanes(signs: Matrix, vectors: Matrix, covariance: Matrix) -> Matrix:
    """Unit normals (d, m) from one logistic regression a bit, all at once: Nesterov's accelerated
    gradient descent.

    In the coordinates where `covariance` is white the loss is well conditioned and steps of one
    length suit all bits.
    """
    whitener = _root(covariance, -0.5)
    inputs = vectors @ whitener
    n_pairs = len(inputs)
    curvature = (
        0.25 * float(np.linalg.norm(inputs, 2)) ** 2 / n_pairs + _LOGISTIC_STRENGTH / n_pairs
    )
    weights = np.zeros((inputs.shape[1], signs.shape[1]), np.float32)
    ahead = weights
    for step in range(_LOGISTIC_STEPS):
        margins = signs * (inputs @ ahead)
        pull = signs / (1 + np.exp(np.clip(margins, -30, 30)))
        gradient = _LOGISTIC_STRENGTH / n_pairs * ahead - inputs.T @ pull / n_pairs
        moved = ahead - gradient / curvature
        ahead = moved + step / (step + 3) * (moved - weights)
        weights = moved
    planes: Matrix = whitener @ weights
    normals: Matrix = planes / np.maximum(np.linalg.norm(planes, axis=0), 1e-9)
    return normals


def _decode(signs: Matrix, planes: Matrix, covariance: Matrix) -> Iterator[Matrix]:
    """Estimates (n, d) by least squares on the normals, drawn to `covariance` with several
    strengths.
    """
    prior = np.linalg.inv(_shrunk(covariance))
    products = planes @ planes.T
    unit = np.trace(products) / np.trace(prior)
    for strength in _STRENGTHS:
        yield (signs @ planes.T) @ np.linalg.inv(products + strength * unit * prior)


def covariance_of(vectors: Matrix) -> Matrix:
    """Covariance (d, d) of centred vectors."""
    found: Matrix = vectors.T @ vectors / np.float32(max(1, len(vectors)))
    return _shrunk(found)


def _shrunk(covariance: Matrix) -> Matrix:
    """Keep a hundredth of the mean variance on every axis, so that it can be inverted."""
    floor = 0.01 * np.trace(covariance) / len(covariance)
    return covariance + np.float32(floor) * np.eye(len(covariance), dtype=np.float32)


def _root(matrix: Matrix, power: float) -> Matrix:
    values, axes = np.linalg.eigh(matrix)
    scaled: NDArray[np.float32] = (axes * np.maximum(values, 1e-9) ** power) @ axes.T
    return scaled.astype(np.float32)
