"""The family itself: what it is made of, and that the measure of recall can tell good from bad."""

from itertools import combinations, product

import numpy as np
import pytest

from app.domain import Metric, Precision
from tests.recall import truth
from tests.recall.cells import CELLS, FLOAT32_ONLY, KINDS, Filter, Stage, pairs
from tests.recall.datasets import FAMILY


@pytest.mark.parametrize("name", FAMILY)
def test_data_are_finite_seeded_and_new_for_each_seed(name: str) -> None:
    data, again, other = (FAMILY[name](60, 5, seed) for seed in (1, 1, 2))
    assert data.vectors.shape[0] == 60
    assert data.queries.shape == (5, data.vectors.shape[1])
    assert data.vectors.dtype == data.queries.dtype == np.float32
    assert np.isfinite(data.vectors).all()
    assert np.array_equal(data.vectors, again.vectors)
    assert np.array_equal(data.queries, again.queries)
    assert not np.array_equal(data.vectors, other.vectors)
    assert data.n_first >= 1


@pytest.mark.parametrize(("name", "cosine"), [("cone-90", 0.9), ("cone-97", 0.97)])
def test_cones_are_as_narrow_as_they_say(name: str, cosine: float) -> None:
    vectors = FAMILY[name](400, 1, 1).vectors
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert (unit @ unit.T).mean() == pytest.approx(cosine, abs=0.01)


def test_cells_are_few_and_meet_every_pair_of_values() -> None:
    assert len(CELLS) <= 120
    met = set().union(*map(pairs, CELLS))
    axes = [list(KINDS), *(list(map(str, axis)) for axis in (Stage, Metric, Precision, Filter))]
    wanted = {pair for one, other in combinations(axes, 2) for pair in product(one, other)}
    refused = {
        (kind, Precision.FLOAT16) for kind, names in KINDS.items() if FLOAT32_ONLY & set(names)
    }
    assert met == wanted - refused


def test_every_data_set_is_in_some_cell() -> None:
    assert {cell.data for cell in CELLS} == set(FAMILY)


def test_recall_counts_what_is_as_near_as_the_last() -> None:
    exact = np.array([0.0, 1.0, 2.0, 2.0, 3.0])
    assert truth.recall(exact, Metric.EUCLIDEAN, [0, 1, 3], 3) == 1
    assert truth.recall(exact, Metric.EUCLIDEAN, [0, 1, 4], 3) == pytest.approx(2 / 3)
    assert truth.recall(exact, Metric.EUCLIDEAN, [0, 0, 0], 3) == pytest.approx(1 / 3)
    assert truth.recall(exact, Metric.EUCLIDEAN, [4, 3, 2, 1, 0], 5) == 1
    assert truth.recall(exact, Metric.EUCLIDEAN, [], 3) == 0


def test_distances_are_those_of_the_contract() -> None:
    query, vectors = np.array([3, 4], np.float32), np.array([[3, 4], [0, 0], [4, -3]], np.float32)
    assert truth.distances(Metric.EUCLIDEAN, query, vectors).tolist() == [
        0,
        5,
        pytest.approx(50**0.5),
    ]
    assert truth.distances(Metric.SQUARED_EUCLIDEAN, query, vectors).tolist() == [0, 25, 50]
    assert truth.distances(Metric.COSINE, query, vectors) == pytest.approx([0, 1, 1])
