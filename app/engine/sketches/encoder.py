"""The keyed encoder: vectors in, bits out.

A sketch is a keyed transform of a vector, not an encryption of it: near vectors have near sketches
(Hamming distance), which is what PostgreSQL searches by and what the server learns. README.md says
what that is worth to an attacker.

1. Lift    `EncoderParameters.lift`: away from the mean, to length 1.
2. Rotate  `rotation.Rotation`: after Ailon & Chazelle (STOC 2006) and Andoni et al. (NIPS 2015).
3. Sign    the first m numbers, a bit each: 1 where ≥ 0.
4. Flip    stored items only, never queries: `flips.Flips`.

Our `bits` is m. Two machines may disagree about the sign of a number within rounding of zero:
compare sketches by distance, never for equality across platforms.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from app.crypto import hkdf
from app.domain import Matrix, Metric, Sketches, Vector
from app.engine.sketches.flips import BitFlips, VectorFlips
from app.engine.sketches.parameters import (
    COINS_OF_BITS,
    COINS_OF_VECTORS,
    EncoderParameters,
    differing_shares,
)
from app.engine.sketches.rotation import Rotation
from app.errors import DataCorrupted, InvalidInput

MIN_SKETCH_BITS = 512
# pgvector's limit for an indexed bit string.
MAX_SKETCH_BITS = 64_000

# Numbers that one pass keeps in memory: the buffers of a rotation then stay in the second-level
# cache.
_CHUNK_NUMBERS = 1 << 16
_MIN_CHUNK = 16

_FLIPS: Mapping[int, type[BitFlips | VectorFlips]] = {
    COINS_OF_VECTORS: VectorFlips,
    COINS_OF_BITS: BitFlips,
}


def sketch_bits(dimension: int) -> int:
    """Default number of bits: two a dimension, at least 512, rounded up to 64, at most 64,000."""
    bits = max(MIN_SKETCH_BITS, 2 * dimension)
    return min(MAX_SKETCH_BITS, -(-bits // 64) * 64)


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
        self._flips = _FLIPS[parameters.coins](sketch_key, bits, noise)
        self._noise = noise

    def encode_queries(self, vectors: Matrix) -> Sketches:
        """Sketch of each vector (n, d): shape (n, bits / 8). Never flipped."""
        self._check_shape(vectors)
        sketches = np.empty((len(vectors), self.bits // 8), np.uint8)
        for rows in self._chunks(len(vectors)):
            sketches[rows] = self._signs(self._lift(vectors[rows]))
        return sketches

    def encode_items(self, vectors: Matrix, item_keys: Sequence[bytes]) -> Sketches:
        """Sketch to store for each item (n, d): shape (n, bits / 8), with the flips of its key.

        Pass the vectors as they read when opened again, that is rounded to float16 where an index
        stores float16: re-encoding must find the same bits, and so the same flips.
        """
        sketches = self.encode_queries(vectors)
        for rows in self._chunks(len(vectors)):
            sketches[rows] = self._flips.flip(sketches[rows], vectors[rows], item_keys[rows])
        return sketches

    def differing_shares(self, query: Vector, items: Matrix) -> NDArray[np.float64]:
        """Return the shares of bits in which stored sketches should differ from that of `query`.

        `query` (d,) and `items` (n, d) are vectors; the answer is (n,).
        """
        lifted = self._lift(np.vstack([query, items]))
        shares: NDArray[np.float64] = differing_shares(lifted[:1], lifted[1:], self._noise)[0]
        return shares

    def _check_shape(self, vectors: Matrix) -> None:
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:  # noqa: PLR2004 (rows and columns)
            raise InvalidInput(f"vectors must have {self.dimension} dimensions")

    def _chunks(self, n_vectors: int) -> Iterator[slice]:
        step = max(_MIN_CHUNK, _CHUNK_NUMBERS // self._rotation.n_outputs)
        return (slice(start, start + step) for start in range(0, n_vectors, step))

    def _lift(self, vectors: Matrix) -> Matrix:
        """Step 1: rows (n, d or d + 1) of length 1."""
        return self.parameters.lift(self.metric, vectors)

    def _signs(self, lifted: Matrix) -> Sketches:
        """Do steps 2 and 3: packed bits (n, bits / 8)."""
        columns = np.zeros((self._rotation.size, len(lifted)), np.float32)
        columns[: self._lifted_dimension] = lifted.T
        rotated = self._rotation.rotate(columns)[: self.bits]
        # Copied to rows first: packing along a strided axis takes five times as long.
        return np.packbits(np.ascontiguousarray((rotated >= 0).T), axis=1)
