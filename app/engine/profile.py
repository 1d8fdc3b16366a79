"""The search profile of a trained index: how many probes and candidates a search needs for a target recall."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

_MORE_MISSING = 0.2


class Point(NamedTuple):
    """A setting of a search, the recall it was measured to have, and the recall that is safe to promise."""

    n_probes: int
    pool: int
    recall: float
    lower: float


class Choice(NamedTuple):
    """How many lists to read and how many candidates to open."""

    n_probes: int
    pool: int


@dataclass(frozen=True, slots=True)
class Profile:
    """The cheapest points by `top_k`, each list in the order of cost and recall."""

    n_lists: int
    points: Mapping[int, Sequence[Point]]

    @classmethod
    def from_json(cls, n_lists: int, data: Mapping[str, Any] | None) -> Self | None:
        """Return the profile stored with an index of `n_lists` lists, or None when none was measured."""
        if not data or not data.get("points"):
            return None
        points = {
            int(top_k): [Point(*point) for point in measured]
            for top_k, measured in data["points"].items()
        }
        return cls(n_lists, points)

    def choice(self, top_k: int, target_recall: float) -> Choice:
        """Return the cheapest setting that keeps `target_recall` for `top_k` results.

        Between two measured numbers of results it grows with the logarithm of their number. Above
        the largest the pool grows with it, and the probes as they did between the measured ones. A
        target that no measured setting reaches is answered with all lists and a pool as large as
        was measured.
        """
        low, *others = sorted(self.points)
        at_low = self._at(low, target_recall)
        if top_k <= low or not others:
            return self._grown(at_low, low, top_k)
        high = others[-1]
        at_high = self._at(high, target_recall)
        at_high = Choice(max(at_low.n_probes, at_high.n_probes), max(at_low.pool, at_high.pool))
        share = math.log(top_k / low) / math.log(high / low)
        n_probes = math.ceil(at_low.n_probes + share * (at_high.n_probes - at_low.n_probes))
        if top_k > high:
            return self._grown(Choice(min(n_probes, self.n_lists), at_high.pool), high, top_k)
        pool = math.ceil(at_low.pool * (at_high.pool / at_low.pool) ** share)
        return Choice(n_probes, max(pool, top_k))

    def _at(self, top_k: int, target_recall: float) -> Choice:
        """Return the setting for a measured `top_k`."""
        measured = self.points[top_k]
        for point in measured:
            if point.lower >= target_recall:
                return Choice(min(point.n_probes, self.n_lists), point.pool)
        return Choice(self.n_lists, max(point.pool for point in measured))

    @staticmethod
    def _grown(choice: Choice, measured_top_k: int, top_k: int) -> Choice:
        if top_k <= measured_top_k:
            return Choice(choice.n_probes, max(choice.pool, top_k))
        return Choice(choice.n_probes, math.ceil(choice.pool * top_k / measured_top_k))


def default_target(target_recall: float, top_k: int) -> float:
    """Return what a search that names no target is to find: `target_recall` of up to 10 results, a little less of more.

    Of 100 results and more, a fifth more may be missing: the last places are the dearest, and
    matter the least.
    """
    share = min(1.0, max(0.0, math.log10(top_k / 10)))
    return 1 - (1 - target_recall) * (1 + _MORE_MISSING * share)
