import numpy as np
import pytest

from app.domain import Metric
from app.engine import distance
from app.engine.lists.space import NOWHERE, Space, distances_to

RANDOM = np.random.default_rng(1)


def space(metric: Metric, dimension: int, mean: float = 0.0, scale: float = 1.0) -> Space:
    return Space(metric, np.full(dimension, mean, np.float32), scale)


@pytest.mark.parametrize("metric", Metric)
@pytest.mark.parametrize("dimension", [1, 2, 64])
def test_points_order_as_the_metric_does(metric: Metric, dimension: int) -> None:
    vectors = (RANDOM.standard_normal((200, dimension)) + 3).astype(np.float32)
    points = space(metric, dimension, 3.0, 0.5).points(vectors)
    exact = distance.distances(metric, vectors[0], vectors[1:]).astype(np.float64)
    if metric is Metric.EUCLIDEAN:
        exact = exact**2
    measured = distances_to(points[0], points[1:])
    factor = 2 if metric is Metric.COSINE else 4
    assert measured == pytest.approx(factor * exact, rel=1e-3, abs=1e-5)


def test_the_zero_vector_is_nowhere_on_the_sphere() -> None:
    vectors = np.array([[0, 0], [1e-30, 0], [3, 4]], np.float32)
    sphere, plane = space(Metric.COSINE, 2), space(Metric.EUCLIDEAN, 2)
    assert sphere.is_nowhere(sphere.points(vectors)).tolist() == [True, False, False]
    assert not plane.is_nowhere(plane.points(vectors)).any()
    assert 2 * distance.cosine(vectors[2], vectors[:1])[0] == NOWHERE


@pytest.mark.parametrize("metric", Metric)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_huge_and_tiny_numbers_stay_finite(metric: Metric, scale: float) -> None:
    vectors = np.array([[3e38, -3e38], [1e-38, 1e-44], [0, 0], [1, 1]], np.float32)
    points = space(metric, 2, scale=scale).points(vectors)
    for point in points:
        assert np.isfinite(distances_to(point, points)).all()


def test_what_is_very_far_out_keeps_its_direction() -> None:
    (point,) = space(Metric.EUCLIDEAN, 2, scale=1e-10).points(np.array([[3e20, 4e20]], np.float32))
    assert point / np.linalg.norm(point) == pytest.approx([0.6, 0.8])


def test_the_origin_is_where_no_list_has_its_base() -> None:
    assert space(Metric.COSINE, 3, 0.25).origin.tolist() == [0.25] * 3
    assert space(Metric.EUCLIDEAN, 3, 0.25).origin.tolist() == [0.0] * 3
