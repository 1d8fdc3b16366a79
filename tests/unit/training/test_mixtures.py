import math

import numpy as np
import pytest

from app.domain import Matrix, Metric
from app.engine.sketches.encoder import Encoder
from app.engine.sketches.parameters import EncoderParameters
from app.training.mixtures import Mixtures, mixtures

N, D = 2_000, 32


def normal(n: int = N, d: int = D) -> Matrix:
    return (np.random.default_rng(1).standard_normal((n, d)) + 3).astype(np.float32)


def mixed(
    items: Matrix, metric: Metric = Metric.EUCLIDEAN, n_queries: int = 1_000, noise: float = 0.1
) -> Mixtures:
    return mixtures(metric, items, n_queries, noise, np.random.default_rng(2))


def angles(made: Mixtures, items: Matrix) -> Matrix:
    mean = items.mean(axis=0)
    one, other = made.vectors - mean, items[made.first] - mean
    nearness = np.vecdot(one, other) / np.sqrt(np.vecdot(one, one) * np.vecdot(other, other))
    found: Matrix = np.arccos(nearness)
    return found


def test_a_query_is_made_of_two_different_items() -> None:
    made = mixed(normal())
    assert len(made.vectors) == 1_000
    assert (made.first != made.second).all()
    assert made.first.tolist() == list(range(1_000))


def test_queries_lie_as_the_items_do() -> None:
    items = normal()
    made = mixed(items).vectors
    assert made.mean() == pytest.approx(items.mean(), abs=0.05)
    assert made.std() == pytest.approx(items.std(), rel=0.1)


@pytest.mark.parametrize(
    ("noise", "angle"), [(0.0, 0.1 * math.pi), (0.2, 0.2 * math.pi), (0.4, math.pi / 4)]
)
def test_the_angle_to_the_item_is_that_of_the_noise(noise: float, angle: float) -> None:
    items = normal()
    # A little less, since the partner is rather near.
    assert 0.7 * angle < np.median(angles(mixed(items, noise=noise), items)) <= angle


@pytest.mark.parametrize("metric", list(Metric))
def test_sketches_of_queries_differ_from_those_of_items_as_much_as_stored_ones(
    metric: Metric,
) -> None:
    items = normal(d=64)
    encoder = Encoder(bytes(32), 64, metric, 512, 0.1, EncoderParameters.fit(1, metric, items))
    made = mixed(items, metric)
    of_queries = encoder.encode_queries(made.vectors)
    of_items = encoder.encode_queries(items)
    for parents in (made.first, made.second):
        share = np.bitwise_count(of_queries ^ of_items[parents]).sum(axis=1) / 512
        assert np.median(share) > 0.08
        assert share.min() > 0.02


def test_copies_of_one_item_are_no_partners() -> None:
    items = normal(1_000)
    items[:900] = items[0]
    made = mixed(items)
    assert (items[made.first] != items[made.second]).any(axis=1).all()


@pytest.mark.parametrize("items", [np.empty((0, D)), np.ones((1, D)), np.ones((500, D))])
def test_where_nothing_differs_there_is_no_query(items: Matrix) -> None:
    assert mixed(items.astype(np.float32)).vectors.shape == (0, D)


def test_zero_and_huge_vectors_give_finite_queries() -> None:
    items = normal(100) * np.float32(3e37)
    items[::2] = 0
    for metric in Metric:
        assert np.isfinite(mixed(items, metric).vectors).all()
