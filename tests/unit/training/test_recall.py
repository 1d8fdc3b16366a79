from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from app.domain import Matrix, Metric
from app.engine.costs import Workload
from app.engine.profile import Point
from app.training import recall

N, D = 3_000, 12


def keys(n: int) -> list[bytes]:
    # Ends in zero bytes on purpose: numpy's own byte strings would lose them.
    return [row.to_bytes(4, "big") + bytes(12) for row in range(n)]


def neighbours(metric: Metric, vectors: Matrix, n_queries: int) -> recall.Neighbours:
    """Search for the first items, each of which is its own only parent."""
    names, mean = keys(len(vectors)), vectors.astype(np.float64).mean(axis=0)
    parents = [[name] for name in names[:n_queries]]
    found = recall.Neighbours(metric, vectors[:n_queries], parents, mean, 2.0)
    for start in range(0, len(vectors), 700):
        found.add(names[start : start + 700], vectors[start : start + 700])
    return found


def brute_force(metric: Metric, vectors: Matrix, query: int) -> NDArray[np.intp]:
    rows = vectors.astype(np.float64)
    if metric is Metric.COSINE:
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    distances = ((rows - rows[query]) ** 2).sum(axis=1)
    distances[query] = np.inf
    return np.argsort(distances)[:100]


@pytest.mark.parametrize("metric", list(Metric))
def test_neighbours_are_those_of_brute_force_without_the_item_itself(metric: Metric) -> None:
    vectors = (np.random.default_rng(1).standard_normal((N, D)) + 5).astype(np.float32)
    names = keys(N)
    for query, found in enumerate(neighbours(metric, vectors, 20).item_keys()):
        assert found == [names[row] for row in brute_force(metric, vectors, query)]


def test_fewer_items_than_neighbours_are_all_neighbours() -> None:
    vectors = np.random.default_rng(2).standard_normal((7, D)).astype(np.float32)
    assert [len(found) for found in neighbours(Metric.EUCLIDEAN, vectors, 3).item_keys()] == [
        6,
        6,
        6,
    ]


def test_huge_and_tiny_vectors_have_neighbours() -> None:
    for scale in (1e30, 1e-30):
        vectors = (np.random.default_rng(3).standard_normal((300, D)) * scale).astype(np.float32)
        parents = [[name] for name in keys(2)]
        mean = vectors.astype(np.float64).mean(axis=0)
        found = recall.Neighbours(Metric.EUCLIDEAN, vectors[:2], parents, mean, scale)
        found.add(keys(300), vectors)
        names = keys(300)
        assert found.item_keys()[0] == [
            names[row] for row in brute_force(Metric.EUCLIDEAN, vectors, 0)
        ]


def test_copies_do_not_count_against_recall() -> None:
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((N, D)).astype(np.float32)
    vectors[:200] = vectors[0]
    clear = neighbours(Metric.EUCLIDEAN, vectors, 240).clear(10)
    assert not clear[:200].any()
    assert clear[200:].all()


def test_where_everything_is_a_copy_everything_counts() -> None:
    assert neighbours(Metric.EUCLIDEAN, np.ones((500, D), np.float32), 50).clear(10).all()


def test_neither_parent_of_a_query_counts_and_a_parent_of_many_counts_for_none() -> None:
    vectors = np.random.default_rng(5).standard_normal((N, D)).astype(np.float32)
    names = keys(N)
    parents = [[names[0], names[1]], [names[0], names[2]], [names[3], names[4]]]
    found = recall.Neighbours(Metric.EUCLIDEAN, vectors[:3], parents, np.zeros(D), 1.0)
    found.add(names, vectors)
    for query, item_keys in enumerate(found.item_keys()):
        distances = ((vectors - vectors[query]) ** 2).sum(axis=1)
        expected = [names[row] for row in np.argsort(distances) if names[row] not in parents[query]]
        assert item_keys == expected[:100]


def test_ranks_are_places_among_the_candidates() -> None:
    a, b, c, d = keys(4)
    ranks = recall.ranks([[a, b], [c]], [c + b + a, d])
    assert ranks.shape == (2, 100)
    assert ranks[0, :2].tolist() == [3, 2]
    assert np.isinf(ranks[0, 2:]).all()
    assert np.isinf(ranks[1]).all()


def test_what_is_promised_is_two_standard_errors_below_what_was_measured() -> None:
    # Half of the queries find all, half find half: a deviation of 1/4 from query to query.
    n_queries = 400
    ranks = np.full((n_queries, 100), 1, np.float32)
    ranks[::2, :5] = np.inf
    (point, *_) = recall.measure(4, 500, ranks, np.ones(n_queries, bool), 10)
    assert point.recall == 0.75
    assert point.lower == pytest.approx(0.75 - 2 * 0.25 / n_queries**0.5, abs=1e-4)
    assert not recall.reaches([point], 0.73)
    assert recall.reaches([point], 0.72)


def test_more_queries_promise_more() -> None:
    (point,) = recall.with_more_queries([Point(4, 40, 0.96, 0.94)], 4)
    assert point[:3] == (4, 40, 0.96)
    assert point.lower == pytest.approx(0.95)


def test_the_cost_is_that_of_the_cheapest_setting_that_keeps_the_target() -> None:
    workload = Workload(10_000, 100, 384, 768)
    kept = [Point(10, 40, 0.96, 0.95), Point(8, 900, 0.96, 0.95), Point(1, 10, 0.9, 0.89)]
    assert recall.cost_us(kept, 0.95, workload) == workload.cost_us(10, 40)
    assert recall.cost_us(kept, 0.96, workload) == float("inf")


def test_recall_grows_with_the_pool_and_its_promise_is_lower() -> None:
    ranks = np.tile(np.arange(1, 101, dtype=np.float32) * 3, (40, 1))
    ranks[0] = np.inf
    points = recall.measure(4, 500, ranks, np.ones(40, bool), 10)
    assert [point.recall for point in points] == sorted(point.recall for point in points)
    assert (points[0].n_probes, points[0].pool) == (4, 10)
    assert points[0].recall == pytest.approx(39 / 40 * 0.3, abs=1e-4)
    assert points[-1].recall == pytest.approx(39 / 40, abs=1e-4)
    assert all(point.lower < point.recall for point in points)


def test_only_points_worth_their_cost_are_kept() -> None:
    workload = Workload(10_000, 100, 384, 768)
    points = [
        Point(1, 10, 0.5, 0.5),
        Point(1, 900, 0.55, 0.55),
        Point(2, 10, 0.6, 0.6),
        Point(50, 10, 0.58, 0.58),
    ]
    assert recall.cheapest(points, workload) == [points[0], points[2]]


@pytest.mark.parametrize("n_lists", [1, 2, 3, 16, 100, 128, 256, 1024, 32_768])
def test_probes_go_down_to_one_and_up_to_all(n_lists: int) -> None:
    probes = recall.Probes(n_lists)
    together = probes.down()[::-1] + probes.up()
    assert together[0] == 1
    assert together[-1] == n_lists
    assert together == sorted(set(together))
    assert all(later <= 2 * earlier for earlier, later in pairwise(together))


def points(*recalls: tuple[int, float]) -> list[Point]:
    return [Point(n_probes, 100, share, share - 0.02) for n_probes, share in recalls]


def test_it_begins_below_where_a_rough_measurement_has_the_recall_and_goes_up() -> None:
    counts = recall.about(points((10, 0.7), (16, 0.9), (26, 0.95), (41, 0.99)), 0.95, n_lists=256)
    assert counts[:2] == [21, 26]
    assert counts == sorted(set(counts))
    assert all(1 < high / low < 1.4 for low, high in pairwise(counts))


def test_it_ends_with_all_lists() -> None:
    assert recall.about(points((64, 0.9), (102, 0.96)), 0.95, n_lists=128) == [81, 102, 128]


def test_nothing_is_worth_a_try_where_nothing_has_the_recall() -> None:
    assert recall.about(points((64, 0.9), (102, 0.94)), 0.95, n_lists=128) == []


def test_one_probe_that_is_enough_is_tried_first() -> None:
    assert recall.about(points((1, 0.96)), 0.95, n_lists=128)[0] == 1
