"""What is sealed of a layout: its root, the pages of its directory, and the pages of its centroids.

A layout is a tree. The row of the layout names the root; the root names the pages; the pages of the
directory name the chunks. Names are random and are never used twice, so an older page or chunk
cannot take the place of another.

    root        format (1) = 0x01 ‖ 0 (3) ‖ lists (4) ‖ dimension (4)
                ‖ lists a page of the directory (4) ‖ lists a page of centroids (4)
                ‖ names of the directory's pages (16 each) ‖ of the centroids' pages (16 each)
    directory   format (1) = 0x01 ‖ 0 (3) ‖ first list (4) ‖ lists (4)
                ‖ number of chunks of each list (4 each)
                ‖ for each chunk of each list: name (16) ‖ entries (4)
    centroids   format (1) = 0x01 ‖ 0 (3) ‖ first list (4) ‖ lists (4) ‖ dimension (4)
                ‖ centroids (4·d each, float32)

The one list of an index without centroids has dimension 0. Zeros follow, up to one of the lengths
of `padding`. All numbers are little-endian and unsigned.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from app.domain import Matrix
from app.engine.lists.padding import pad
from app.errors import DataCorrupted

FORMAT = 1
NAME_BYTES = 16
LISTS_A_PAGE = 64
# A page of centroids is as long as a chunk at most, unless one centroid is longer.
_CENTROID_PAGE_BYTES = 700_000

_ROOT = struct.Struct("<BxxxIIII")
_DIRECTORY = struct.Struct("<BxxxII")
_CENTROIDS = struct.Struct("<BxxxIII")
_REFERENCE = np.dtype([("name", f"V{NAME_BYTES}"), ("n_entries", "<u4")])


class Reference(NamedTuple):
    """A chunk of a list: its name, and how many entries it has."""

    name: bytes
    n_entries: int


@dataclass(frozen=True, slots=True)
class Root:
    """How many lists a layout has, the dimension of their centroids, and where the pages are."""

    n_lists: int
    dimension: int
    directory: Sequence[bytes]
    centroids: Sequence[bytes]

    def to_bytes(self) -> bytes:
        """Write the format above."""
        header = _ROOT.pack(
            FORMAT, self.n_lists, self.dimension, LISTS_A_PAGE, centroids_a_page(self.dimension)
        )
        return pad(header + b"".join(self.directory) + b"".join(self.centroids))


def root_from_bytes(data: bytes) -> Root:
    """Read what `Root.to_bytes` wrote. Raises `DataCorrupted`."""
    _, n_lists, dimension, a_page, centroids_a_page = _header(_ROOT, data)
    if not (a_page and centroids_a_page):
        raise _corrupted()
    n_pages = -(-n_lists // a_page)
    n_centroid_pages = -(-n_lists // centroids_a_page) if dimension else 0
    names_end = _ROOT.size + (n_pages + n_centroid_pages) * NAME_BYTES
    if names_end > len(data):
        raise _corrupted()
    names = [data[start : start + NAME_BYTES] for start in range(_ROOT.size, names_end, NAME_BYTES)]
    return Root(n_lists, dimension, names[:n_pages], names[n_pages:])


def directory_page(first: int, lists: Sequence[Sequence[Reference]]) -> bytes:
    """Write the page of the directory that begins with the list `first`."""
    counts = np.array([len(chunks) for chunks in lists], "<u4")
    references = np.array([chunk for chunks in lists for chunk in chunks], _REFERENCE)
    header = _DIRECTORY.pack(FORMAT, first, len(lists))
    return pad(header + counts.tobytes() + references.tobytes())


def directory_from_bytes(data: bytes, first: int) -> list[list[Reference]]:
    """Return the chunks of each list of the page that begins at `first`. Raises `DataCorrupted`."""
    _, actual_first, n_lists = _header(_DIRECTORY, data)
    counts_end = _DIRECTORY.size + 4 * n_lists
    if actual_first != first or counts_end > len(data):
        raise _corrupted()
    counts = np.frombuffer(data[_DIRECTORY.size : counts_end], "<u4").tolist()
    references_end = counts_end + sum(counts) * _REFERENCE.itemsize
    if references_end > len(data):
        raise _corrupted()
    rows = iter(np.frombuffer(data[counts_end:references_end], _REFERENCE).tolist())
    return [[Reference(*next(rows)) for _ in range(count)] for count in counts]


def centroids_a_page(dimension: int) -> int:
    """Return how many centroids with `dimension` numbers a page holds."""
    return max(1, min(LISTS_A_PAGE, _CENTROID_PAGE_BYTES // (4 * max(1, dimension))))


def centroid_pages(points: Matrix) -> Iterator[bytes]:
    """Write the centroids `points` (k, d) as pages, in order."""
    step = centroids_a_page(points.shape[1])
    for first in range(0, len(points), step):
        part = points[first : first + step]
        yield pad(_CENTROIDS.pack(FORMAT, first, *part.shape) + part.astype("<f4").tobytes())


def centroids_from_bytes(data: bytes, first: int) -> Matrix:
    """Read the page of centroids that begins with the list `first`. Raises `DataCorrupted`."""
    _, actual_first, n_lists, dimension = _header(_CENTROIDS, data)
    end = _CENTROIDS.size + 4 * n_lists * dimension
    if actual_first != first or end > len(data):
        raise _corrupted()
    numbers = np.frombuffer(data[_CENTROIDS.size : end], "<f4")
    return numbers.reshape(n_lists, dimension).astype(np.float32)


def _header(layout: struct.Struct, data: bytes) -> tuple[int, ...]:
    if len(data) < layout.size or data[0] != FORMAT:
        raise _corrupted()
    return layout.unpack_from(data)


def _corrupted() -> DataCorrupted:
    return DataCorrupted("a page of the index's layout is malformed")
