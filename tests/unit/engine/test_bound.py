from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from app.domain import Matrix, Metric, Vector
from app.engine import rank
from app.engine.sketches import bound
from app.engine.sketches.bound import Look, Opened
from app.engine.sketches.encoder import Encoder, sketch_bits
from app.engine.sketches.parameters import EncoderParameters

KEY = bytes(range(32))
TOP_K = 10


class Table:
    """Items and their sketches, nearest first by sketch, as a scan finds them."""

    def __init__(self, vectors: Matrix, metric: Metric = Metric.COSINE, noise: float = 0.1) -> None:
        dimension = vectors.shape[1]
        parameters = EncoderParameters.fit(1, metric, vectors)
        self.encoder = Encoder(KEY, dimension, metric, sketch_bits(dimension), noise, parameters)
        self.vectors = vectors
        item_keys = [number.to_bytes(16, "big") for number in range(len(vectors))]
        self.sketches = self.encoder.encode_items(vectors, item_keys)

    def looks(self, query: Vector, pool: int, target: float) -> Iterator[tuple[Look, Opened]]:
        """Yield look after look until they are enough."""
        sketch = self.encoder.encode_queries(query[None])
        all_hammings = np.bitwise_count(self.sketches ^ sketch).sum(axis=1, dtype=np.int64)
        order = np.argsort(all_hammings, kind="stable")
        look: Look | None = Look(self.encoder.bits, pool)
        while look is not None:
            rows = order[all_hammings[order] <= look.limit][: look.n_candidates]
            best, distances = rank.nearest(self.encoder.metric, query, self.vectors[rows], TOP_K)
            worst = float(distances[-1])
            opened = Opened(self.vectors[rows[best]], worst, look, all_hammings[rows])
            yield look, opened
            look = bound.further(self.encoder, query, opened, len(self.vectors), target)

    def recall(self, query: Vector, opened: Opened) -> float:
        """Share of the true nearest that a look has found."""
        _, true = rank.nearest(self.encoder.metric, query, self.vectors, TOP_K)
        _, found = rank.nearest(self.encoder.metric, query, opened.winners, TOP_K)
        return float(np.mean(found <= true[-1]))


def random_vectors(count: int, dimension: int, seed: int = 1) -> Matrix:
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def clustered(count: int, seed: int) -> Matrix:
    centres = random_vectors(100, 64)
    rng = np.random.default_rng(seed)
    spread = rng.normal(size=(count, 64)).astype(np.float32)
    return centres[rng.integers(100, size=count)] + np.float32(0.4) * spread


def shares_of(*values: float) -> NDArray[np.float64]:
    return np.array(values)


def test_what_reaches_the_expected_distance_finds_half() -> None:
    # A winner at the expected distance stands for two items, so half of them are found.
    assert bound.recall(shares_of(0.25), 400, 100.5) == pytest.approx(0.5)
    assert bound.recall(shares_of(0.25, 0.25), 400, 100.5) == pytest.approx(0.5)


def test_recall_follows_the_normal_distribution() -> None:
    # 400 bits at a share of 1/4: 100 on average, a variance of 75.25.
    reach = 100.5 + 2 * np.sqrt(75.25)
    assert bound.recall(shares_of(0.25), 400, reach) == pytest.approx(0.97725, abs=1e-4)


def test_the_worst_winners_count_the_most() -> None:
    good, bad = (bound.recall(shares_of(one), 512, 150) for one in (0.2, 0.32))
    both = bound.recall(shares_of(0.2, 0.32), 512, 150)
    assert bad < both < good
    # Horvitz and Thompson's estimate is the harmonic mean.
    assert both == pytest.approx(2 / (1 / good + 1 / bad))


def test_reach_is_the_least_that_keeps_the_target() -> None:
    shares = shares_of(0.2, 0.3, 0.33)
    reach = bound.reach_for(shares, 768, 0.99)
    assert bound.recall(shares, 768, reach) >= 0.99 > bound.recall(shares, 768, reach - 1)


def test_reach_is_all_bits_when_nothing_else_keeps_the_target() -> None:
    assert bound.reach_for(shares_of(1.0), 512, 0.999) == 512


def test_a_sketch_without_flips_of_the_query_itself_has_no_variance() -> None:
    assert bound.recall(shares_of(0.0), 512, 3) > 0.999


def test_a_full_look_reaches_below_its_last_candidate_and_another_to_its_limit() -> None:
    hammings = np.array([3, 5, 9])
    assert Look(40, 3).reach(hammings) == 9
    assert Look(40, 4).reach(hammings) == 41
    assert Look(40, 4).reach(hammings[:0]) == 41


def test_clusters_are_enough_at_once() -> None:
    table = Table(clustered(3_000, seed=1))
    n_looks = [len(list(table.looks(query, 200, 0.99))) for query in clustered(20, seed=2)]
    assert np.mean(np.array(n_looks) == 1) > 0.8


@pytest.mark.parametrize("metric", Metric)
def test_noise_is_looked_at_again_until_the_recall_is_kept(metric: Metric) -> None:
    table = Table(random_vectors(3_000, 128), metric)
    first, last, shares = [], [], []
    for query in random_vectors(30, 128, seed=2):
        found = [opened for _, opened in table.looks(query, 200, 0.99)]
        first.append(table.recall(query, found[0]))
        last.append(table.recall(query, found[-1]))
        shares.append(len(found[-1].hammings) / 3_000)
    assert np.mean(first) < 0.9
    assert np.mean(last) >= 0.985
    # Neither is everything opened for nothing.
    assert np.mean(shares) < 0.8


def test_a_lower_target_opens_fewer() -> None:
    table = Table(random_vectors(2_000, 128))
    queries = random_vectors(15, 128, seed=2)
    n_opened = {
        target: np.mean(
            [len(list(table.looks(query, 200, target))[-1][1].hammings) for query in queries]
        )
        for target in (0.8, 0.95, 0.99)
    }
    assert n_opened[0.8] < n_opened[0.95] < n_opened[0.99]


def test_flips_alone_make_it_open_nearly_everything() -> None:
    table = Table(random_vectors(500, 32), noise=0.5)
    (query,) = random_vectors(1, 32, seed=2)
    *_, (_, opened) = table.looks(query, 100, 0.99)
    assert len(opened.hammings) >= 485


def test_every_look_goes_further_and_there_are_few() -> None:
    """Whatever the distances of sketches are: a cone as narrow as float32 allows, and copies."""
    narrow = 1 + 1e-6 * random_vectors(4_000, 16)
    copies = np.repeat(random_vectors(8, 16), 500, axis=0)
    for vectors in (narrow.astype(np.float32), copies):
        table = Table(vectors)
        for query in random_vectors(10, 16, seed=2):
            found = [opened for _, opened in table.looks(query, 50, 0.999)]
            assert len(found) <= 7
            counts = [len(opened.hammings) for opened in found]
            assert counts == sorted(counts)


def test_nothing_is_nearer_than_no_distance() -> None:
    table = Table(np.repeat(random_vectors(10, 32), 300, axis=0))
    looks = list(table.looks(table.vectors[0], 50, 0.999))
    assert len(looks) == 1


def test_all_opened_is_enough_and_so_is_nothing_found() -> None:
    table = Table(random_vectors(30, 32))
    (query,) = random_vectors(1, 32, seed=2)
    assert len(list(table.looks(query, 200, 0.999))) == 1
    nothing = Opened(random_vectors(0, 32), 1.0, Look(50, 20), np.empty(0, np.int64))
    assert bound.further(table.encoder, query, nothing, 30, 0.99) is None


@pytest.mark.parametrize("n_items", [0, 100, 101, 10_000])
def test_a_wrong_count_of_items_does_no_harm(n_items: int) -> None:
    table = Table(random_vectors(3_000, 128))
    (query,) = random_vectors(1, 128, seed=2)
    look, opened = next(table.looks(query, 100, 0.99))
    again = bound.further(table.encoder, query, opened, n_items, 0.99)
    assert again is not None
    assert again.limit >= opened.hammings[-1]
    assert again.n_candidates > look.n_candidates


def opened_at(hammings: NDArray[np.int64], number: int = 1) -> tuple[Table, Vector, Opened]:
    """A query that has found nothing near among candidates with these Hamming distances."""
    table = Table(random_vectors(100, 64))
    (query,) = random_vectors(1, 64, seed=2)
    look = Look(table.encoder.bits, len(hammings), number)
    return table, query, Opened(-query[None] - table.vectors[:10], 1.0, look, hammings)


@pytest.fixture
def scattered() -> NDArray[np.int64]:
    """Hamming distances of 10,000 items, in order."""
    rng = np.random.default_rng(1)
    return np.sort(rng.normal(300, 20, 10_000).round().astype(np.int64))


def test_a_look_asks_for_about_as_many_as_lie_within_its_limit(
    scattered: NDArray[np.int64],
) -> None:
    table, query, opened = opened_at(scattered[:500])
    opened = Opened(table.vectors[:10], opened.worst, opened.look, opened.hammings)
    further = bound.further(table.encoder, query, opened, 10_000, 0.6)
    assert further is not None
    assert scattered[499] < further.limit < 320
    n_within = int((scattered <= further.limit).sum())
    assert n_within <= further.n_candidates <= 1.5 * n_within


def test_a_late_look_goes_much_further(scattered: NDArray[np.int64]) -> None:
    n_within = []
    for number in (1, 2, 3):
        table, query, opened = opened_at(scattered[:500], number)
        # Of items at no angle, half are within what was looked at.
        opened = Opened(np.tile(query, (10, 1)), 1.0, opened.look, opened.hammings)
        table.encoder._noise = float(scattered[499]) / table.encoder.bits
        further = bound.further(table.encoder, query, opened, 10_000, 0.76)
        assert further is not None
        assert further.number == number + 1
        n_within.append(int((scattered <= further.limit).sum()))
        assert n_within[-1] <= further.n_candidates
    assert n_within[0] < 0.9 * 4 * 500 < n_within[1] == n_within[2]


def test_candidates_at_one_distance_tell_nothing_of_the_others() -> None:
    table, query, opened = opened_at(np.full(200, 90))
    further = bound.further(table.encoder, query, opened, 5_000, 0.99)
    assert further is not None
    assert further.n_candidates == 5_000
    assert further.limit < table.encoder.bits
    table, query, opened = opened_at(np.full(200, 90), number=2)
    assert bound.further(table.encoder, query, opened, 5_000, 0.99) == Look(512, 5_000, 3)


def test_when_all_were_opened_the_winners_are_the_best_whatever_their_sketches() -> None:
    table = Table(random_vectors(100, 64), noise=0)
    (query,) = random_vectors(1, 64, seed=2)
    # Every bit differs, so that even all bits seem too few.
    opposite = 2 * table.encoder.parameters.mean - query / np.linalg.norm(query)
    all_of_them = np.full(5, table.encoder.bits)
    opened = Opened(opposite[None], 1.0, Look(table.encoder.bits, 6), all_of_them)
    assert bound.further(table.encoder, query, opened, 5, 0.999) is None


def test_usual_target_falls_with_the_number_of_results() -> None:
    targets = [bound.usual_target(top_k) for top_k in (1, 10, 30, 100, 10_000)]
    assert targets == sorted(targets, reverse=True)
    assert targets[0] == targets[1] == 0.9925
    assert targets[3] == targets[4] == pytest.approx(0.98)
