"""Statements on `index_drift`: whether to train an index again, as the service saw it last."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Index
from app.store.indexes import to_index
from app.store.tables import index_drift, indexes, item_counts

_N_CHANGES = (
    sa.select(sa.func.coalesce(sa.func.sum(item_counts.c.n_changes), 0))
    .where(item_counts.c.index_id == indexes.c.id)
    .scalar_subquery()
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a look at an index has found; it holds for one count of changes and one drift share."""

    n_changes: int
    drift_share: float
    list_imbalance: float | None
    reasons: Sequence[str]


async def outdated(
    connection: AsyncConnection, limit: int, *, drift_share: float | None = None
) -> list[Index]:
    """Return up to `limit` trained indexes that changed since the last look, or had none.

    With `drift_share`, those too that were judged by another one.
    """
    is_outdated = [index_drift.c.index_id.is_(None), index_drift.c.n_changes != _N_CHANGES]
    if drift_share is not None:
        is_outdated.append(index_drift.c.drift_share != drift_share)
    statement = (
        sa.select(indexes)
        .outerjoin(index_drift, index_drift.c.index_id == indexes.c.id)
        .where(indexes.c.trained_at.is_not(None), sa.or_(*is_outdated))
        .order_by(index_drift.c.looked_at.nulls_first())
        .limit(limit)
    )
    rows = await connection.execute(statement)
    return [to_index(dict(row._mapping)) for row in rows]  # noqa: SLF001 - SQLAlchemy's own way


async def record(connection: AsyncConnection, index: Index, verdict: Verdict) -> None:
    """Store the verdict on an index, unless the index was deleted or trained meanwhile."""
    as_it_was = sa.select(indexes.c.id).where(
        indexes.c.id == index.id, indexes.c.trained_at == index.trained_at
    )
    if (await connection.execute(as_it_was.with_for_update(read=True))).one_or_none() is None:
        return
    found = {
        "n_changes": verdict.n_changes,
        "drift_share": verdict.drift_share,
        "list_imbalance": verdict.list_imbalance,
        "reasons": list(verdict.reasons),
        "looked_at": sa.func.now(),
    }
    await connection.execute(
        insert(index_drift)
        .values(index_id=index.id, **found)
        .on_conflict_do_update(index_elements=[index_drift.c.index_id], set_=found)
    )


async def forget(connection: AsyncConnection, index_id: UUID) -> None:
    """Forget the verdict on an index that was trained or measured again."""
    await connection.execute(sa.delete(index_drift).where(index_drift.c.index_id == index_id))
