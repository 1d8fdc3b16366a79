"""The scan: which entries of some lists are nearest to a query, by their sketches.

All entries are compared by the number of bits in which they differ from the query; the best of them
once more by the query's own numbers (`sketching` has both estimates). An entry that holds its point
is compared exactly. All arithmetic is numpy on whole columns, a batch of segments at a time, so
that the columns in work stay in the second-level cache.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.domain import Vector
from app.engine.lists.entries import RECORD, Entries, Records, Words, fields
from app.engine.lists.sketching import View, projection
from app.engine.lists.space import NOWHERE, distances_to

_BATCH_WORDS = 1 << 17
_ROWS_AT_A_TIME = 256

Places = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Entries to scan, and the place in the view of the base of all of them, or of each."""

    entries: Entries
    places: int | Places


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """Records of entries with their estimated squared distances from the query."""

    records: Records
    distances: Vector

    def nearest(self, n_kept: int) -> "Ranked":
        """Return the `n_kept` nearest, in no order."""
        if n_kept >= len(self.distances):
            return self
        rows = np.argpartition(self.distances, n_kept - 1)[:n_kept]
        return Ranked(self.records[rows], self.distances[rows])


@dataclass(frozen=True, slots=True, eq=False)
class _Sketched:
    """Entries with sketches: records, bits, and the place in the view of each one's base."""

    records: Records
    words: Words
    places: Places

    def __getitem__(self, rows: NDArray[np.intp]) -> "_Sketched":
        return _Sketched(self.records[rows], self.words[rows], self.places[rows])


@dataclass(frozen=True, slots=True, eq=False)
class _Rough:
    """Entries with sketches, and their first estimates."""

    entries: _Sketched
    distances: Vector

    def nearest(self, n_kept: int) -> "_Rough":
        """Return the `n_kept` nearest, in no order."""
        if n_kept >= len(self.distances):
            return self
        rows = np.argpartition(self.distances, n_kept - 1)[:n_kept]
        return _Rough(self.entries[rows], self.distances[rows])


def scan(
    view: View, point: Vector, segments: Sequence[Segment], *, first_cut: int, second_cut: int
) -> Ranked:
    """Return the entries of `segments` nearest to `point` (d,), of which `view` is: `second_cut`.

    They are in order. At most `first_cut` of those with sketches are looked at twice.
    """
    sketched: list[Segment] = []
    found: list[Ranked] = []
    for segment in segments:
        if segment.entries.is_exact:
            found.append(_exactly(point, segment.entries).nearest(second_cut))
        else:
            sketched.append(segment)
    if sketched:
        found.append(_roughly_then_finely(view, sketched, first_cut))
    if not found:
        return Ranked(np.empty(0, RECORD), np.empty(0, np.float32))
    records = np.concatenate([one.records for one in found])
    distances = np.concatenate([one.distances for one in found])
    best = Ranked(records, distances).nearest(second_cut)
    order = np.argsort(best.distances, kind="stable")
    return Ranked(best.records[order], best.distances[order])


def _exactly(point: Vector, entries: Entries) -> Ranked:
    distances = np.empty(len(entries), np.float32)
    for start in range(0, len(entries), _ROWS_AT_A_TIME):
        rows = slice(start, start + _ROWS_AT_A_TIME)
        distances[rows] = distances_to(point, entries.codes[rows])
    np.copyto(distances, NOWHERE, where=fields(entries.records)["length"] < 0)
    return Ranked(entries.records, distances)


def _roughly_then_finely(view: View, segments: Sequence[Segment], first_cut: int) -> Ranked:
    parts = [_rough(view, batch).nearest(first_cut) for batch in _batches(segments)]
    best = _together(parts).nearest(first_cut).entries
    return Ranked(best.records, _fine_distances(view, best))


def _rough(view: View, segments: Sequence[Segment]) -> _Rough:
    entries = _gathered(segments)
    return _Rough(entries, _rough_distances(view, entries))


def _together(parts: Sequence[_Rough]) -> _Rough:
    if len(parts) == 1:
        return parts[0]
    entries = _Sketched(
        np.concatenate([part.entries.records for part in parts]),
        np.concatenate([part.entries.words for part in parts]),
        np.concatenate([part.entries.places for part in parts]),
    )
    return _Rough(entries, np.concatenate([part.distances for part in parts]))


def _batches(segments: Sequence[Segment]) -> Iterator[Sequence[Segment]]:
    """Yield `segments` in parts of about so many words that they stay in the cache."""
    start, n_words = 0, 0
    for number, segment in enumerate(segments, 1):
        n_words += segment.entries.codes.size
        if n_words >= _BATCH_WORDS or number == len(segments):
            yield segments[start:number]
            start, n_words = number, 0


def _gathered(segments: Sequence[Segment]) -> _Sketched:
    entries = [segment.entries for segment in segments]
    return _Sketched(
        np.concatenate([each.records for each in entries]),
        np.concatenate([each.codes for each in entries]),
        _spread([segment.places for segment in segments], [len(each) for each in entries]),
    )


def _spread(places: Sequence[int | Places], sizes: Sequence[int]) -> Places:
    """Return the place of each entry of segments with these `places` and `sizes`."""
    if all(isinstance(place, int) for place in places):
        return np.repeat(np.array(places, np.intp), sizes)
    return np.concatenate(
        [
            np.full(size, place) if isinstance(place, int) else place
            for place, size in zip(places, sizes, strict=True)
        ]
    )


def _rough_distances(view: View, entries: _Sketched) -> Vector:
    """Estimate squared distances by the number of bits that differ."""
    differing = np.bitwise_count(entries.words ^ view.words.take(entries.places, axis=0))
    # As a product: a sum along rows this short takes three times as long.
    angles = differing.astype(np.float32) @ np.full(
        differing.shape[1], np.pi / view.bits, np.float32
    )
    squared = view.squared_distances
    lengths = fields(entries.records)["length"]
    estimates = np.cos(angles)
    estimates *= (-2 * np.sqrt(squared)).take(entries.places)
    return _completed(estimates, lengths, squared.take(entries.places))


def _fine_distances(view: View, entries: _Sketched) -> Vector:
    """Estimate squared distances by the query's rotated numbers."""
    ones = np.empty(len(entries.words), np.float32)
    for start in range(0, len(ones), _ROWS_AT_A_TIME):
        rows = slice(start, start + _ROWS_AT_A_TIME)
        bits = np.unpackbits(entries.words[rows].view(np.uint8), axis=1, count=view.bits)
        ones[rows] = bits.astype(np.float32) @ view.rotated
    sums = 2 * ones - view.rotated.sum() - fields(entries.records)["offset"]
    sums *= -2 * projection(view.bits)
    return _completed(
        sums, fields(entries.records)["length"], view.squared_distances.take(entries.places)
    )


def _completed(products: Vector, lengths: Vector, squared_distances: Vector) -> Vector:
    """Return |q - b|² + |r|² + |r|·p: `products` p estimate -2 times that of q - b and r/|r|."""
    distances: Vector = products + np.abs(lengths)
    distances *= np.abs(lengths)
    distances += squared_distances
    np.copyto(distances, NOWHERE, where=lengths < 0)
    return distances
