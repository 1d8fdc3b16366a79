"""Chunks and pages that were damaged, moved or exchanged do not open."""

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import numpy as np
import pytest

from app.crypto.keys import IndexKeys, WriterKeys
from app.engine.lists.entries import FIELDS, RECORD, Entries
from app.engine.lists.layout_format import Root
from app.engine.lists.sealing import Kind, Sealing
from app.errors import DataCorrupted, Forbidden
from app.store.chunks import ChunkRow, LayoutRow
from app.store.indexes import StaleIndex

INDEX_ID, OTHER_ID = UUID(int=7), UUID(int=8)
DEK = bytes(range(32))
KEYS = IndexKeys.derive(DEK, INDEX_ID)
WRITER = WriterKeys(KEYS.write_key(), INDEX_ID)
READER = Sealing(KEYS, 3, 2)
LAYOUT = LayoutRow(9, 3, 2, 5, 4, (), b"")
ROOT = Root(1, 0, [bytes(16)], [])


def entries(n: int = 3) -> Entries:
    records = np.zeros(n, FIELDS).view(RECORD)
    return Entries(records, np.arange(n, dtype=np.int32), np.full((n, 8), 7, np.uint64))


def fresh(sealing: Sealing = READER) -> ChunkRow:
    (row,) = sealing.fresh(entries())
    return row


def listed() -> ChunkRow:
    (row,) = READER.listed(entries())
    return row


def test_what_was_sealed_opens() -> None:
    for row, opened in ((fresh(), READER.open_fresh), (listed(), READER.open_listed)):
        found = opened(row)
        assert found.lists.tolist() == [0, 1, 2]
        assert (found.codes == 7).all()
        assert (row.generation, row.encoder_version) == (3, 2)
    page = READER.page(Kind.DIRECTORY, b"a page")
    assert READER.open_page(Kind.DIRECTORY, page) == b"a page"


def test_names_are_never_used_twice() -> None:
    assert len({fresh().name for _ in range(100)}) == 100


OPENERS: list[tuple[Callable[[], ChunkRow], Callable[[Sealing, ChunkRow], object]]] = [
    (fresh, Sealing.open_fresh),
    (listed, Sealing.open_listed),
    (
        lambda: READER.page(Kind.DIRECTORY, b"page"),
        lambda sealing, row: sealing.open_page(Kind.DIRECTORY, row),
    ),
]


@pytest.mark.parametrize(("make", "opened"), OPENERS, ids=["fresh", "listed", "page"])
class TestSealed:
    """A sealed chunk or page."""

    def test_any_flipped_bit_is_rejected(
        self, make: Callable[[], ChunkRow], opened: Callable[[Sealing, ChunkRow], object]
    ) -> None:
        row = make()
        for place in range(len(row.sealed_entries)):
            damaged = bytearray(row.sealed_entries)
            damaged[place] ^= 1
            with pytest.raises(DataCorrupted):
                opened(READER, row._replace(sealed_entries=bytes(damaged)))

    def test_it_does_not_open_under_another_name(
        self, make: Callable[[], ChunkRow], opened: Callable[[Sealing, ChunkRow], object]
    ) -> None:
        with pytest.raises(DataCorrupted):
            opened(READER, make()._replace(name=make().name))

    def test_it_does_not_open_when_it_is_cut_off(
        self, make: Callable[[], ChunkRow], opened: Callable[[Sealing, ChunkRow], object]
    ) -> None:
        row = make()
        for length in (0, 10, 28, len(row.sealed_entries) - 1):
            with pytest.raises(DataCorrupted):
                opened(READER, row._replace(sealed_entries=row.sealed_entries[:length]))

    def test_it_does_not_open_in_another_index_or_under_another_key(
        self, make: Callable[[], ChunkRow], opened: Callable[[Sealing, ChunkRow], object]
    ) -> None:
        for keys in (IndexKeys.derive(DEK, OTHER_ID), IndexKeys.derive(bytes(32), INDEX_ID)):
            with pytest.raises(DataCorrupted):
                opened(replace(READER, keys=keys), make())

    def test_it_does_not_open_for_another_generation_or_encoder(
        self, make: Callable[[], ChunkRow], opened: Callable[[Sealing, ChunkRow], object]
    ) -> None:
        row = make()
        for sealing in (Sealing(KEYS, 4, 2), Sealing(KEYS, 3, 1)):
            # The row says so, or was made to say otherwise.
            forged = row._replace(
                generation=sealing.generation, encoder_version=sealing.encoder_version
            )
            with pytest.raises((DataCorrupted, StaleIndex)):
                opened(sealing, row)
            with pytest.raises(DataCorrupted):
                opened(sealing, forged)


def test_a_chunk_of_another_generation_tells_that_the_layout_is_old() -> None:
    with pytest.raises(StaleIndex):
        Sealing(KEYS, 4, 2).open_fresh(fresh())


def test_one_kind_does_not_open_as_another() -> None:
    page = READER.page(Kind.DIRECTORY, b"page")
    with pytest.raises(DataCorrupted):
        READER.open_page(Kind.CENTROIDS, page)
    with pytest.raises(DataCorrupted):
        READER.open_listed(fresh())
    with pytest.raises(DataCorrupted):
        READER.open_fresh(listed())
    with pytest.raises(DataCorrupted):
        READER.open_listed(page)


def test_a_writer_adds_fresh_chunks_that_readers_open_and_it_cannot() -> None:
    row = fresh(Sealing(WRITER, 3, 2))
    assert row.sealed_entries[0] == 2
    assert READER.open_fresh(row).lists.tolist() == [0, 1, 2]
    another = Sealing(WriterKeys(KEYS.write_key(), INDEX_ID), 3, 2)
    with pytest.raises(DataCorrupted):
        another.open_fresh(row)


def test_a_writer_puts_its_own_session_together() -> None:
    writer = Sealing(WRITER, 3, 2)
    assert writer.open_fresh(fresh(writer)).lists.tolist() == [0, 1, 2]
    with pytest.raises(DataCorrupted):
        writer.open_fresh(fresh())


def test_a_writer_has_no_keys_of_lists_and_layout() -> None:
    writer = Sealing(WRITER, 3, 2)
    with pytest.raises(Forbidden):
        next(writer.listed(entries()))
    with pytest.raises(Forbidden):
        writer.open_listed(listed())
    with pytest.raises(Forbidden):
        writer.page(Kind.DIRECTORY, b"page")
    with pytest.raises(Forbidden):
        writer.root(LAYOUT, ROOT)


def test_what_a_session_sealed_is_no_list_and_no_page() -> None:
    # Whoever has a write key and the database seals what it likes, under any label.
    row = fresh(Sealing(WRITER, 3, 2))
    for label, kind in (("chunk", Kind.ENTRIES), ("layout", Kind.DIRECTORY)):
        forged = WRITER._sealer(label).seal(row.name, bytes(64), READER._context(kind))
        sealed = row._replace(sealed_entries=forged)
        with pytest.raises(DataCorrupted):
            READER.open_listed(sealed)
        with pytest.raises(DataCorrupted):
            READER.open_page(kind, sealed)


def test_a_root_opens_with_the_numbers_of_its_own_row_only() -> None:
    sealed = READER.root(LAYOUT, ROOT)
    row = LAYOUT._replace(sealed_root=sealed)
    assert READER.open_root(row) == ROOT
    for other in (
        row._replace(version=10),
        row._replace(open_epoch=6),
        row._replace(first_epoch=5),
        row._replace(sealed_root=sealed[:-1] + bytes([sealed[-1] ^ 1])),
    ):
        with pytest.raises(DataCorrupted):
            READER.open_root(other)
    with pytest.raises(DataCorrupted):
        Sealing(KEYS, 4, 2).open_root(row)


def test_the_keys_are_not_in_the_repr() -> None:
    assert DEK.hex() not in repr(READER)
    assert "keys" not in repr(READER)
