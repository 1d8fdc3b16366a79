"""Sketches of points relative to the centroid of their list, and how a query is compared with them.

A sketch says where a point lies as seen from a base: the centroid of its list, or the space's
origin for a point that no list holds yet. With R a secret rotation (`sketches.rotation`), x the
point, b the base and r = x - b:

    bits     sign of each of the first m numbers of R r, 1 where ≥ 0
    length   |r|; negative for a point that is nowhere (`space`)
    offset   Σ s·R b, with s = ±1 for the bits

For a query q, |x - q|² = |q - b|² + |r|² - 2 r·(q - b). The inner product is estimated twice: from
the number of bits in which the signs of R r and R(q - b) differ, an angle (Charikar, *Similarity
Estimation Techniques from Rounding Algorithms*, STOC 2002), and for the best of these from the
numbers of R(q - b) themselves, as Σ s·R(q - b) = Σ s·R q - offset (Gao & Long, *RaBitQ*, SIGMOD
2024: our bits are their quantization code, our base is their centroid).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.crypto import hkdf
from app.domain import Matrix, Vector
from app.engine.lists.entries import Lists, Words
from app.engine.lists.space import distances_to
from app.engine.sketches.rotation import Rotation

# The list of a point that no list holds yet. As an index it leads to the last base, the origin.
NO_LIST = -1

_WORD_BYTES = 8
_CHUNK_NUMBERS = 1 << 16
_MIN_CHUNK = 16


@dataclass(frozen=True, slots=True, eq=False)
class Sketches:
    """Sketches of n points: bits as words (n, m / 64), lengths and offsets (n,)."""

    words: Words
    lengths: Vector
    offsets: Vector


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A query seen from p bases: bits (p, m / 64), squared distances (p,); rotated numbers (m,)."""

    words: Words
    squared_distances: Vector
    rotated: Vector

    @property
    def bits(self) -> int:
        """Number of bits of a sketch."""
        return len(self.rotated)


class Sketcher:
    """Makes sketches relative to `bases` (k + 1, d): the centroids, then the origin.

    Threads may share it.
    """

    def __init__(self, sketch_key: bytes, bases: Matrix, bits: int) -> None:
        self.bits = bits
        self._bases = bases
        rotation_key = hkdf.expand(sketch_key, "sketch/lists")
        self._rotation = Rotation.derive(rotation_key, bases.shape[1], bits)
        self._rotated_bases = self._rotated(bases)
        self._base_sums = self._rotated_bases.sum(axis=1)

    def sketch(self, points: Matrix, lists: Lists, is_nowhere: NDArray[np.bool_]) -> Sketches:
        """Return the sketches of `points` (n, d), relative to the base of each one's list."""
        words = self._no_words(len(points))
        lengths, offsets = np.empty((2, len(points)), np.float32)
        for rows in self._chunks(len(points)):
            residuals = points[rows] - self._bases[lists[rows]]
            lengths[rows] = np.sqrt(np.vecdot(residuals, residuals))
            # Signs are a quarter of the numbers to turn from columns into rows.
            signs = np.ascontiguousarray((self._columns(residuals) >= 0).T)
            self._write(words[rows], signs)
            ones = np.vecdot(signs.astype(np.float32), self._rotated_bases[lists[rows]])
            offsets[rows] = 2 * ones - self._base_sums[lists[rows]]
        np.negative(lengths, where=is_nowhere, out=lengths)
        return Sketches(words, lengths, offsets)

    def view(self, point: Vector, lists: NDArray[np.intp]) -> View:
        """Return the query `point` (d,) as seen from the bases of `lists` (p,)."""
        rotated = self._rotated(point[None])[0]
        words = self._no_words(len(lists))
        self._write(words, rotated >= self._rotated_bases[lists])
        return View(words, distances_to(point, self._bases[lists]), rotated)

    def _no_words(self, n_rows: int) -> Words:
        return np.zeros((n_rows, -(-self.bits // (8 * _WORD_BYTES))), np.uint64)

    def _write(self, words: Words, signs: NDArray[np.bool_]) -> None:
        words.view(np.uint8)[:, : self.bits // 8] = np.packbits(signs, axis=1)

    def _rotated(self, rows: Matrix) -> Matrix:
        """Return the first m numbers of R times each of `rows` (n, d), on the scale of the rows."""
        rotated = np.empty((len(rows), self.bits), np.float32)
        for part in self._chunks(len(rows)):
            rotated[part] = self._columns(rows[part]).T
        rotated /= self._rotation.size
        return rotated

    def _columns(self, rows: Matrix) -> Matrix:
        """Return the first m numbers of R times each of `rows` (n, d): columns, not scaled."""
        columns = np.zeros((self._rotation.size, len(rows)), np.float32)
        columns[: rows.shape[1]] = rows.T
        return self._rotation.rotate(columns)[: self.bits]

    def _chunks(self, n_rows: int) -> Iterator[slice]:
        step = max(_MIN_CHUNK, _CHUNK_NUMBERS // self._rotation.n_outputs)
        return (slice(start, start + step) for start in range(0, n_rows, step))


def projection(bits: int) -> float:
    """Return the factor by which Σ s·R x over `bits` signs estimates the product of x and r/|r|."""
    return math.sqrt(math.pi / 2) / bits
