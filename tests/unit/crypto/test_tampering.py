"""Every bit that can be flipped, and every value that can be moved: all of them, one by one."""

import itertools
import uuid
from collections.abc import Iterator

import pytest

from app.crypto import aead, keys
from app.errors import AppError, DataCorrupted

DEK = bytes(range(32))
INDEX_ID = uuid.UUID(bytes=bytes(range(100, 116)))
ITEM_KEY = bytes(range(16))
PLAINTEXT = b"twenty bytes of text"
COLUMNS = ("contents", "metadata", "vectors", "ids", "parameters")


def flipped(data: bytes) -> Iterator[bytes]:
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


@pytest.mark.parametrize("column", COLUMNS)
def test_no_flipped_bit_of_a_sealed_value_opens(column: str) -> None:
    sealer: aead.Sealer = getattr(keys.IndexKeys.derive(DEK, INDEX_ID), column)
    sealed = sealer.seal(ITEM_KEY, PLAINTEXT)
    for changed in flipped(sealed):
        with pytest.raises(DataCorrupted):
            sealer.open(ITEM_KEY, changed)
    assert sealer.open(ITEM_KEY, sealed) == PLAINTEXT


def test_no_flipped_bit_of_the_aad_opens() -> None:
    material = bytes(aead.KEY_MATERIAL_BYTES)
    sealed = aead.Sealer(material, INDEX_ID, "contents").seal(ITEM_KEY, PLAINTEXT)
    for other in flipped(INDEX_ID.bytes):
        with pytest.raises(DataCorrupted):
            aead.Sealer(material, uuid.UUID(bytes=other), "contents").open(ITEM_KEY, sealed)
    for other in flipped(ITEM_KEY):
        with pytest.raises(DataCorrupted):
            aead.Sealer(material, INDEX_ID, "contents").open(other, sealed)
    for label in (text.decode("latin-1") for text in flipped(b"contents")):
        sealer = aead.Sealer(material, INDEX_ID, "contents")
        sealer._aad_suffix = label.encode("latin-1")
        with pytest.raises(DataCorrupted):
            sealer.open(ITEM_KEY, sealed)


def test_no_flipped_bit_of_a_wrap_its_key_or_its_index_unwraps() -> None:
    kek = bytes(range(50, 82))
    wrapped = keys.wrap_dek(kek, DEK, INDEX_ID)
    attempts = [
        *((kek, changed, INDEX_ID) for changed in flipped(wrapped)),
        *((changed, wrapped, INDEX_ID) for changed in flipped(kek)),
        *((kek, wrapped, uuid.UUID(bytes=changed)) for changed in flipped(INDEX_ID.bytes)),
    ]
    for attempt in attempts:
        with pytest.raises(AppError):
            keys.unwrap_dek(*attempt)
    assert len(attempts) == 8 * (61 + 32 + 16)
    assert keys.unwrap_dek(kek, wrapped, INDEX_ID) == DEK


def test_no_two_places_can_swap_their_values() -> None:
    """Two indexes under one data key, three rows of one sub-key, all columns: a value opens in its
    own place alone.
    """
    places = {
        (index_id, item_key, column): getattr(keys.IndexKeys.derive(DEK, index_id), column)
        for index_id in (INDEX_ID, uuid.UUID(int=1))
        for item_key in (ITEM_KEY, ITEM_KEY[:15] + b"\xff", b"\x40" + ITEM_KEY[1:])
        for column in COLUMNS
    }
    sealed = {place: sealer.seal(place[1], PLAINTEXT) for place, sealer in places.items()}
    for one, other in itertools.product(places, places):
        if one == other:
            assert places[one].open(one[1], sealed[one]) == PLAINTEXT
        else:
            with pytest.raises(DataCorrupted):
                places[one].open(one[1], sealed[other])
