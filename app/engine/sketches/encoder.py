"""The keyed encoder: vectors in, bits out.

A sketch is a keyed transform of a vector, not an encryption of it: near vectors have near sketches
(Hamming distance), which is what PostgreSQL searches by and what the server learns. README.md says
what that is worth to an attacker.

1. Lift    cosine: x/|x| - μ (a zero vector stays zero). euclidean, squared_euclidean: ((x - μ)/s, 1); the constant
           coordinate lets one-bit sketches see norms. Then scale to length 1, which changes no sign.
2. Rotate  `rotation.Rotation`: after Ailon & Chazelle (STOC 2006) and Andoni et al. (NIPS 2015).
3. Sign    the first m numbers, a bit each: 1 where ≥ 0.
4. Flip    stored items only, never queries: `flips.Flips`.

Our `mean` is μ, our `scale` s, our `bits` m. Two machines may disagree about the sign of a number
within rounding of zero: compare sketches by distance, never for equality across platforms.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from app.crypto import hkdf
from app.domain import Matrix, Metric, Sketches, Vector
from app.engine.sketches.flips import Flips
from app.engine.sketches.rotation import Rotation
from app.errors import DataCorrupted, InvalidInput

MIN_SKETCH_BITS = 512
# pgvector's limit for an indexed bit string.
MAX_SKETCH_BITS = 64_000

_HEADER = struct.Struct("<BIId")
_FORMAT = 1
# Numbers that one pass keeps in memory: the buffers of a rotation then stay in the second-level
# cache.
_CHUNK_NUMBERS = 1 << 16
_MIN_CHUNK = 16


def sketch_bits(dimension: int) -> int:
    """Default number of bits: two a dimension, at least 512, rounded up to 64, at most 64,000."""
    bits = max(MIN_SKETCH_BITS, 2 * dimension)
    return min(MAX_SKETCH_BITS, -(-bits // 64) * 64)


def _norms(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Length of each row (n, d): shape (n, 1). In float64 no finite float32 vector overflows or vanishes."""
    norms: NDArray[np.float64] = np.sqrt(np.vecdot(rows, rows))[:, None]
    return norms


def _normalized(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length 1; a zero row stays zero."""
    norms = _norms(rows)
    norms[norms == 0] = 1
    return rows / norms


def _rms_norm(rows: NDArray[np.float64]) -> float:
    """Root of the mean squared length of the rows; 1 where there is none to divide by."""
    if not rows.size:
        return 1.0
    scale = float(np.sqrt(np.mean(np.vecdot(rows, rows))))
    return scale if 0 < scale < np.inf else 1.0


@dataclass(frozen=True, slots=True, eq=False)
class EncoderParameters:
    """What an encoder has learned from an index's vectors. Stored sealed: it says where the vectors lie.

        format (1) = 0x01 ‖ version (4) ‖ dimension d (4) ‖ scale (8, float64) ‖ mean (4 · d, float32)

    All numbers little-endian, the integers unsigned.
    """

    version: int
    mean: Vector = field(repr=False)
    scale: float = field(repr=False)

    @classmethod
    def initial(cls, metric: Metric, batch: Matrix) -> Self:
        """Version 0, for an index that has only its first `batch` (n, d): no mean yet."""
        is_cosine = metric is Metric.COSINE
        scale = 1.0 if is_cosine else _rms_norm(batch.astype(np.float64))
        return cls(0, np.zeros(batch.shape[1], np.float32), scale)

    @classmethod
    def fit(cls, version: int, metric: Metric, sample: Matrix) -> Self:
        """Mean and scale of the vectors `sample` (n, d); for cosine, the mean of their directions."""
        rows = sample.astype(np.float64)
        if not len(rows):
            return cls(version, np.zeros(sample.shape[1], np.float32), 1.0)
        if metric is Metric.COSINE:
            return cls(version, _normalized(rows).mean(axis=0).astype(np.float32), 1.0)
        mean = rows.mean(axis=0).astype(np.float32)
        return cls(version, mean, _rms_norm(rows - mean))

    def to_bytes(self) -> bytes:
        """Write the format above."""
        header = _HEADER.pack(_FORMAT, self.version, len(self.mean), self.scale)
        return header + self.mean.astype("<f4").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote. Raises `DataCorrupted`."""
        if len(data) < _HEADER.size:
            raise DataCorrupted("the stored encoder parameters are malformed")
        data_format, version, dimension, scale = _HEADER.unpack_from(data)
        if data_format != _FORMAT or len(data) != _HEADER.size + 4 * dimension:
            raise DataCorrupted("the stored encoder parameters are malformed")
        mean = np.frombuffer(data, "<f4", offset=_HEADER.size).astype(np.float32)
        if not (0 < scale < np.inf and np.isfinite(mean).all()):
            raise DataCorrupted("the stored encoder parameters are malformed")
        return cls(version, mean, scale)


class Encoder:
    """Turns vectors of one index into sketches. Costs a keystream and a sort to build: keep it.

    Safe to share between threads.
    """

    def __init__(  # noqa: PLR0913, PLR0917 (what an encoder is, in the order of the specification)
        self,
        sketch_key: bytes,
        dimension: int,
        metric: Metric,
        bits: int,
        noise: float,
        parameters: EncoderParameters,
    ) -> None:
        if not 0 < bits <= MAX_SKETCH_BITS or bits % 8:
            raise InvalidInput(f"sketch_bits must be a multiple of 8, at most {MAX_SKETCH_BITS}")
        if not 0 <= noise <= 0.5:  # noqa: PLR2004 (at one half a sketch says nothing)
            raise InvalidInput("sketch_noise must be between 0 and 0.5")
        if parameters.mean.shape != (dimension,):
            raise DataCorrupted("the stored encoder parameters are of another dimension")
        self.dimension = dimension
        self.metric = metric
        self.bits = bits
        self.parameters = parameters
        self._lifted_dimension = dimension if metric is Metric.COSINE else dimension + 1
        rotation_key = hkdf.expand(sketch_key, "sketch/rotation")
        self._rotation = Rotation.derive(rotation_key, self._lifted_dimension, bits)
        self._flips = Flips.derive(sketch_key, bits, noise)
        self._noise = noise

    def encode_queries(self, vectors: Matrix) -> Sketches:
        """Sketch of each vector (n, d): shape (n, bits / 8). Never flipped."""
        self._check_shape(vectors)
        sketches = np.empty((len(vectors), self.bits // 8), np.uint8)
        for rows in self._chunks(len(vectors)):
            sketches[rows] = self._signs(self._lift(vectors[rows]))
        return sketches

    def encode_items(self, vectors: Matrix, item_keys: Sequence[bytes]) -> Sketches:
        """Sketch to store for each item (n, d): shape (n, bits / 8), with the flips of its key and vector.

        Pass the vectors as they read when opened again, that is rounded to float16 where an index
        stores float16: the flips depend on every bit of them, and re-encoding must find the same
        flips.
        """
        sketches = self.encode_queries(vectors)
        for rows in self._chunks(len(vectors)):
            sketches[rows] ^= self._flips.mask(vectors[rows], item_keys[rows])
        return sketches

    def distance_bound(self, query: Vector, items: Matrix, n_deviations: float) -> float:
        """Hamming distance that the stored sketches of items as far from `query` (d,) as `items` (n, d) seldom exceed.

        A bit of two sketches differs with probability θ/π, where θ is the angle between the lifted
        vectors (Charikar, STOC 2002), and flips do the rest. The bound is so many standard
        deviations above what is to be expected of the farthest of `items`, bits taken as
        independent; the rows of a rotation are less than that.
        """
        query_and_items = self._lift(np.vstack([query, items]))
        nearness = float((query_and_items[1:] @ query_and_items[0]).min())
        share = np.arccos(np.clip(nearness, -1, 1)) / np.pi
        share = share * (1 - 2 * self._noise) + self._noise
        return float(self.bits * share + n_deviations * np.sqrt(self.bits * share * (1 - share)))

    def _check_shape(self, vectors: Matrix) -> None:
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:  # noqa: PLR2004 (rows and columns)
            raise InvalidInput(f"vectors must have {self.dimension} dimensions")

    def _chunks(self, n_vectors: int) -> Iterator[slice]:
        step = max(_MIN_CHUNK, _CHUNK_NUMBERS // self._rotation.n_outputs)
        return (slice(start, start + step) for start in range(0, n_vectors, step))

    def _lift(self, vectors: Matrix) -> Matrix:
        """Step 1: rows (n, d or d + 1) of length 1. float64 until then, so that nothing finite overflows."""
        rows = vectors.astype(np.float64)
        if self.metric is Metric.COSINE:
            lifted = _normalized(rows) - self.parameters.mean
        else:
            lifted = np.ones((len(rows), self._lifted_dimension))
            lifted[:, :-1] = (rows - self.parameters.mean) / self.parameters.scale
        return _normalized(lifted).astype(np.float32)

    def _signs(self, lifted: Matrix) -> Sketches:
        """Do steps 2 and 3: packed bits (n, bits / 8)."""
        columns = np.zeros((self._rotation.size, len(lifted)), np.float32)
        columns[: self._lifted_dimension] = lifted.T
        rotated = self._rotation.rotate(columns)[: self.bits]
        # Copied to rows first: packing along a strided axis takes five times as long.
        return np.packbits(np.ascontiguousarray((rotated >= 0).T), axis=1)
