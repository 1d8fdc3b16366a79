"""How a search is made: how many lists it reads and how many candidates it opens."""

import math
from dataclasses import dataclass

from app import errors
from app.domain import Query
from app.engine.keyed import KeyedIndex
from app.engine.profile import Choice, default_target

_DEFAULT_RERANK_MULT = 10
_MAX_INT32 = 2**31 - 1
# The nearest that match a filter are farther from the query than the nearest of all, and so in more
# lists.
_FILTERED_PROBES_MULT = 1.35
_MIN_TARGET_RECALL = 0.5
# Candidates for a target recall where nothing was measured: an untrained index scans all sketches,
# and what it misses it misses by the noise of the sketches.
_MIN_POOLS = ((0.97, 200), (0.99, 500), (1.0, 2_000))


@dataclass(frozen=True, slots=True)
class Scan:
    """What the approximate scan of a query is asked for."""

    top_k: int
    pool: int
    n_probes: int
    # Whether the query has said so itself.
    is_n_probes_given: bool = False


def check(query: Query) -> None:
    """Raise `InvalidInput` when a number of `query` is out of range."""
    _check_range("top_k", query.top_k, 1)
    _check_range("rerank_mult", query.rerank_mult, 0)
    _check_range("n_probes", query.n_probes, 0)
    target = query.target_recall
    if target is not None and not _MIN_TARGET_RECALL <= target <= 1:
        raise errors.InvalidInput(f"target_recall must be between {_MIN_TARGET_RECALL} and 1")


def scan(opened: KeyedIndex, query: Query, top_k: int, usual_target: float) -> Scan:
    """Return the scan for `query`: what it says itself, and for the rest what the index's profile says."""
    index = opened.index
    target = query.target_recall
    if target is None:
        target = default_target(usual_target, top_k)
    choice = _choice(opened, top_k, target)
    pool = choice.pool
    if query.rerank_mult is not None:
        pool = top_k * max(1, query.rerank_mult)
        if not index.is_trained:
            pool = max(pool, choice.pool)
    n_probes = math.ceil(choice.n_probes * (_FILTERED_PROBES_MULT if query.filters else 1))
    return Scan(top_k, pool, min(query.n_probes or n_probes, index.n_lists), bool(query.n_probes))


def _choice(opened: KeyedIndex, top_k: int, target: float) -> Choice:
    if opened.profile is not None:
        return opened.profile.choice(top_k, target)
    floor = next(pool for recall, pool in _MIN_POOLS if target <= recall)
    # Without a profile, as after a training by someone without a key, every list is read: slow, but
    # never wrong.
    return Choice(opened.index.n_lists, max(floor, top_k * _DEFAULT_RERANK_MULT))


def _check_range(name: str, value: int | None, minimum: int) -> None:
    if value is not None and not minimum <= value <= _MAX_INT32:
        raise errors.InvalidInput(f"{name} must be between {minimum} and {_MAX_INT32}")
