"""Entries of vectors: each in the list whose centroid is nearest, or in none."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.domain import Matrix
from app.engine.lists.entries import FIELDS, RECORD, Entries, Lists, Records
from app.engine.lists.layout import Geometry
from app.engine.lists.sketching import NO_LIST


def records_of(item_keys: Sequence[bytes], tags: NDArray[np.int64]) -> Records:
    """Return records of items with these keys and tags."""
    records = np.zeros(len(item_keys), FIELDS)
    records["item_key"] = np.frombuffer(b"".join(item_keys), "V16")
    records["tag"] = tags
    return records.view(RECORD)


def listed(geometry: Geometry, records: Records, vectors: Matrix, *, is_exact: bool) -> Entries:
    """Return entries for `vectors` (n, d) in the lists of `geometry`."""
    points = geometry.space.points(vectors)
    lists = geometry.centroids.lists_of(points)
    return _entries(geometry, records, (vectors, points), lists, is_exact=is_exact)


def unlisted(geometry: Geometry, records: Records, vectors: Matrix, *, is_exact: bool) -> Entries:
    """Return entries for `vectors` (n, d) that say of no list, as by someone who knows none."""
    points = geometry.space.points(vectors)
    lists = np.full(len(points), NO_LIST, np.int32)
    return _entries(geometry, records, (vectors, points), lists, is_exact=is_exact)


def with_lists(
    geometry: Geometry, entries: Entries, rows: NDArray[np.intp], vectors: Matrix
) -> Entries:
    """Return `entries` where those at `rows`, of `vectors` (n, d), are in lists, too."""
    made = listed(geometry, entries.records[rows], vectors, is_exact=entries.is_exact)
    changed = Entries(entries.records.copy(), entries.lists.copy(), entries.codes.copy())
    changed.records[rows], changed.lists[rows] = made.records, made.lists
    changed.codes[rows] = made.codes
    return changed


def _entries(
    geometry: Geometry,
    records: Records,
    places: tuple[Matrix, Matrix],
    lists: Lists,
    *,
    is_exact: bool,
) -> Entries:
    vectors, points = places
    is_nowhere = geometry.space.is_nowhere(points)
    if is_exact:
        lengths = np.where(is_nowhere, np.float32(-1), np.float32(0))
        return Entries(_measured(records, lengths, np.zeros_like(lengths)), lists, vectors)
    made = geometry.sketcher.sketch(points, lists, is_nowhere)
    return Entries(_measured(records, made.lengths, made.offsets), lists, made.words)


def _measured(
    records: Records, lengths: NDArray[np.float32], offsets: NDArray[np.float32]
) -> Records:
    measured = records.copy()
    view = measured.view(FIELDS)
    view["length"], view["offset"] = lengths, offsets
    return measured
