import numpy as np
import pytest

from app.domain import Matrix
from app.engine.lists import clustering
from app.engine.lists.clustering import Centroids, automatic_n_lists, fit


def random() -> np.random.Generator:
    return np.random.default_rng(7)


def normal(n: int, d: int) -> Matrix:
    return random().standard_normal((n, d), dtype=np.float32)


def unit(rows: Matrix) -> Matrix:
    scaled: Matrix = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled


def fitted(sample: Matrix, n_lists: int, *, is_spherical: bool = False) -> Centroids:
    return fit(sample, n_lists, is_spherical=is_spherical, random=random())


@pytest.mark.parametrize("dimension", [1, 2, 3, 64])
def test_a_point_belongs_to_the_nearest_centroid(dimension: int) -> None:
    points = normal(1_000, dimension)
    centroids = fitted(points, 20)
    lists = centroids.lists_of(points)
    squared = ((points[:, None] - centroids.points) ** 2).sum(axis=2)
    own = squared[np.arange(len(points)), lists]
    assert own == pytest.approx(squared.min(axis=1), abs=1e-4)


def test_a_point_on_the_sphere_belongs_to_the_nearest_direction() -> None:
    points = unit(normal(1_000, 8))
    centroids = fitted(points, 20, is_spherical=True)
    directions = unit(centroids.points)
    assert (centroids.lists_of(points) == (points @ directions.T).argmax(axis=1)).mean() > 0.999


def test_a_centroid_is_the_mean_of_its_points() -> None:
    centres = 100 * normal(5, 4)
    points = (centres[:, None] + normal(5 * 50, 4).reshape(5, 50, 4)).reshape(-1, 4)
    centroids = fitted(points, 5)
    lists = centroids.lists_of(points)
    for number, centroid in enumerate(centroids.points):
        assert centroid == pytest.approx(points[lists == number].mean(axis=0), abs=1e-3)


def test_lists_are_nearer_than_by_chance() -> None:
    points = normal(4_000, 16)
    centroids = fitted(points, 64)
    random_points = Centroids(points[:64].copy(), is_spherical=False)

    def spread(some: Centroids) -> float:
        residuals = points - some.points[some.lists_of(points)]
        return float((residuals**2).sum(axis=1).mean())

    assert spread(centroids) < 0.85 * spread(random_points)


def test_the_nearest_lists_come_first() -> None:
    points = normal(500, 8)
    centroids = fitted(points, 30)
    squared = ((centroids.points - points[0]) ** 2).sum(axis=1)
    order = np.argsort(squared)
    assert centroids.nearest_lists(points[0], 7).tolist() == order[:7].tolist()
    assert centroids.nearest_lists(points[0], 99).tolist() == order.tolist()
    assert centroids.nearest_lists(points[0], 1)[0] == centroids.lists_of(points[:1])[0]


def test_there_are_no_more_lists_than_different_points() -> None:
    points = normal(3, 4)[random().integers(3, size=1_000)]
    assert len(fitted(points, 10)) == 3
    assert len(fitted(normal(5, 4), 10)) == 5
    assert len(fitted(np.zeros((50, 4), np.float32), 10, is_spherical=True)) == 1


def test_no_list_is_empty_when_half_the_points_are_the_same() -> None:
    points = np.vstack([np.zeros((2_000, 4), np.float32), normal(2_000, 4)])
    centroids = fitted(points, 64)
    assert len(centroids) > 60
    assert np.bincount(centroids.lists_of(points), minlength=len(centroids)).min() > 0


def test_lists_that_become_empty_take_points_of_the_largest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # All begin in one corner, so that most of them are nobody's nearest.
    points = np.vstack([normal(8, 2) * 1e-6 + 50, normal(2_000, 2)]).astype(np.float32)
    monkeypatch.setattr(clustering, "_first", lambda *_: points[:8].copy())
    sizes = np.bincount(fitted(points, 8).lists_of(points))
    assert len(sizes) == 8
    assert sizes.max() < 1_000


@pytest.mark.parametrize("factor", [1e-20, 1e15])
def test_norms_may_vary_without_bounds(factor: float) -> None:
    points = normal(1_000, 8) * np.where(np.arange(1_000) % 2, 1, factor)[:, None]
    centroids = fitted(points.astype(np.float32), 16)
    assert np.isfinite(centroids.points).all()


def test_the_number_of_lists_grows_with_the_root_of_the_items() -> None:
    assert [automatic_n_lists(n, 1_000) for n in (0, 1, 100, 10_000, 10**9)] == [
        1,
        2,
        20,
        200,
        1_000,
    ]
