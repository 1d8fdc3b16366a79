import os
import uuid

import numpy as np
import pytest

from app.crypto import aead, keys
from app.errors import DataCorrupted

DEK = bytes(range(32))
INDEX_ID = uuid.UUID(int=7)
INDEX_KEYS = keys.IndexKeys.derive(DEK, INDEX_ID)
ITEM_KEY = bytes(range(16))
FLOAT32 = np.dtype(np.float32)


def item_keys(count: int) -> list[bytes]:
    return [os.urandom(16) for _ in range(count)]


def test_sealed_value_takes_its_documented_form() -> None:
    sealed = INDEX_KEYS.contents.seal(ITEM_KEY, b"plaintext")
    assert len(sealed) == 1 + 12 + len(b"plaintext") + 16
    assert sealed[0] == 1


def test_sealing_twice_gives_two_values_that_open() -> None:
    one, other = (INDEX_KEYS.contents.seal(ITEM_KEY, b"x") for _ in range(2))
    assert one != other
    assert (
        INDEX_KEYS.contents.open(ITEM_KEY, one) == INDEX_KEYS.contents.open(ITEM_KEY, other) == b"x"
    )


def test_value_moved_to_another_row_is_rejected() -> None:
    sealed = INDEX_KEYS.contents.seal(ITEM_KEY, b"x")
    same_shard = ITEM_KEY[:15] + b"\xff"
    with pytest.raises(DataCorrupted):
        INDEX_KEYS.contents.open(same_shard, sealed)


@pytest.mark.parametrize("column", ["metadata", "vectors", "ids", "parameters"])
def test_value_moved_to_another_column_is_rejected(column: str) -> None:
    sealed = INDEX_KEYS.contents.seal(ITEM_KEY, b"x")
    sealer: aead.Sealer = getattr(INDEX_KEYS, column)
    with pytest.raises(DataCorrupted):
        sealer.open(ITEM_KEY, sealed)


def test_value_moved_to_another_index_is_rejected() -> None:
    sealed = INDEX_KEYS.contents.seal(ITEM_KEY, b"x")
    with pytest.raises(DataCorrupted):
        keys.IndexKeys.derive(DEK, uuid.UUID(int=8)).contents.open(ITEM_KEY, sealed)


@pytest.mark.parametrize(
    ("index_id", "label"), [(uuid.UUID(int=8), "contents"), (INDEX_ID, "metadata")]
)
def test_aad_alone_binds_index_and_column(index_id: uuid.UUID, label: str) -> None:
    material = bytes(aead.KEY_MATERIAL_BYTES)
    sealed = aead.Sealer(material, INDEX_ID, "contents").seal(ITEM_KEY, b"x")
    with pytest.raises(DataCorrupted):
        aead.Sealer(material, index_id, label).open(ITEM_KEY, sealed)


def test_error_names_the_column_and_nothing_else() -> None:
    with pytest.raises(DataCorrupted) as caught:
        INDEX_KEYS.contents.open(ITEM_KEY, b"\x01" + bytes(50))
    assert str(caught.value) == "a stored value of the column 'contents' does not open"


@pytest.mark.parametrize(
    "sealed", [b"", b"\x01", b"\x01" + bytes(27), b"\x00" + bytes(60), b"\x02" + bytes(60)]
)
def test_truncated_or_unknown_version_is_rejected(sealed: bytes) -> None:
    with pytest.raises(DataCorrupted):
        INDEX_KEYS.contents.open(ITEM_KEY, sealed)
    with pytest.raises(DataCorrupted):
        INDEX_KEYS.contents.open_all([ITEM_KEY], [sealed])


def test_values_opened_together_are_each_bound_to_their_row() -> None:
    plaintexts, of_rows = [b"", b"a", b"bc"], item_keys(3)
    sealed = INDEX_KEYS.contents.seal_all(of_rows, plaintexts)
    assert INDEX_KEYS.contents.open_all(of_rows, sealed) == plaintexts
    assert INDEX_KEYS.contents.open_all([], []) == []
    for wrong in ([of_rows[0], of_rows[2], of_rows[1]], [*of_rows[:2], of_rows[2][:-1]]):
        with pytest.raises(DataCorrupted):
            INDEX_KEYS.contents.open_all(wrong, sealed)


def test_key_material_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="key material"):
        aead.Sealer(bytes(32), INDEX_ID, "contents")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (200, 384)])
def test_rows_open_as_they_were_sealed(dtype: type[np.floating], shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(1).normal(size=shape).astype(dtype)
    of_rows = item_keys(len(rows))
    opened = INDEX_KEYS.vectors.open_rows(
        of_rows, INDEX_KEYS.vectors.seal_rows(of_rows, rows), np.dtype(dtype), shape[1]
    )
    assert opened.dtype == dtype
    assert np.array_equal(opened, rows)


def test_rows_are_sealed_little_endian_whatever_their_memory_order() -> None:
    rows = np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3))
    of_rows = item_keys(2)
    sealed = INDEX_KEYS.vectors.seal_rows(of_rows, rows)
    assert INDEX_KEYS.vectors.open(of_rows[1], sealed[1]) == np.array([3, 4, 5], "<f4").tobytes()
    assert INDEX_KEYS.vectors.open_rows(of_rows, sealed, FLOAT32, 3).tolist() == rows.tolist()


def test_nonces_of_a_batch_differ() -> None:
    sealed = INDEX_KEYS.vectors.seal_rows([ITEM_KEY] * 100, np.zeros((100, 2), np.float32))
    assert len({value[1:13] for value in sealed}) == len(sealed)


def test_rows_of_another_length_are_rejected() -> None:
    of_rows = item_keys(2)
    sealed = INDEX_KEYS.vectors.seal_rows(of_rows, np.zeros((2, 4), np.float32))
    with pytest.raises(DataCorrupted):
        INDEX_KEYS.vectors.open_rows(of_rows, sealed, FLOAT32, 5)


def test_swapped_rows_are_rejected() -> None:
    of_rows = item_keys(2)
    sealed = INDEX_KEYS.vectors.seal_rows(of_rows, np.zeros((2, 4), np.float32))
    with pytest.raises(DataCorrupted):
        INDEX_KEYS.vectors.open_rows(of_rows, sealed[::-1], FLOAT32, 4)


def test_row_of_unknown_version_is_rejected() -> None:
    sealed = INDEX_KEYS.vectors.seal_rows([ITEM_KEY], np.zeros((1, 4), np.float32))
    with pytest.raises(DataCorrupted):
        INDEX_KEYS.vectors.open_rows([ITEM_KEY], [b"\x02" + sealed[0][1:]], FLOAT32, 4)


def test_index_level_values_have_a_row_of_their_own() -> None:
    sealed = INDEX_KEYS.parameters.seal(aead.INDEX_LEVEL, b"parameters")
    assert INDEX_KEYS.parameters.open(aead.INDEX_LEVEL, sealed) == b"parameters"


def test_items_are_spread_over_64_keys() -> None:
    material = os.urandom(aead.KEY_MATERIAL_BYTES)
    sealer = aead.Sealer(material, INDEX_ID, "contents")
    only_shard_5 = aead.Sealer(material[5 * 32 : 6 * 32] * 64, INDEX_ID, "contents")
    for first in (5, 5 + 64, 5 + 192):
        item_key = bytes([first]) + bytes(15)
        assert only_shard_5.open(item_key, sealer.seal(item_key, b"x")) == b"x"
    with pytest.raises(DataCorrupted):
        only_shard_5.open(b"\x06" + bytes(15), sealer.seal(b"\x06" + bytes(15), b"x"))
