import numpy as np
import pytest

from app.domain import Matrix, Metric
from app.engine.sketches.parameters import COINS_OF_VECTORS, EncoderParameters
from app.errors import DataCorrupted

EUCLIDEAN, COSINE = Metric.EUCLIDEAN, Metric.COSINE


def random_vectors(count: int, dimension: int, seed: int = 1) -> Matrix:
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def rms(rows: Matrix) -> float:
    return float(np.sqrt(np.mean(np.sum(rows.astype(np.float64) ** 2, axis=1))))


def off_by(parameters: EncoderParameters, true_mean: Matrix) -> float:
    return float(np.linalg.norm(parameters.mean - true_mean) / np.sqrt(len(parameters.mean)))


def test_mean_of_ordinary_data_is_the_mean() -> None:
    vectors = 5 + random_vectors(3_000, 20)
    assert off_by(EncoderParameters.fit(1, EUCLIDEAN, vectors), vectors.mean(axis=0)) < 0.02


@pytest.mark.parametrize("n_odd", [1, 20])
def test_odd_items_do_not_spoil_mean_and_scale(n_odd: int) -> None:
    vectors = 5 + random_vectors(400, 20)
    ordinary = EncoderParameters.fit(1, EUCLIDEAN, vectors)
    vectors[:n_odd] *= 1_000
    fitted = EncoderParameters.fit(1, EUCLIDEAN, vectors)
    assert off_by(fitted, np.full(20, 5, np.float32)) < 0.4
    assert fitted.scale == pytest.approx(ordinary.scale, rel=1.2)


def test_mean_direction_leaves_zero_vectors_out() -> None:
    vectors = np.array([[0, 0], [2, 0], [0, 0], [0, 0.5]], np.float32)
    assert EncoderParameters.fit(1, COSINE, vectors).mean.tolist() == [0.5, 0.5]
    assert EncoderParameters.fit(1, COSINE, vectors).scale == 1


def test_one_item_has_no_mean_but_a_size() -> None:
    (vector,) = random_vectors(1, 8)
    for metric in Metric:
        assert not EncoderParameters.fit(0, metric, vector[None]).mean.any()
    # Of few items, the spread of most of them is divided by two.
    fitted = EncoderParameters.fit(0, EUCLIDEAN, vector[None])
    assert fitted.scale == pytest.approx(np.linalg.norm(vector) / 2)


@pytest.mark.parametrize("metric", Metric)
@pytest.mark.parametrize(
    "vectors",
    [
        np.empty((0, 3)),
        np.zeros((1, 3)),
        np.zeros((500, 3)),
        np.ones((2, 3)),
        np.full((500, 3), 7.5),
        np.eye(3)[[0, 0, 0, 0, 1]],
        np.vstack([np.zeros((499, 3)), np.full((1, 3), 3.4e38)]),
        np.array([[3.4e38, -3.4e38, 3.4e38]] * 3 + [[-3.4e38, 3.4e38, 1]] * 40),
        np.full((40, 3), 1e-45),
        random_vectors(600, 3) * 10.0 ** np.linspace(-44, 37, 600)[:, None],
    ],
    ids=[
        "nothing",
        "a-zero",
        "zeros",
        "two-equal",
        "all-equal",
        "nearly-all-equal",
        "one-huge",
        "huge",
        "subnormal",
        "all-magnitudes",
    ],
)
def test_parameters_of_anything_are_finite_and_of_use(metric: Metric, vectors: Matrix) -> None:
    vectors = vectors.astype(np.float32)
    fitted = EncoderParameters.fit(1, metric, vectors)
    assert np.isfinite(fitted.mean).all()
    assert 0 < fitted.scale < np.inf
    lifted = fitted.lift(metric, vectors)
    assert np.isfinite(lifted).all()
    assert not fitted.needs_refit(metric, vectors)
    EncoderParameters.from_bytes(fitted.to_bytes())


def test_a_sample_of_any_size_is_fitted_to_evenly() -> None:
    # In the order of a drift: the first rows alone would say something else.
    vectors = np.linspace(0, 100, 40_000, dtype=np.float32)[:, None] + random_vectors(40_000, 64)
    assert EncoderParameters.fit(1, EUCLIDEAN, vectors).mean == pytest.approx(50, abs=2)


def test_scale_lets_sketches_see_norms_where_they_matter() -> None:
    unit = random_vectors(1_000, 64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    places = random_vectors(1_000, 2)
    tightness = [
        rms(vectors - fitted.mean) / fitted.scale
        for vectors in (unit, places)
        for fitted in [EncoderParameters.fit(1, EUCLIDEAN, vectors)]
    ]
    assert tightness[0] > 6
    assert tightness[1] < 2.5


def test_best_scale_confuses_the_least() -> None:
    vectors = random_vectors(1_000, 64)
    vectors *= np.random.default_rng(3).lognormal(0, 1, (1_000, 1)).astype(np.float32)
    fitted = EncoderParameters.fit(1, EUCLIDEAN, vectors)
    for factor in (0.25, 4):
        other = EncoderParameters(1, fitted.mean, fitted.scale * factor)
        assert other.confusion(EUCLIDEAN, vectors) > fitted.confusion(EUCLIDEAN, vectors)


def test_confusion_is_none_of_groups_and_half_of_what_is_all_the_same() -> None:
    centres = 10 * random_vectors(8, 32)
    spread = np.float32(0.1) * random_vectors(800, 32)
    groups = np.repeat(centres, 100, axis=0) + spread
    order = np.random.default_rng(1).permutation(800)
    fitted = EncoderParameters.fit(1, EUCLIDEAN, groups[order])
    assert fitted.confusion(EUCLIDEAN, groups[order]) < 0.1
    same = np.ones((100, 32), np.float32)
    assert EncoderParameters.fit(1, EUCLIDEAN, same).confusion(EUCLIDEAN, same) == 0.5


@pytest.mark.parametrize("metric", Metric)
def test_data_of_the_same_kind_need_no_refit(metric: Metric) -> None:
    for size, offset in ((1.0, 0.0), (1e-20, 0.0), (1e20, 0.0), (1.0, 3.0)):
        before, now = ((random_vectors(3_000, 48, seed) + offset) * size for seed in (1, 2))
        fitted = EncoderParameters.fit(1, metric, before.astype(np.float32)[:300])
        assert not fitted.needs_refit(metric, now.astype(np.float32))


@pytest.mark.parametrize("metric", Metric)
def test_data_that_have_moved_need_a_refit(metric: Metric) -> None:
    before, now = (random_vectors(3_000, 48, seed) for seed in (1, 2))
    fitted = EncoderParameters.fit(1, metric, before)
    assert fitted.needs_refit(metric, now + 3)
    if metric is not COSINE:
        assert fitted.needs_refit(metric, now / np.float32(30))


def test_other_scale_alone_does_not_matter_to_cosine() -> None:
    before, now = (random_vectors(3_000, 48, seed) for seed in (1, 2))
    assert not EncoderParameters.fit(1, COSINE, before).needs_refit(COSINE, 1_000 * now)


def test_old_coins_need_a_refit() -> None:
    vectors = random_vectors(500, 16)
    fitted = EncoderParameters.fit(1, COSINE, vectors)
    old = EncoderParameters(1, fitted.mean, 1.0, COINS_OF_VECTORS)
    assert old.needs_refit(COSINE, vectors)


def test_parameters_survive_their_bytes() -> None:
    parameters = EncoderParameters.fit(3, EUCLIDEAN, random_vectors(10, 7))
    for coins in (1, 2):
        written = EncoderParameters(3, parameters.mean, parameters.scale, coins)
        again = EncoderParameters.from_bytes(written.to_bytes())
        assert (again.version, again.scale, again.mean.tolist(), again.coins) == (
            3,
            parameters.scale,
            parameters.mean.tolist(),
            coins,
        )


def test_repr_of_parameters_shows_no_number_of_a_vector() -> None:
    shown = repr(EncoderParameters.fit(4, EUCLIDEAN, random_vectors(3, 2)))
    assert shown == "EncoderParameters(version=4, coins=2)"


GOOD = EncoderParameters(1, np.array([1, 2], np.float32), 2.0).to_bytes()
NAN = np.float32(np.nan).tobytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:-1],
        GOOD + b"\0",
        b"\x00" + GOOD[1:],
        b"\x03" + GOOD[1:],
        GOOD[:-4] + NAN,
        EncoderParameters(1, np.zeros(2, np.float32), 0.0).to_bytes(),
        EncoderParameters(1, np.zeros(2, np.float32), float("inf")).to_bytes(),
    ],
    ids=[
        "empty",
        "truncated",
        "longer",
        "no-format",
        "unknown-format",
        "nan-mean",
        "zero-scale",
        "infinite-scale",
    ],
)
def test_malformed_parameters_are_rejected(data: bytes) -> None:
    with pytest.raises(DataCorrupted):
        EncoderParameters.from_bytes(data)
