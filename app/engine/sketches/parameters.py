"""What an encoder has learned of an index's vectors: where they lie, and how far they spread.

A sketch shows differences of direction as seen from the mean μ. For cosine it takes x/|x| - μ (a
zero vector stays zero before μ is subtracted), for euclidean and squared_euclidean ((x - μ)/s, 1):
the constant coordinate lets one-bit sketches see norms, and the larger s is, the more of them. Our
`mean` is μ, our `scale` s.

μ is a winsorised mean: rows far outside of most are drawn in, so that an odd item spoils nothing. s
is the root of the mean squared distance from it, likewise, divided by one of `_TIGHTNESS`: by that
with which the sketches of a sample confuse near and far rows the least. All coordinates have one
scale, as the distance that is to be found knows of no other. The measurements are in
docs/decisions/0121-a-fitted-encoder.md.
"""

import struct
from dataclasses import dataclass, field
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from app.domain import Matrix, Metric, Vector
from app.errors import DataCorrupted

Rows: TypeAlias = NDArray[np.float64]

# The format of the parameters says which coins the encoder tosses, too.
COINS_OF_VECTORS = 1
COINS_OF_BITS = 2

_HEADER = struct.Struct("<BIId")
# Numbers that a fit looks at: some thousand rows. Medians take much longer than means, so those of
# fewer rows are where the mean starts from.
_FITTED_NUMBERS = 1 << 20
_MIN_FITTED_ROWS = 64
_MEDIAN_ROWS = 256
# A row is far outside beyond so many times the distance that this share of the rows keep.
_MOST = 0.8
_OUTSIDE = 2.0
_TIGHTNESS = (1.0, 2.0, 4.0, 8.0)
_USUAL_TIGHTNESS = 2.0
# Rows among which the nearest of some are looked for, and one in how many of them is a near one.
_COMPARED_ROWS = 512
_ASKED_ROWS = 32
_ROWS_A_NEAR_ONE = 50
# Flips and bits of a usual index: they decide how large a difference must be to be seen.
_USUAL_NOISE = 0.1
_MIN_BITS, _BITS_A_DIMENSION = 512, 2
# The data have moved when near and far rows are confused so many times as often as need be, and not
# by a mere trifle.
_MOVED = 1.3
_TRIFLE = 0.003
# Factor with which the logistic function is within .01 of the normal distribution's.
_LOGISTIC = 1.702


@dataclass(frozen=True, slots=True, eq=False)
class EncoderParameters:
    """Mean and scale. Stored sealed: they say where the vectors lie.

        format (1) ‖ version (4) ‖ dimension d (4) ‖ scale (8, float64) ‖ mean (4 · d, float32)

    All numbers little-endian, the integers unsigned. The format is 1 for encoders whose coins
    belong to item and vector, 2 for those whose coins belong to item, bit and value of the bit.
    """

    version: int
    mean: Vector = field(repr=False)
    scale: float = field(repr=False)
    coins: int = COINS_OF_BITS

    @classmethod
    def fit(cls, version: int, metric: Metric, sample: Matrix) -> Self:
        """Return what suits the vectors `sample` (n, d), of which there may be few or none."""
        n_rows = max(_MIN_FITTED_ROWS, _FITTED_NUMBERS // sample.shape[1])
        rows = _evenly(len(sample), n_rows)
        some = sample[rows].astype(np.float64)
        if metric is Metric.COSINE:
            return cls(version, _mean_direction(normalized(some)).astype(np.float32), 1.0)
        mean = _location(some).astype(np.float32)
        spread = _spread(some - mean)
        usual, *others = (
            cls(version, mean, spread / tightness) for tightness in (_USUAL_TIGHTNESS, *_TIGHTNESS)
        )
        if len(some) < _ASKED_ROWS:
            return usual
        return min(others, key=lambda one: one.confusion(metric, sample))

    def needs_refit(self, metric: Metric, sample: Matrix) -> bool:
        """Return whether the data have moved, so that a fit to `sample` (n, d) would do far better.

        True also for an encoder with the coins of format 1.
        """
        if self.coins != COINS_OF_BITS:
            return True
        needed = self.fit(self.version, metric, sample).confusion(metric, sample)
        return self.confusion(metric, sample) > _MOVED * needed + _TRIFLE

    def confusion(self, metric: Metric, sample: Matrix) -> float:
        """Return how often a far row's sketch is expected to be nearer than that of a near row.

        0 where sketches tell near and far rows of `sample` apart, 1/2 where they tell nothing.
        """
        some = sample[_evenly(len(sample), _COMPARED_ROWS)]
        if len(some) < 3:  # noqa: PLR2004 (a row, a near one, a far one)
            return 0.0
        asked = _evenly(len(some), _ASKED_ROWS)
        order = _by_distance(metric, some.astype(np.float64), asked)
        lifted = self.lift(metric, some)
        shares = differing_shares(lifted[asked], lifted, _USUAL_NOISE)
        ordered = np.take_along_axis(shares, order, axis=1)
        n_near = max(1, len(some) // _ROWS_A_NEAR_ONE)
        bits = max(_MIN_BITS, _BITS_A_DIMENSION * sample.shape[1])
        return _inversions(ordered[:, :n_near], ordered[:, n_near:], bits)

    def lift(self, metric: Metric, vectors: Matrix) -> Matrix:
        """Return rows (n, d or d + 1) of length 1, of which the sketch keeps the directions.

        float64 until then, so that nothing finite overflows.
        """
        rows = vectors.astype(np.float64)
        if metric is Metric.COSINE:
            lifted = normalized(rows) - self.mean
        else:
            lifted = np.ones((len(rows), rows.shape[1] + 1))
            lifted[:, :-1] = (rows - self.mean) / self.scale
        return normalized(lifted).astype(np.float32)

    def to_bytes(self) -> bytes:
        """Write the format above."""
        header = _HEADER.pack(self.coins, self.version, len(self.mean), self.scale)
        return header + self.mean.astype("<f4").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote. Raises `DataCorrupted`."""
        if len(data) < _HEADER.size:
            raise DataCorrupted("the stored encoder parameters are malformed")
        coins, version, dimension, scale = _HEADER.unpack_from(data)
        is_known = coins in {COINS_OF_VECTORS, COINS_OF_BITS}
        if not is_known or len(data) != _HEADER.size + 4 * dimension:
            raise DataCorrupted("the stored encoder parameters are malformed")
        mean = np.frombuffer(data, "<f4", offset=_HEADER.size).astype(np.float32)
        if not (0 < scale < np.inf and np.isfinite(mean).all()):
            raise DataCorrupted("the stored encoder parameters are malformed")
        return cls(version, mean, scale, coins)


def normalized(rows: Rows) -> Rows:
    """Return rows (n, d) of length 1; a zero row stays zero. No finite float32 overflows here."""
    norms = _norms(rows)[:, None]
    norms[norms == 0] = 1
    return rows / norms


def differing_shares(queries: Matrix, items: Matrix, noise: float) -> Rows:
    """Return the share of bits in which a stored sketch should differ from a query's: (q, n).

    `queries` (q, d) and `items` (n, d) are lifted. A bit of two sketches differs with probability
    θ/π, where θ is the angle between the lifted vectors (Charikar, STOC 2002); flips do the rest.
    """
    angles = np.arccos(np.clip((queries @ items.T).astype(np.float64), -1, 1))
    shares: Rows = angles / np.pi * (1 - 2 * noise) + noise
    return shares


def _evenly(n_rows: int, count: int) -> slice:
    """Return the slice of at most `count` rows that are evenly spread over `n_rows`."""
    return slice(None, None, max(1, -(-n_rows // count)))


def _norms(rows: Rows) -> Rows:
    norms: Rows = np.sqrt(np.vecdot(rows, rows))
    return norms


def _mean_direction(directions: Rows) -> Rows:
    """Mean of the rows that are not zero. A single one does not tell where others will be: zero."""
    nonzero = directions[directions.any(axis=1)]
    if len(nonzero) < 2:  # noqa: PLR2004 (see above)
        return np.zeros(directions.shape[1])
    mean: Rows = nonzero.mean(axis=0)
    return mean


def _location(rows: Rows) -> Rows:
    """Winsorised mean: what is far from the median is drawn in first. Of a single row: zero."""
    if len(rows) < 2:  # noqa: PLR2004 (a single one does not tell where others will be)
        return np.zeros(rows.shape[1])
    median: Rows = np.median(rows[_evenly(len(rows), _MEDIAN_ROWS)], axis=0)
    differences = rows - median
    weights = _drawn_in(_norms(differences))
    return median + weights @ differences / len(rows)


def _drawn_in(norms: Rows) -> Rows:
    """Return the factor with which each row is to be multiplied, so that none is far outside."""
    limit = _OUTSIDE * np.quantile(norms, _MOST)
    factors = np.divide(limit, norms, out=np.ones_like(norms), where=norms > 0)
    return np.minimum(1, factors)


def _spread(differences: Rows) -> float:
    """Root of the mean squared length of the rows, what is far outside drawn in; 1 if all are 0."""
    norms = _norms(differences)
    if not norms.any():
        return 1.0
    inside = norms * _drawn_in(norms)
    # When most rows are the same, what is outside is all that there is.
    return float(np.sqrt(np.mean((inside if inside.any() else norms) ** 2)))


def _by_distance(metric: Metric, rows: Rows, asked: slice) -> NDArray[np.intp]:
    """Return for each row of `asked` all others, the truly nearest first: (asked, n - 1)."""
    points = normalized(rows) if metric is Metric.COSINE else rows
    points = points - points.mean(axis=0)
    points /= np.abs(points).max() or 1
    squared = np.vecdot(points, points) - 2 * points[asked] @ points.T
    own = np.arange(len(rows))[asked]
    squared[np.arange(len(own)), own] = np.inf
    return np.argsort(squared, axis=1)[:, :-1]


def _inversions(near: Rows, far: Rows, bits: int) -> float:
    """Return how often the sketch of a far row should be nearer to a third than that of a near row.

    Given are the shares of bits in which they should differ from the third: (asked, near) and
    (asked, far).
    """
    variances = (near * (1 - near))[:, :, None] + (far * (1 - far))[:, None, :]
    deviations = (near[:, :, None] - far[:, None, :]) * np.sqrt(bits / variances)
    return float(np.mean(1 / (1 + np.exp(-_LOGISTIC * deviations))))
