"""How a search is made: how many lists it reads and how many candidates it opens."""

import math

from app import errors
from app.domain import Index, Query
from app.engine import costs
from app.engine.costs import Ask
from app.engine.keyed import KeyedIndex
from app.engine.profile import default_target
from app.engine.sketches import bound

_MAX_INT32 = 2**31 - 1
_MIN_TARGET_RECALL = 0.5


def check(query: Query) -> None:
    """Raise `InvalidInput` when a number of `query` is out of range."""
    _check_range("top_k", query.top_k, 1)
    _check_range("rerank_mult", query.rerank_mult, 0)
    _check_range("n_probes", query.n_probes, 0)
    target = query.target_recall
    if target is not None and not _MIN_TARGET_RECALL <= target <= 1:
        raise errors.InvalidInput(f"target_recall must be between {_MIN_TARGET_RECALL} and 1")


def ask(keyed: KeyedIndex, query: Query, top_k: int, usual_target: float) -> Ask:
    """Return what `query` asks for: what it says itself, and for the rest what the profile says."""
    index = keyed.index
    target = query.target_recall
    if target is None:
        target = default_target(usual_target, top_k) if index.is_trained else None
    planned = _planned(keyed, top_k, target)
    pool = max(planned.pool, top_k * (query.rerank_mult or 0))
    mult = costs.FILTERED_PROBES_MULT if query.filters else 1
    n_probes = query.n_probes or math.ceil(planned.n_probes * mult)
    asked = Ask(
        top_k=top_k,
        pool=pool,
        n_probes=min(n_probes, index.n_lists),
        target_recall=planned.target_recall,
        is_n_probes_given=bool(query.n_probes),
        is_exact=_is_exact(index, query),
    )
    return asked.filtered() if query.filters else asked


def _is_exact(index: Index, query: Query) -> bool:
    """Whether `query` asks for every list of a trained index, or for all that is near.

    Clients of old send one probe with every query: it counts only once an index has lists.
    """
    return query.target_recall == 1 or (index.is_trained and (query.n_probes or 0) >= index.n_lists)


def _planned(keyed: KeyedIndex, top_k: int, target: float | None) -> Ask:
    """Return what the profile says; without one, as before a training, every list is read."""
    if keyed.profile is not None and target is not None:
        n_probes, pool = keyed.profile.choice(top_k, target)
        return Ask(top_k=top_k, pool=pool, n_probes=n_probes, target_recall=target)
    wanted = bound.usual_target(top_k) if target is None else target
    # What nobody has asked for does not make the first look larger: the winners tell.
    floor = next(pool for recall, pool in costs.UNMEASURED_POOLS if (target or 0) <= recall)
    pool = max(floor, top_k * costs.UNMEASURED_POOL_MULT)
    return Ask(top_k=top_k, pool=pool, n_probes=keyed.index.n_lists, target_recall=wanted)


def _check_range(name: str, value: int | None, minimum: int) -> None:
    if value is not None and not minimum <= value <= _MAX_INT32:
        raise errors.InvalidInput(f"{name} must be between {minimum} and {_MAX_INT32}")
