"""What is sealed: chunks and pages as bytes, and padding."""

import secrets
from itertools import pairwise

import numpy as np
import pytest

from app.crypto import aead
from app.engine.lists import chunk_format, layout_format
from app.engine.lists.entries import FIELDS, RECORD, Entries
from app.engine.lists.layout_format import Reference, Root
from app.engine.lists.padding import MIN_BYTES, largest_length, pad, padded_length
from app.errors import DataCorrupted


def entries(n: int, width: int = 12, dtype: str = "<u8") -> Entries:
    random = np.random.default_rng(n)
    records = np.frombuffer(random.bytes(n * FIELDS.itemsize), RECORD)
    codes = np.frombuffer(random.bytes(n * width * np.dtype(dtype).itemsize), dtype)
    return Entries(records, random.integers(-1, 99, n, np.int32), codes.reshape(n, width))


def array(data: bytes) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.frombuffer(data, np.uint8)


def names(n: int) -> list[bytes]:
    return [secrets.token_bytes(16) for _ in range(n)]


def test_each_length_is_at_most_a_quarter_longer_than_the_one_before() -> None:
    lengths = sorted({padded_length(n) for n in range(100_000)})
    assert lengths[0] == MIN_BYTES
    assert all(after <= 1.25 * before for before, after in pairwise(lengths))
    assert len(lengths) < 50


def test_the_shortest_length_that_holds_the_data_is_taken() -> None:
    lengths = sorted({padded_length(n) for n in range(5_000)})
    for n in range(4_000):
        assert padded_length(n) == next(length for length in lengths if length >= n)
        assert len(pad(bytes(n))) == padded_length(n)


def test_the_largest_length_fits() -> None:
    for most in (64, 100, 1_000, 1 << 20, (1 << 20) - 61):
        assert largest_length(most) <= most
        assert padded_length(largest_length(most)) == largest_length(most)
        assert padded_length(largest_length(most) + 1) > most


@pytest.mark.parametrize(("width", "dtype"), [(12, "<u8"), (1, "<u8"), (384, "<f4"), (3, "<f2")])
@pytest.mark.parametrize("n", [1, 2, 100])
def test_entries_come_back(n: int, width: int, dtype: str) -> None:
    before = entries(n, width, dtype)
    after = chunk_format.from_array(array(chunk_format.to_bytes(before)))
    assert after.codes.dtype == before.codes.dtype
    assert after.is_exact == (dtype != "<u8")
    for column in ("records", "lists", "codes"):
        assert getattr(after, column).tobytes() == getattr(before, column).tobytes()


def test_no_chunk_is_larger_than_a_mebibyte() -> None:
    many = entries(20_000)
    parts = list(chunk_format.parts(many))
    assert sum(map(len, parts)) == len(many)
    overhead = aead.OVERHEAD_BYTES + aead.SESSION_BYTES
    sizes = [len(chunk_format.to_bytes(part)) + overhead for part in parts]
    assert max(sizes) <= chunk_format.MAX_BYTES
    assert min(sizes[:-1]) > chunk_format.MAX_BYTES / 1.25


def test_an_entry_larger_than_a_chunk_is_a_chunk_of_its_own() -> None:
    assert chunk_format.capacity(1 << 21) == 1
    assert [len(part) for part in chunk_format.parts(entries(3, 1 << 18, "<f4"))] == [1, 1, 1]


@pytest.mark.parametrize("n_bytes", [0, 15, 16, 63])
def test_a_chunk_that_is_too_short_is_refused(n_bytes: int) -> None:
    data = chunk_format.to_bytes(entries(2))
    with pytest.raises(DataCorrupted):
        chunk_format.from_array(array(data[:n_bytes]))


@pytest.mark.parametrize(("place", "value"), [(0, 2), (1, 3), (4, 255), (8, 97), (8, 0)])
def test_a_chunk_with_another_header_is_refused(place: int, value: int) -> None:
    data = bytearray(chunk_format.to_bytes(entries(2)))
    data[place] = value
    with pytest.raises(DataCorrupted):
        chunk_format.from_array(array(bytes(data)))


@pytest.mark.parametrize(
    "root",
    [
        Root(1, 0, names(1), []),
        Root(64, 384, names(1), names(1)),
        Root(65, 384, names(2), names(2)),
        Root(5, 65_535, names(1), names(3)),
    ],
    ids=lambda root: f"{root.n_lists} lists of {root.dimension}",
)
def test_a_root_comes_back(root: Root) -> None:
    assert layout_format.root_from_bytes(root.to_bytes()) == root


def test_a_page_of_the_directory_comes_back() -> None:
    (first, second, third) = names(3)
    lists = [[Reference(first, 5)], [], [Reference(second, 1), Reference(third, 2**32 - 1)]]
    data = layout_format.directory_page(64, lists)
    assert layout_format.directory_from_bytes(data, 64) == lists
    with pytest.raises(DataCorrupted):
        layout_format.directory_from_bytes(data, 0)


@pytest.mark.parametrize("dimension", [1, 384, 65_535])
def test_pages_of_centroids_come_back(dimension: int) -> None:
    points = np.random.default_rng(0).standard_normal((70, dimension), dtype=np.float32)
    step = layout_format.centroids_a_page(dimension)
    pages = list(layout_format.centroid_pages(points))
    assert len(pages) == -(-70 // step)
    assert max(map(len, pages)) <= chunk_format.MAX_BYTES
    read = [
        layout_format.centroids_from_bytes(page, number * step) for number, page in enumerate(pages)
    ]
    assert (np.concatenate(read) == points).all()
    with pytest.raises(DataCorrupted):
        layout_format.centroids_from_bytes(pages[0], step)


def test_pages_that_are_cut_off_are_refused() -> None:
    root = Root(200, 384, names(4), names(4)).to_bytes()
    page = layout_format.directory_page(0, [[Reference(name, 1)] for name in names(64)])
    (centroids,) = layout_format.centroid_pages(np.ones((9, 9), np.float32))
    for length in (0, 10, 40):
        with pytest.raises(DataCorrupted):
            layout_format.root_from_bytes(root[:length])
        with pytest.raises(DataCorrupted):
            layout_format.directory_from_bytes(page[:length], 0)
        with pytest.raises(DataCorrupted):
            layout_format.centroids_from_bytes(centroids[:length], 0)
    with pytest.raises(DataCorrupted):
        layout_format.root_from_bytes(b"\x02" + root[1:])
