"""The search profile of a trained index: what a search needs for a target recall, as measured."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import msgspec

_MORE_MISSING = 0.2


class Point(NamedTuple):
    """A setting of a search, the recall it was measured to have, and the recall it promises."""

    n_probes: int
    pool: int
    recall: float
    lower: float


class Choice(NamedTuple):
    """How many lists to read and how many candidates to open."""

    n_probes: int
    pool: int


class SearchProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What a training measured: the cheapest points by `top_k`, in the order of cost and recall.

    `recall` is that of the setting which is the cheapest to keep `target` for the smallest `top_k`.
    """

    n_lists: int
    points: Mapping[int, Sequence[Point]] = {}
    n_items: int | None = None
    target: float | None = None
    recall: float | None = None
    imbalance: float | None = None

    @classmethod
    def from_json(cls, n_lists: int, data: Mapping[str, Any] | None) -> Self | None:
        """Return the profile stored with an index of `n_lists` lists; None when there is none."""
        if not data:
            return None
        return msgspec.convert({**data, "n_lists": n_lists}, cls, str_keys=True)

    def to_json(self) -> dict[str, Any]:
        """Return what is stored with the index, whose number of lists has a column of its own."""
        data: dict[str, Any] = msgspec.to_builtins(self, str_keys=True)
        del data["n_lists"]
        return data

    def choice(self, top_k: int, target_recall: float) -> Choice:
        """Return the cheapest setting that keeps `target_recall` for `top_k` results.

        Between two measured numbers of results the setting grows with the logarithm of the number.
        Above the largest the pool grows with the number, and the probes as they did between the
        measured ones. A target that no measured setting reaches is answered with all lists and the
        largest pool that was measured.
        """
        low, high = min(self.points), max(self.points)
        at_low = self._at(low, target_recall)
        if top_k <= low or low == high:
            return _grown(at_low, low, top_k)
        at_high = _larger(at_low, self._at(high, target_recall))
        share = math.log(top_k / low) / math.log(high / low)
        n_probes = math.ceil(at_low.n_probes + share * (at_high.n_probes - at_low.n_probes))
        if top_k > high:
            return _grown(Choice(min(n_probes, self.n_lists), at_high.pool), high, top_k)
        pool = math.ceil(at_low.pool * (at_high.pool / at_low.pool) ** share)
        return Choice(n_probes, max(pool, top_k))

    def _at(self, top_k: int, target_recall: float) -> Choice:
        """Return the setting for a measured `top_k`."""
        measured = self.points[top_k]
        for point in measured:
            if point.lower >= target_recall:
                return Choice(min(point.n_probes, self.n_lists), point.pool)
        return Choice(self.n_lists, max(point.pool for point in measured))


def _larger(one: Choice, other: Choice) -> Choice:
    return Choice(max(one.n_probes, other.n_probes), max(one.pool, other.pool))


def _grown(choice: Choice, measured_top_k: int, top_k: int) -> Choice:
    if top_k <= measured_top_k:
        return Choice(choice.n_probes, max(choice.pool, top_k))
    return Choice(choice.n_probes, math.ceil(choice.pool * top_k / measured_top_k))


def default_target(target_recall: float, top_k: int) -> float:
    """Return what a search that names no target is to find, from the target for 10 results.

    It is `target_recall` of up to 10 results. Of 100 results and more, a fifth more may be missing:
    the last places are the dearest, and matter the least.
    """
    share = min(1.0, max(0.0, math.log10(top_k / 10)))
    return 1 - (1 - target_recall) * (1 + _MORE_MISSING * share)
