"""What holds for every key, value and place."""

import uuid

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.crypto import keys
from app.domain import ITEM_KEY_BYTES, Metric
from app.engine.sketches.encoder import Encoder
from app.engine.sketches.parameters import EncoderParameters
from app.errors import AppError, DataCorrupted

INDEX_ID = uuid.UUID(int=1)
SEALER = keys.IndexKeys.derive(bytes(32), INDEX_ID).contents
FLOAT32 = np.dtype(np.float32)

item_keys = st.binary(min_size=16, max_size=16)
key_bytes = st.binary(min_size=32, max_size=32)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def flip_bit(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8 % len(data)] ^= 1 << bit % 8
    return bytes(changed)


@given(item_key=item_keys, plaintext=st.binary(max_size=300))
@settings(deadline=None)
def test_sealed_values_open(item_key: bytes, plaintext: bytes) -> None:
    assert SEALER.open(item_key, SEALER.seal(item_key, plaintext)) == plaintext


@given(item_key=item_keys, plaintext=st.binary(max_size=50), bit=st.integers(0, 10_000))
@settings(deadline=None)
def test_any_flipped_bit_is_rejected(item_key: bytes, plaintext: bytes, bit: int) -> None:
    with pytest.raises(DataCorrupted):
        SEALER.open(item_key, flip_bit(SEALER.seal(item_key, plaintext), bit))


@given(item_key=item_keys, bit=st.integers(0, 127))
@settings(deadline=None)
def test_any_other_row_is_rejected(item_key: bytes, bit: int) -> None:
    with pytest.raises(DataCorrupted):
        SEALER.open(flip_bit(item_key, bit), SEALER.seal(item_key, b"x"))


@given(sealed=st.binary(max_size=80))
@settings(deadline=None)
def test_arbitrary_bytes_are_rejected(sealed: bytes) -> None:
    with pytest.raises(DataCorrupted):
        SEALER.open(bytes(16), sealed)
    with pytest.raises(DataCorrupted):
        SEALER.open_rows([bytes(16)], [sealed], FLOAT32, 3)


@given(bit=st.integers(0, 10_000), place=st.integers(0, 4))
@settings(deadline=None)
def test_any_flipped_bit_of_any_row_is_rejected(bit: int, place: int) -> None:
    of_rows = [bytes([number]) * ITEM_KEY_BYTES for number in range(5)]
    sealed = SEALER.seal_rows(of_rows, np.ones((5, 3), np.float32))
    sealed[place] = flip_bit(sealed[place], bit)
    with pytest.raises(DataCorrupted):
        SEALER.open_rows(of_rows, sealed, FLOAT32, 3)


@given(kek=key_bytes, dek=key_bytes, number=st.integers(0, 2**128 - 1), bit=st.integers(0, 10_000))
@settings(deadline=None)
def test_wrapped_deks_unwrap_and_any_flipped_bit_is_rejected(
    kek: bytes, dek: bytes, number: int, bit: int
) -> None:
    index_id = uuid.UUID(int=number)
    wrapped = keys.wrap_dek(kek, dek, index_id)
    assert keys.unwrap_dek(kek, wrapped, index_id) == dek
    with pytest.raises(AppError):
        keys.unwrap_dek(kek, flip_bit(wrapped, bit), index_id)


@given(key=key_bytes)
@settings(deadline=None)
def test_index_keys_read_back_in_either_case(key: bytes) -> None:
    assert keys.parse_index_key(key.hex()) == keys.parse_index_key(key.hex().upper()) == key


@given(
    metric=st.sampled_from(Metric),
    values=st.lists(st.tuples(finite, finite, finite), min_size=1, max_size=8),
)
@settings(deadline=None)
def test_every_finite_vector_encodes(
    metric: Metric, values: list[tuple[float, float, float]]
) -> None:
    vectors = np.array(values, np.float32)
    parameters = EncoderParameters.from_bytes(EncoderParameters.fit(1, metric, vectors).to_bytes())
    encoder = Encoder(bytes(32), 3, metric, 512, 0.1, parameters)
    assert np.isfinite(encoder._lift(vectors)).all()
    assert encoder.encode_items(vectors, [bytes(16)] * len(vectors)).shape == (len(vectors), 64)
