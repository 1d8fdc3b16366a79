"""Exact distances at every magnitude that float32 has, beside the same formula in float64."""

from itertools import product

import numpy as np
import pytest

from app.domain import Matrix, Metric, Vector
from app.engine import distance, rank

D = 24
MAGNITUDES = (1e-40, 1e-30, 1e-20, 1e-12, 1e-6, 1.0, 1e6, 1e9, 1e10, 1e12, 1e18, 1e30, 1e36)


def rows(n: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)


def true_cosine(query: Vector, candidates: Matrix) -> Vector:
    # Each divided by its largest number first, so that no square vanishes.
    exact = [row.astype(np.float64) / abs(row).max() for row in (query, *candidates)]
    first, *others = (row / np.sqrt(row @ row) for row in exact)
    return np.array([1 - first @ other for other in others], np.float32)


@pytest.mark.parametrize("of_query", MAGNITUDES)
@pytest.mark.parametrize("of_candidates", MAGNITUDES)
def test_cosine_does_not_depend_on_magnitudes(of_query: float, of_candidates: float) -> None:
    query, candidates = (
        (rows(1) * np.float32(of_query))[0],
        rows(20, seed=1) * np.float32(of_candidates),
    )
    assert distance.cosine(query, candidates) == pytest.approx(
        true_cosine(query, candidates), abs=2e-6
    )


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("metric", Metric)
def test_a_vector_is_at_distance_0_from_itself_alone(metric: Metric, magnitude: float) -> None:
    candidates = rows(5) * np.float32(magnitude)
    order, distances = rank.nearest(metric, candidates[3], candidates, 5)
    assert distances[0] == 0
    if metric is Metric.SQUARED_EUCLIDEAN and magnitude < 1e-20:
        # float32 has no such answer.
        assert not distances.any()
    else:
        assert order[0] == 3
        assert distances[1] > 0


@pytest.mark.parametrize("magnitude", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("metric", Metric)
def test_copies_of_a_vector_have_the_same_distance(metric: Metric, magnitude: float) -> None:
    for d, seed in product((24, 100, 385), range(10)):
        query, vector = np.random.default_rng(seed).standard_normal((2, d)).astype(
            np.float32
        ) * np.float32(magnitude)
        distances = [
            distance.distances(metric, query, np.tile(vector, (n, 1))) for n in (1, 3, 7, 203)
        ]
        assert len(np.unique(np.concatenate(distances))) == 1


def test_magnitudes_may_be_mixed() -> None:
    candidates = np.concatenate(
        [rows(3, seed=1) * np.float32(magnitude) for magnitude in MAGNITUDES]
    )
    query = rows(1)[0]
    assert distance.cosine(query, candidates) == pytest.approx(
        true_cosine(query, candidates), abs=2e-6
    )


def test_the_zero_vector_is_at_distance_1_from_everything() -> None:
    candidates = np.concatenate([rows(2), np.zeros((1, D), np.float32)])
    assert distance.cosine(np.zeros(D, np.float32), candidates).tolist() == [1, 1, 1]
    assert distance.cosine(candidates[0], candidates)[2] == 1


@pytest.mark.parametrize("metric", Metric)
def test_of_no_candidates_there_are_none(metric: Metric) -> None:
    order, distances = rank.nearest(metric, rows(1)[0], rows(0), 10)
    assert len(order) == len(distances) == 0


def test_of_equal_distances_the_lower_row_comes_first() -> None:
    candidates = np.ones((9, D), np.float32)
    order, _ = rank.nearest(Metric.EUCLIDEAN, rows(1)[0], candidates, 4)
    assert order.tolist() == [0, 1, 2, 3]


def test_vectors_whose_distances_are_beyond_float32_are_ranked_all_the_same() -> None:
    far = np.float32(3e37) * np.arange(5, 0, -1, dtype=np.float32)[:, None]
    order, distances = rank.nearest(Metric.SQUARED_EUCLIDEAN, np.zeros(1, np.float32), far, 5)
    assert order.tolist() == [4, 3, 2, 1, 0]
    assert distances.tolist() == [np.finfo(np.float32).max] * 5
