"""Writers: what they seal others open, and nothing opens for them."""

import os
import uuid

import numpy as np
import pytest

from app.crypto import aead, keys, sessions
from app.errors import DataCorrupted, Forbidden

INDEX_ID = uuid.UUID(int=7)
INDEX_KEYS = keys.IndexKeys.derive(bytes(range(32)), INDEX_ID)
COLUMNS = ["contents", "metadata", "vectors", "ids"]
FLOAT32 = np.dtype(np.float32)
ITEM_KEY = bytes(range(16))


def writer() -> keys.WriterKeys:
    return keys.WriterKeys(INDEX_KEYS.write_key(), INDEX_ID)


def sealer(index_keys: keys.IndexKeys, column: str) -> aead.Sealer:
    found: aead.Sealer = getattr(index_keys, column)
    return found


@pytest.mark.parametrize("column", COLUMNS)
def test_what_a_writer_seals_the_index_opens(column: str) -> None:
    sealed = sealer(writer(), column).seal(ITEM_KEY, b"plaintext")
    assert len(sealed) == 1 + 32 + 12 + len(b"plaintext") + 16
    assert sealed[0] == 2
    assert sealer(INDEX_KEYS, column).open(ITEM_KEY, sealed) == b"plaintext"
    # So do the keys of a user who may read.
    assert (
        sealer(keys.IndexKeys(INDEX_KEYS.read_key(), INDEX_ID), column).open(ITEM_KEY, sealed)
        == b"plaintext"
    )


@pytest.mark.parametrize("column", COLUMNS)
def test_nothing_that_is_stored_opens_for_a_writer(column: str) -> None:
    stored = [
        sealer(INDEX_KEYS, column).seal(ITEM_KEY, b"x"),
        sealer(writer(), column).seal(ITEM_KEY, b"x"),
    ]
    for sealed in stored:
        with pytest.raises(DataCorrupted):
            sealer(writer(), column).open(ITEM_KEY, sealed)
        with pytest.raises(DataCorrupted):
            sealer(writer(), column).open_all([ITEM_KEY], [sealed])
        with pytest.raises(DataCorrupted):
            sealer(writer(), column).open_rows([ITEM_KEY], [sealed], np.dtype(np.uint8), 1)


def test_the_write_key_holds_no_key_of_a_column() -> None:
    write_key = INDEX_KEYS.write_key()
    assert INDEX_KEYS.read_key() not in write_key
    assert INDEX_KEYS._sessions.private_key not in write_key
    for column in COLUMNS:
        shards = sealer(INDEX_KEYS, column)._shards
        assert isinstance(shards, aead._Shards)
        for start in range(0, aead.KEY_MATERIAL_BYTES, 32):
            assert shards._key_material[start : start + 32] not in write_key


def test_a_writer_blinds_sketches_and_opens_parameters_as_everybody_does() -> None:
    own = writer()
    assert own.blind_key == INDEX_KEYS.blind_key
    assert own.token_key == INDEX_KEYS.token_key
    assert own.sketch_key == INDEX_KEYS.sketch_key
    sealed = INDEX_KEYS.parameters.seal(aead.INDEX_LEVEL, b"mean")
    assert own.parameters.open(aead.INDEX_LEVEL, sealed) == b"mean"
    sealed = own.parameters.seal(aead.INDEX_LEVEL, b"mean")
    assert INDEX_KEYS.parameters.open(aead.INDEX_LEVEL, sealed) == b"mean"


def test_a_writer_makes_no_readers() -> None:
    with pytest.raises(Forbidden):
        writer().read_key()
    assert writer().write_key() == INDEX_KEYS.write_key()


def test_a_session_can_go_on() -> None:
    first = writer()
    second = keys.WriterKeys(INDEX_KEYS.write_key(), INDEX_ID, first.session)
    other = writer()
    names = [one.contents.seal(ITEM_KEY, b"x")[1:33] for one in (first, second, other)]
    assert names[0] == names[1] != names[2]


def test_rows_of_all_kinds_open_together() -> None:
    rows = np.arange(60, dtype=np.float32).reshape(20, 3)
    item_keys = [os.urandom(16) for _ in rows]
    sealers = [INDEX_KEYS.vectors, writer().vectors, writer().vectors]
    sealed = [
        sealers[n % 3].seal_rows([item_key], row[None, :])[0]
        for n, (item_key, row) in enumerate(zip(item_keys, rows, strict=True))
    ]
    assert np.array_equal(INDEX_KEYS.vectors.open_rows(item_keys, sealed, FLOAT32, 3), rows)
    assert INDEX_KEYS.vectors.open_all(item_keys, sealed) == [row.tobytes() for row in rows]
    only_writers = slice(1, None, 3)
    opened = INDEX_KEYS.vectors.open_rows(item_keys[only_writers], sealed[only_writers], FLOAT32, 3)
    assert np.array_equal(opened, rows[only_writers])


def test_a_row_of_another_length_is_rejected() -> None:
    sealed = writer().vectors.seal_rows([ITEM_KEY], np.zeros((1, 4), np.float32))
    with pytest.raises(DataCorrupted):
        INDEX_KEYS.vectors.open_rows([ITEM_KEY], sealed, FLOAT32, 3)


def test_a_value_moved_elsewhere_is_rejected() -> None:
    sealed = writer().contents.seal(ITEM_KEY, b"x")
    other_index = keys.IndexKeys.derive(bytes(range(32)), uuid.UUID(int=8))
    for found, item_key in (
        (INDEX_KEYS.contents, bytes(16)),
        (INDEX_KEYS.metadata, ITEM_KEY),
        (other_index.contents, ITEM_KEY),
    ):
        with pytest.raises(DataCorrupted):
            found.open(item_key, sealed)


@pytest.mark.parametrize("bit", range(0, 8 * 62, 5))
def test_any_flipped_bit_of_a_writers_value_is_rejected(bit: int) -> None:
    sealed = bytearray(writer().contents.seal(ITEM_KEY, b"x"))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DataCorrupted):
        INDEX_KEYS.contents.open(ITEM_KEY, bytes(sealed))


@pytest.mark.parametrize("length", [0, 1, 32, 33, 45, 60])
def test_a_writers_value_cut_short_is_rejected(length: int) -> None:
    sealed = writer().contents.seal(ITEM_KEY, b"")
    with pytest.raises(DataCorrupted):
        INDEX_KEYS.contents.open(ITEM_KEY, sealed[:length])


@pytest.mark.parametrize("name", [bytes(32), b"\x01" + bytes(31)])
def test_a_session_named_by_a_point_of_small_order_is_rejected(name: bytes) -> None:
    sealed = b"\x02" + name + os.urandom(12 + 16)
    with pytest.raises(DataCorrupted):
        INDEX_KEYS.contents.open(ITEM_KEY, sealed)


@pytest.mark.parametrize("change", [lambda key: key[:-1], lambda key: key + b"\0", lambda _: b""])
def test_a_write_key_of_another_length_is_damaged(change: object) -> None:
    assert callable(change)
    with pytest.raises(DataCorrupted):
        keys.WriterKeys(change(INDEX_KEYS.write_key()), INDEX_ID)


def test_no_key_shows_in_a_representation() -> None:
    session = sessions.begin(INDEX_KEYS.write_key()[:32], INDEX_ID)
    assert session._key.hex() not in repr(session)
    assert repr(session._key) not in repr(session)
