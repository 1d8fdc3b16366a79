"""Whether an index has drifted from what its training saw, and why; `train` repairs it.

Decided here and nowhere else. The service looks at every trained index whose items have changed and
stores its verdict, which `/metrics`, `sealdex status` and the view of indexes show; stats look
afresh.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app import errors, store
from app.domain import AuditEntry, Index
from app.engine.kinds import trainable
from app.engine.profile import SearchProfile
from app.store.drift import Verdict
from app.store.indexes import Counts

logger = logging.getLogger(__name__)

# Lists this much more uneven than at training are read for nothing by some queries and missed by
# others.
_UNEVEN = 1.5
# An index that has grown so many times is trained again.
_GROWTH = 4
_MIN_IMBALANCE = 3.0
# Items whose lists are looked at to tell how even the lists are.
_N_LIST_SAMPLES = 100
# Indexes that a worker looks at in one round.
_INDEXES_A_ROUND = 100


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of an index at one time, and the verdict on it."""

    counts: Counts
    verdict: Verdict


async def look(connection: AsyncConnection, index: Index, drift_share: float) -> Look:
    """Count the changes to an index, measure its lists, and judge. Needs no key."""
    counts = await store.indexes.counts(connection, index.id)
    uneven = await _list_imbalance(connection, index, counts.n_items) if index.is_trained else None
    why = reasons(index, counts, uneven, drift_share)
    return Look(counts, Verdict(counts.n_changes, drift_share, uneven, why))


async def look_at_changed(
    engine: AsyncEngine,
    drift_share: float,
    *,
    is_first_round: bool = False,
    asks_for_training: bool = False,
) -> int:
    """Renew the verdict on trained indexes whose items have changed; return how many there were.

    The first round of a service renews those too that were judged by another drift share. A
    verdict `asks_for_training` if the settings allow it: the next request with the key starts it.
    """
    judged_otherwise = drift_share if is_first_round else None
    async with engine.connect() as connection:
        changed = await store.drift.outdated(
            connection, _INDEXES_A_ROUND, drift_share=judged_otherwise
        )
    for index in changed:
        try:
            await renew_verdict(engine, index, drift_share, asks_for_training=asks_for_training)
        except (DBAPIError, errors.AppError) as error:
            logger.info("drift of index %s is looked at later: %s", index.id, type(error).__name__)
    return len(changed)


async def renew_verdict(
    engine: AsyncEngine, index: Index, drift_share: float, *, asks_for_training: bool = False
) -> None:
    """Look at an index and store the verdict; ask for a training that can repair what is wrong."""
    async with engine.begin() as connection:
        found = await look(connection, index, drift_share)
        await store.drift.record(connection, index, found.verdict)
        why = [*_of_changes(index, found.counts, drift_share), *_of_growth(index, found.counts)]
        if asks_for_training and why and await store.training.ask_for(connection, index):
            await store.audit.record(connection, _audit_entry(index, found.counts, why))
            logger.info("index %s is to be trained: %s", index.id, "; ".join(why))


def _audit_entry(index: Index, counts: Counts, why: Sequence[str]) -> AuditEntry:
    """Return the entry of a training that the service asks for itself."""
    return AuditEntry(
        caller="service",
        key_id=None,
        operation="train_request",
        index_id=index.id,
        index_name=index.name,
        n_items=counts.n_items,
        request_id="",
        outcome=f"drift: {'; '.join(why)}",
    )


def changes_since_training(index: Index, counts: Counts) -> int:
    """Return how many items were added, replaced or deleted since the last training."""
    return counts.n_changes - (index.n_changes_at_training or 0)


def outdated_since_training(index: Index, counts: Counts) -> int:
    """Return how many items were replaced or deleted since the last training."""
    return counts.n_outdated - (index.n_outdated_at_training or 0)


def reasons(
    index: Index, counts: Counts, list_imbalance: float | None, drift_share: float
) -> list[str]:
    """Return why to train an index again. An untrained index is exact and cannot drift."""
    if not index.is_trained:
        return []
    profile = SearchProfile.from_json(index.n_lists, index.profile)
    return [
        *_of_changes(index, counts, drift_share),
        *_of_lists(profile, list_imbalance),
        *_of_recall(profile),
    ]


def _of_changes(index: Index, counts: Counts, drift_share: float) -> Iterator[str]:
    """Yield a reason when much of what the training saw is gone; additions are no drift."""
    n_outdated, n_items = outdated_since_training(index, counts), index.n_items_at_training or 0
    if n_outdated > drift_share * n_items:
        yield f"{n_outdated} items were replaced or deleted since it was trained on {n_items}"


def _of_growth(index: Index, counts: Counts) -> Iterator[str]:
    """Yield a reason when an index has outgrown what its training saw."""
    n_items = index.n_items_at_training or 0
    if index.is_trained and counts.n_items > _GROWTH * n_items > 0:
        yield f"it has grown to {counts.n_items} items since it was trained on {n_items}"


def _of_lists(profile: SearchProfile | None, list_imbalance: float | None) -> Iterator[str]:
    before = (profile.imbalance if profile is not None else None) or 1.0
    if list_imbalance is not None and list_imbalance > max(_MIN_IMBALANCE, _UNEVEN * before):
        yield f"its lists have become uneven: {list_imbalance} after {before}"


def _of_recall(profile: SearchProfile | None) -> Iterator[str]:
    if profile is None or profile.recall is None or profile.target is None:
        return
    if profile.recall < profile.target:
        yield (
            f"its last training found a recall of {profile.recall} for a target of {profile.target}"
        )


async def _list_imbalance(connection: AsyncConnection, index: Index, n_items: int) -> float | None:
    sizes = await trainable(index).list_sizes(connection, index, _N_LIST_SAMPLES)
    return imbalance(sizes, n_items, index.n_lists)


def imbalance(sizes: Sequence[int], n_items: int, n_lists: int) -> float | None:
    """Return how much larger the list of an average item is than the average list.

    `sizes` are those of the lists of some items. The answer is 1 when all lists are of one size.
    """
    if not sizes or not n_items:
        return None
    return round(float(np.mean(sizes)) * n_lists / n_items, 3)
