import os

import numpy as np
import pytest
from numpy.typing import NDArray

from app.domain import Matrix, Metric, Sketches, Vector
from app.engine.sketches.encoder import Encoder, sketch_bits
from app.engine.sketches.parameters import COINS_OF_BITS, COINS_OF_VECTORS, EncoderParameters
from app.engine.sketches.rotation import MIN_SIZE, Rotation, factors, hadamard
from app.errors import DataCorrupted, InvalidInput

KEY = bytes(range(32))
NOISE = 0.1


def random_vectors(count: int, dimension: int, seed: int = 1) -> Matrix:
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def keys_of(count: int) -> list[bytes]:
    return [number.to_bytes(16, "big") for number in range(count)]


def encoder_for(
    vectors: Matrix, metric: Metric = Metric.COSINE, noise: float = NOISE, key: bytes = KEY
) -> Encoder:
    dimension = vectors.shape[1]
    parameters = EncoderParameters.fit(0, metric, vectors)
    return Encoder(key, dimension, metric, sketch_bits(dimension), noise, parameters)


def neutral(dimension: int, coins: int = COINS_OF_BITS) -> EncoderParameters:
    """Parameters of an encoder that knows nothing of the data."""
    return EncoderParameters(0, np.zeros(dimension, np.float32), 1.0, coins)


def encoder_with(vectors: Matrix, metric: Metric, parameters: EncoderParameters) -> Encoder:
    dimension = vectors.shape[1]
    return Encoder(KEY, dimension, metric, sketch_bits(dimension), NOISE, parameters)


def hamming(sketches: Sketches, query: Sketches) -> NDArray[np.int64]:
    differing: NDArray[np.int64] = np.bitwise_count(sketches ^ query).sum(axis=1, dtype=np.int64)
    return differing


def recall_in_pool(
    vectors: Matrix, queries: Matrix, metric: Metric, pool: int, parameters: EncoderParameters
) -> float:
    """Share of the true 10 nearest that is among the `pool` nearest by sketch."""
    dimension = vectors.shape[1]
    encoder = Encoder(KEY, dimension, metric, sketch_bits(dimension), NOISE, parameters)
    stored, asked = (
        encoder.encode_items(vectors, keys_of(len(vectors))),
        encoder.encode_queries(queries),
    )
    found = []
    for query, query_sketch in zip(queries, asked, strict=True):
        exact = distances(vectors, query, metric)
        nearest = np.argsort(exact)[:10]
        candidates = np.argsort(hamming(stored, query_sketch), kind="stable")[:pool]
        found.append(np.isin(nearest, candidates).mean())
    return float(np.mean(found))


def distances(vectors: Matrix, query: Vector, metric: Metric) -> Vector:
    if metric is Metric.COSINE:
        return np.asarray(-(vectors @ query) / np.linalg.norm(vectors, axis=1), np.float32)
    return np.asarray(np.linalg.norm(vectors - query, axis=1), np.float32)


@pytest.mark.parametrize(
    ("dimension", "bits"),
    [
        (1, 512),
        (256, 512),
        (257, 576),
        (384, 768),
        (1536, 3072),
        (32_000, 64_000),
        (65_535, 64_000),
    ],
)
def test_two_bits_a_dimension_within_limits(dimension: int, bits: int) -> None:
    assert sketch_bits(dimension) == bits


@pytest.mark.parametrize("order", [1, 2, 16, 32])
def test_hadamard_matrix_is_orthogonal_and_symmetric(order: int) -> None:
    matrix = hadamard(order)
    assert np.array_equal(matrix, matrix.T)
    assert np.array_equal(matrix @ matrix, order * np.eye(order))


def test_factors_multiply_to_the_size() -> None:
    assert [factors(1 << exponent) for exponent in (8, 9, 11)] == [(16, 16), (8, 8, 8), (8, 16, 16)]
    assert all(np.prod(factors(1 << exponent)) == 1 << exponent for exponent in range(8, 18))


@pytest.mark.parametrize("dimension", [1, 300, 512, 1000])
def test_each_block_keeps_lengths_and_angles(dimension: int) -> None:
    rotation = Rotation.derive(KEY, dimension, 700)
    columns = np.zeros((rotation.size, 5), np.float32)
    columns[:dimension] = random_vectors(5, dimension).T
    blocks = rotation.rotate(columns).reshape(-1, rotation.size, 5) / rotation.size**1.5
    for block in blocks:
        assert np.allclose(block.T @ block, columns.T @ columns, rtol=1e-4, atol=1e-3)


def test_more_outputs_leave_the_first_ones_as_they_were() -> None:
    column = random_vectors(MIN_SIZE, 1)
    few, many = (Rotation.derive(KEY, 100, count).rotate(column) for count in (256, 1024))
    assert np.allclose(few, many[:256], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("metric", Metric)
@pytest.mark.parametrize("dimension", [1, 2, 3, 384, 1000, 3072])
def test_every_dimension_encodes(dimension: int, metric: Metric) -> None:
    vectors = random_vectors(20, dimension)
    encoder = encoder_for(vectors, metric)
    sketches = encoder.encode_items(vectors, keys_of(20))
    assert sketches.shape == (20, sketch_bits(dimension) // 8)
    assert sketches.dtype == np.uint8


def test_largest_dimension_encodes() -> None:
    vectors = random_vectors(1, 65_535)
    assert encoder_for(vectors, Metric.EUCLIDEAN).encode_items(vectors, keys_of(1)).shape == (
        1,
        8000,
    )


def test_no_vectors_give_no_sketches() -> None:
    encoder = encoder_for(random_vectors(2, 5))
    assert encoder.encode_items(np.empty((0, 5), np.float32), []).shape == (0, 64)


def test_about_half_of_all_bits_are_set() -> None:
    vectors = random_vectors(200, 384)
    bits = np.unpackbits(encoder_for(vectors).encode_queries(vectors))
    assert bits.mean() == pytest.approx(0.5, abs=0.01)


def test_another_key_gives_unrelated_sketches() -> None:
    vectors = random_vectors(50, 384)
    one, other = (
        encoder_for(vectors, key=key).encode_queries(vectors) for key in (KEY, os.urandom(32))
    )
    assert np.unpackbits(one ^ other).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.2, 0.5])
def test_share_of_flipped_bits_is_the_noise(noise: float) -> None:
    vectors = random_vectors(200, 384)
    encoder = encoder_for(vectors, noise=noise)
    flipped = np.unpackbits(
        encoder.encode_items(vectors, keys_of(200)) ^ encoder.encode_queries(vectors)
    )
    assert flipped.mean() == pytest.approx(noise, abs=0.005)


def test_flips_of_different_bits_and_items_are_independent() -> None:
    vectors = random_vectors(500, 384)
    encoder = encoder_for(vectors)
    masks = encoder.encode_items(vectors, keys_of(500)) ^ encoder.encode_queries(vectors)
    flips = np.unpackbits(masks, axis=1).astype(np.float64)
    for rows in (flips, flips.T):
        correlations = np.asarray(np.corrcoef(rows))
        assert np.abs(correlations - np.eye(len(rows))).max() < 6 / np.sqrt(rows.shape[1])


def test_same_item_stored_again_has_the_same_sketch() -> None:
    vectors = random_vectors(100, 384)
    encoder = encoder_for(vectors)
    once = encoder.encode_items(vectors, keys_of(100))
    again = np.vstack(
        [encoder.encode_items(vectors[[row]], [keys_of(100)[row]]) for row in range(100)]
    )
    # A number within rounding of zero may fall on either side: one in some 10^6.
    assert hamming(once, again).sum() <= 2


def test_same_vector_under_another_id_has_other_flips() -> None:
    vectors = np.repeat(random_vectors(1, 384), 100, axis=0)
    encoder = encoder_for(vectors)
    masks = encoder.encode_items(vectors, keys_of(100)) ^ encoder.encode_queries(vectors)
    assert np.unpackbits(masks[1:] ^ masks[:-1]).mean() == pytest.approx(
        2 * NOISE * (1 - NOISE), abs=0.01
    )


def test_a_coin_belongs_to_an_item_a_bit_and_its_value() -> None:
    """Bits that stay keep their coin whatever else changes; of a bit both coins are independent."""
    vectors = random_vectors(100, 384)
    encoder = encoder_for(vectors)
    bits = np.unpackbits(encoder.encode_queries(vectors), axis=1)
    stored = np.unpackbits(encoder.encode_items(vectors, [bytes(16)] * 100), axis=1)
    flips = np.zeros((2, encoder.bits), bool)
    for value in (0, 1):
        is_flipped = np.where(bits == value, stored != bits, False).sum(axis=0)
        assert set(np.unique(is_flipped / (bits == value).sum(axis=0))) == {0.0, 1.0}
        flips[value] = is_flipped > 0
    assert flips.mean(axis=1) == pytest.approx([NOISE, NOISE], abs=0.04)
    assert (flips[0] & flips[1]).mean() == pytest.approx(NOISE**2, abs=0.015)


@pytest.mark.parametrize("metric", Metric)
def test_an_encoder_that_is_fitted_again_tosses_no_new_coins(metric: Metric) -> None:
    vectors = random_vectors(50, 384) + 1
    before, after = (
        encoder_with(vectors, metric, parameters)
        for parameters in (neutral(384), EncoderParameters.fit(1, metric, vectors))
    )
    (old_bits, old), (new_bits, new) = (
        (encoder.encode_queries(vectors), encoder.encode_items(vectors, keys_of(50)))
        for encoder in (before, after)
    )
    assert np.bitwise_count(old_bits ^ new_bits).mean() > 0
    # Where the bit is the same, so is the flip.
    assert not ((old ^ new) & ~(old_bits ^ new_bits)).any()


def test_old_encoders_still_toss_a_coin_for_item_and_vector() -> None:
    vectors = random_vectors(100, 384)
    encoder = encoder_with(vectors, Metric.COSINE, neutral(384, COINS_OF_VECTORS))
    masks = encoder.encode_items(vectors, [bytes(16)] * 100) ^ encoder.encode_queries(vectors)
    assert np.unpackbits(masks).mean() == pytest.approx(NOISE, abs=0.01)
    assert np.unpackbits(masks[1:] ^ masks[:-1]).mean() == pytest.approx(
        2 * NOISE * (1 - NOISE), abs=0.01
    )


def test_queries_are_never_flipped() -> None:
    vectors = random_vectors(50, 384)
    noisy, exact = encoder_for(vectors, noise=0.5), encoder_for(vectors, noise=0.0)
    assert np.array_equal(noisy.encode_queries(vectors), exact.encode_queries(vectors))


def test_hamming_distance_tracks_the_angle() -> None:
    """Charikar, STOC 2002: a bit differs with probability angle / π."""
    rng = np.random.default_rng(3)
    base, other = random_vectors(2, 384)
    shares = rng.uniform(0, 1, size=300)
    vectors = np.asarray(np.outer(1 - shares, base) + np.outer(shares, other), np.float32)
    cosines = vectors @ base / np.linalg.norm(vectors, axis=1) / np.linalg.norm(base)
    encoder = Encoder(KEY, 384, Metric.COSINE, 768, 0, neutral(384))
    differing = (
        hamming(encoder.encode_queries(vectors), encoder.encode_queries(base[None])) / encoder.bits
    )
    assert np.abs(differing - np.arccos(np.clip(cosines, -1, 1)) / np.pi).max() < 0.07


@pytest.mark.parametrize(("dimension", "least"), [(2, 0.95), (3, 0.98), (16, 0.95), (64, 0.85)])
def test_nearest_by_cosine_are_in_the_pool(dimension: int, least: float) -> None:
    vectors, queries = random_vectors(3000, dimension), random_vectors(30, dimension, seed=2)
    parameters = EncoderParameters.fit(1, Metric.COSINE, vectors)
    assert recall_in_pool(vectors, queries, Metric.COSINE, 200, parameters) > least


def test_nearest_by_euclidean_distance_are_in_the_pool_when_norms_vary() -> None:
    rng = np.random.default_rng(4)
    vectors, queries = (
        random_vectors(count, 32, seed) * rng.lognormal(0, 0.5, size=(count, 1)).astype(np.float32)
        for count, seed in ((3000, 5), (30, 6))
    )
    parameters = EncoderParameters.fit(1, Metric.EUCLIDEAN, vectors)
    by_distance = recall_in_pool(vectors, queries, Metric.EUCLIDEAN, 300, parameters)
    assert by_distance > 0.75


@pytest.mark.parametrize("metric", list(Metric))
def test_sketches_differ_in_the_share_of_bits_that_is_expected(metric: Metric) -> None:
    queries, others = random_vectors(40, 64), random_vectors(100, 64, seed=2)
    encoder = encoder_for(others, metric)
    found, expected, deviations = [], [], []
    for query in queries:
        items = others + query
        found += hamming(
            encoder.encode_items(items, keys_of(len(items))), encoder.encode_queries(query[None])
        ).tolist()
        shares = encoder.differing_shares(query, items)
        expected += (encoder.bits * shares).tolist()
        deviations += np.sqrt(encoder.bits * shares * (1 - shares)).tolist()
    residuals = (np.array(found) - expected) / deviations
    assert abs(residuals.mean()) < 0.1
    assert residuals.std() < 1.1


def test_mean_makes_room_on_the_sphere() -> None:
    offset = 5 * random_vectors(1, 64, seed=9)
    vectors, queries = random_vectors(2000, 64) + offset, random_vectors(20, 64, seed=2) + offset
    before = recall_in_pool(vectors, queries, Metric.COSINE, 200, neutral(64))
    after = recall_in_pool(
        vectors, queries, Metric.COSINE, 200, EncoderParameters.fit(1, Metric.COSINE, vectors)
    )
    assert after > before + 0.2


@pytest.mark.parametrize("metric", Metric)
@pytest.mark.parametrize(
    "size", [3.4e38, 1e-45, 1e-38, 0.0], ids=["huge", "subnormal", "tiny", "zero"]
)
def test_extreme_vectors_encode_without_a_warning(metric: Metric, size: float) -> None:
    directions = np.sign(random_vectors(8, 384))
    vectors = directions * np.float32(size)
    for parameters in (
        EncoderParameters.fit(0, metric, vectors),
        EncoderParameters.fit(1, metric, vectors),
    ):
        encoder = Encoder(KEY, 384, metric, 768, 0, parameters)
        assert np.isfinite(parameters.scale)
        assert np.isfinite(encoder._lift(vectors)).all()
        encoder.encode_queries(vectors)


@pytest.mark.parametrize("size", [3.4e38, 1e-45])
def test_cosine_sketch_ignores_the_length(size: float) -> None:
    directions = np.sign(random_vectors(8, 384))
    encoder = encoder_for(directions, noise=0)
    assert (
        hamming(
            encoder.encode_queries(directions),
            encoder.encode_queries(directions * np.float32(size)),
        ).sum()
        <= 2
    )


def test_mixed_magnitudes_keep_their_order() -> None:
    vectors = np.array([[1e-30] * 8, [1.0] * 8, [1e30] * 8], np.float32)
    encoder = encoder_for(vectors, Metric.EUCLIDEAN, noise=0)
    sketches = encoder.encode_queries(vectors)
    assert hamming(sketches, sketches[0])[1] < hamming(sketches, sketches[0])[2]


@pytest.mark.parametrize(
    ("bits", "noise"), [(0, 0.1), (7, 0.1), (64_008, 0.1), (512, -0.1), (512, 0.6)]
)
def test_impossible_encoder_is_refused(bits: int, noise: float) -> None:
    parameters = EncoderParameters.fit(0, Metric.COSINE, random_vectors(1, 4))
    with pytest.raises(InvalidInput):
        Encoder(KEY, 4, Metric.COSINE, bits, noise, parameters)


def test_vectors_and_parameters_of_another_dimension_are_refused() -> None:
    vectors = random_vectors(2, 4)
    with pytest.raises(InvalidInput):
        encoder_for(vectors).encode_queries(random_vectors(2, 1))
    with pytest.raises(DataCorrupted):
        Encoder(KEY, 5, Metric.COSINE, 512, NOISE, EncoderParameters.fit(0, Metric.COSINE, vectors))
