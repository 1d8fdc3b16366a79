"""Whether the candidates that were opened are enough, and how far to look if they are not.

Candidates are the items whose sketches are nearest to the query's; the winners are the nearest of
them by exact distance. An item as near as the winners is missed when noise has put its sketch
farther away than was looked. How often that happens follows from the winners themselves:

1. The stored sketch of a winner differs from the query's in a share p of the m bits
   (`Encoder.differing_shares`). The number of these bits is nearly normal, with mean m p and
   variance m p (1 - p).
2. Everything below the Hamming distance r was opened. So an item as near as that winner was found
   with probability π = Φ((r - 1/2 - m p) / √(m p (1 - p))).
3. A winner stands for 1/π items that are as near, found or not (Horvitz & Thompson, JASA 1952). So
   of k winners, k / Σ 1/π is the recall to be expected.

The data need not be of any kind for this. Where sketches tell nothing apart, p is close to 1/2 for
winners as for all others, π is small, and the next look goes far, up to all items.
docs/decisions/0120-enough-candidates.md has the measurements.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from app.domain import Matrix, Vector
from app.engine.sketches.encoder import Encoder
from app.observe.stages import timed

Shares: TypeAlias = NDArray[np.float64]
Hammings: TypeAlias = NDArray[np.integer]

# The target is the mean over queries, of which some are content with less and some find more: so
# many times the share that may be missing is what a single query may expect to miss.
_LEAST = 2
# A query that looks on aims at this part of it: on hard data every query looks on, and their mean
# is to be above the target.
_AIM = 0.5
# The shares that may be missing of 10 results and of 100, if nobody says anything else.
_FEW_MISSING, _MANY_MISSING = 0.0075, 0.02
# How many more candidates a look asks for than it expects within its distance, and than the last.
_MARGIN = 1.25
_GROWTH = 2
# A third look is rare. From then on a look goes so far that it should find so many times as many as
# the last, so that there are few of them.
_EXPECTED_LOOKS = 2
_LATER_GROWTH = 4
# So many winners speak for all: with more it takes longer, not better.
_MAX_ASKED = 32
_STANDARD = NormalDist()
# The distribution function of the standard normal distribution, as a table; beyond it an item is as
# good as never or always found.
_DEVIATIONS = np.linspace(-5, 5, 1_001)
_CHANCES = np.array([_STANDARD.cdf(one) for one in _DEVIATIONS.tolist()])


class Look(NamedTuple):
    """How far a look at the nearest sketches goes: a Hamming distance, and a number of candidates.

    The first look has no limit of distance but the number of bits. For further ones the number of
    candidates is an estimate. Where it is too low there will be another look; where it is too high,
    the distance tells where to stop.
    """

    limit: int
    n_candidates: int
    number: int = 1

    def reach(self, hammings: Hammings) -> int:
        """Return the Hamming distance below which everything was found, the candidates' given.

        At the distance of the last of as many as it was to find, there may be more of them.
        """
        return int(hammings[-1]) if len(hammings) >= self.n_candidates else self.limit + 1


@dataclass(frozen=True, slots=True)
class Opened:
    """What a query knows after a look: the winners (k, d), the distance of the worst, candidates.

    Winners are nearest first, and so are `hammings`, the Hamming distances of all candidates.
    """

    winners: Matrix
    worst: float
    look: Look
    hammings: Hammings


@timed("rerank")
def further(
    encoder: Encoder, query: Vector, opened: Opened, n_items: int, target: float
) -> Look | None:
    """Return how to look on for the recall `target` of `query` (d,), None when it is kept.

    There are about `n_items` to look among: all items of the index, or those in the lists that are
    read, or those that match the filter. None also when all of them were opened, or when no winner
    is at any distance, as nothing is nearer than that.
    """
    reach = opened.look.reach(opened.hammings)
    if opened.worst <= 0 or reach > encoder.bits or not len(opened.winners):
        return None
    # The worst first: they are what may be missed.
    some = opened.winners[:: -math.ceil(len(opened.winners) / _MAX_ASKED)]
    shares = encoder.differing_shares(query, some)
    if recall(shares, encoder.bits, reach) >= 1 - _LEAST * (1 - target):
        return None
    limit = reach_for(shares, encoder.bits, 1 - _AIM * (1 - target)) - 1
    return _look_up_to(max(reach, limit), opened, n_items, encoder.bits)


def usual_target(top_k: int) -> float:
    """Return the recall that an untrained index keeps, if nobody says anything else.

    Of 10 results nearly all. Of 100 and more a little less: their last places are the dearest, and
    matter the least.
    """
    share = min(1.0, max(0.0, math.log10(top_k / 10)))
    return 1 - _FEW_MISSING * math.exp(share * math.log(_MANY_MISSING / _FEW_MISSING))


def recall(shares: Shares, bits: int, reach: float) -> float:
    """Return the recall to expect of winners with `shares` (k,) if all below `reach` was opened."""
    means = bits * shares
    # A quarter for whole numbers: without flips, the sketch of the query itself has no variance.
    deviations = (reach - 0.5 - means) / np.sqrt(means * (1 - shares) + 0.25)
    return float(len(shares) / np.sum(1 / np.interp(deviations, _DEVIATIONS, _CHANCES)))


def reach_for(shares: Shares, bits: int, target: float) -> int:
    """Return the least Hamming distance at which `recall` is `target`, or the number of bits."""
    low, high = 0, bits
    while low < high:
        middle = (low + high) // 2
        if recall(shares, bits, middle) >= target:
            high = middle
        else:
            low = middle + 1
    return high


def _look_up_to(limit: int, opened: Opened, n_items: int, bits: int) -> Look:
    """Return the look that should find everything up to `limit`, or farther if it is a late one."""
    number = opened.look.number + 1
    is_late = number > _EXPECTED_LOOKS
    least = len(opened.hammings) * (_LATER_GROWTH if is_late else _GROWTH)
    others = _distribution(opened.hammings, n_items)
    if others is None or least >= n_items:
        n_all = max(n_items, len(opened.hammings) + 1)
        return Look(bits if is_late else limit, n_all, number)
    if is_late:
        limit = max(limit, math.ceil(others.inv_cdf(least / n_items)))
    expected = math.ceil(_MARGIN * n_items * others.cdf(limit))
    return Look(min(limit, bits), max(least, min(n_items, expected)), number)


def _distribution(hammings: Hammings, n_items: int) -> NormalDist | None:
    """Return how the Hamming distances of all items are spread, None if the nearest do not tell.

    The half and the whole of the nearest determine a normal distribution.
    """
    n_opened = len(hammings)
    middle, last = float(hammings[n_opened // 2]), float(hammings[-1])
    n_all = max(n_items, n_opened) + 1
    low, high = (_STANDARD.inv_cdf(count / n_all) for count in (n_opened // 2 + 1, n_opened))
    if middle >= last or low >= high:
        return None
    deviation = (last - middle) / (high - low)
    return NormalDist(last - high * deviation, deviation)
