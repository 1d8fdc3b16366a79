"""Statements on encoder and ivfflat index: announce, build, look at, swap, drop what is left.

Each attempt builds under a generation number of its own, so what a stopped trainer still builds
never has the name of anything else.
"""

import re
from collections.abc import Sequence
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Index
from app.store.partitions import ivf_definition
from app.store.tables import IVF_PREFIX, indexes, ivf_name, partition_name
from app.store.training import LEASE_S

_LOCK_TIMEOUT = "30s"
# How soon PostgreSQL notices that the trainer is gone, and ends its CREATE INDEX.
_CLIENT_CHECK = "2s"
_IVF_NAME = re.compile(rf"{IVF_PREFIX}[0-9a-f]{{32}}_[0-9]+")

# A generation that is neither in use nor being built is of no use to anybody, even while a trainer
# is at work: the next attempt has a number of its own.
_LEFTOVERS = sa.text(
    r"""
    SELECT relation.relname
    FROM pg_class AS relation
        JOIN pg_index ON indexrelid = relation.oid
        JOIN pg_class AS partition ON partition.oid = indrelid
        JOIN indexes ON partition.relname = 'items_' || replace(indexes.id::text, '-', '')
        LEFT JOIN training_jobs AS job ON job.index_id = indexes.id
            AND indexes.id IS DISTINCT FROM CAST(:claimed AS uuid)
            AND job.state IN ('queued', 'running')
            AND job.heartbeat_at BETWEEN now() - make_interval(secs => :lease)
                AND now() + make_interval(secs => :lease)
        CROSS JOIN LATERAL (
            SELECT 'ivf_' || replace(indexes.id::text, '-', '') || '_'
        ) AS own (name)
    WHERE starts_with(relation.relname, 'ivf_')
        AND relation.relname <> own.name || indexes.generation
        AND relation.relname IS DISTINCT FROM own.name || job.generation
    """
)
_IS_VALID = sa.text(
    "SELECT indisvalid AND indisready FROM pg_index WHERE indexrelid = to_regclass(:name)"
)
# PostgreSQL counts only while it loads tuples.
_BUILT_SHARE = sa.text(
    """
    SELECT CASE
        WHEN phase LIKE '%k-means%' THEN 0.1
        WHEN phase LIKE '%assigning%' THEN 0.3
        WHEN phase LIKE '%loading%'
            THEN 0.6 + 0.4 * tuples_done / greatest(tuples_total, tuples_done, 1)
        ELSE 0 END::float
    FROM pg_stat_progress_create_index WHERE relid = to_regclass(:name)
    """
)


async def announce(connection: AsyncConnection, index: Index, sealed_encoder: bytes) -> None:
    """Store the next encoder of `index`: upserts that begin from now on write its sketches too.

    The caller holds `store.indexes.own_encoder`. An encoder that was announced before stays.
    """
    await connection.execute(
        sa.update(indexes)
        .where(
            indexes.c.id == index.id,
            indexes.c.encoder_version == index.encoder_version,
            indexes.c.sealed_next_encoder.is_(None),
        )
        .values(sealed_next_encoder=sealed_encoder, revision=indexes.c.revision + 1)
    )


async def build(connection: AsyncConnection, target: Index, memory_mb: int) -> None:
    """Build the ivfflat index of `target` on a `maintenance_connection`; nobody waits for it.

    Raises `DBAPIError` when PostgreSQL refuses.
    """
    await _set(
        connection,
        maintenance_work_mem=f"{memory_mb}MB",
        client_connection_check_interval=_CLIENT_CHECK,
        statement_timeout="0",
        lock_timeout="0",
    )
    definition = ivf_definition(
        target.encoder_version, target.sketch_bits or 0, target.n_lists, target.generation
    )
    name = ivf_name(target.id, target.generation)
    await connection.exec_driver_sql(
        f"CREATE INDEX CONCURRENTLY {name} ON {partition_name(target.id)} {definition}"
    )


async def is_valid(connection: AsyncConnection, target: Index) -> bool:
    """Whether the ivfflat index of `target` is there, complete and usable."""
    name = ivf_name(target.id, target.generation)
    return bool(await connection.scalar(_IS_VALID, {"name": name}))


async def built_share(connection: AsyncConnection, index_id: UUID) -> float:
    """Return which share of a build is done."""
    rows = await connection.execute(_BUILT_SHARE, {"name": partition_name(index_id)})
    return float(rows.scalars().first() or 0)


async def swap(connection: AsyncConnection, index: Index, target: Index) -> bool:
    """Send queries to the ivfflat index of `target`; false when the row has changed meanwhile."""
    is_new_encoder = target.encoder_version != index.encoder_version
    encoder = (
        {
            "sealed_encoder": indexes.c.sealed_next_encoder,
            "sealed_next_encoder": None,
            "sealed_header": target.sealed_header,
        }
        if is_new_encoder
        else {}
    )
    statement = (
        sa.update(indexes)
        .where(
            indexes.c.id == index.id,
            indexes.c.encoder_version == index.encoder_version,
            indexes.c.generation == index.generation,
        )
        .values(generation=target.generation, encoder_version=target.encoder_version, **encoder)
    )
    return (await connection.execute(statement)).rowcount == 1


async def leftovers(connection: AsyncConnection, *, claimed: UUID | None = None) -> Sequence[str]:
    """Return the ivfflat indexes that no search uses and no live training builds.

    The index `claimed` is the caller's own: what its earlier jobs have left is among them.
    """
    rows = await connection.execute(_LEFTOVERS, {"claimed": claimed, "lease": LEASE_S})
    return [name for name in rows.scalars() if _IVF_NAME.fullmatch(name)]


async def drop(connection: AsyncConnection, name: str) -> None:
    """Drop an ivfflat index on a `maintenance_connection` without holding up searches."""
    await _set(
        connection,
        lock_timeout=_LOCK_TIMEOUT,
        statement_timeout="0",
        client_connection_check_interval=_CLIENT_CHECK,
    )
    await connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")


async def analyze(connection: AsyncConnection, index_id: UUID) -> None:
    """Tell the planner about the items as they are now."""
    await connection.exec_driver_sql(f"ANALYZE {partition_name(index_id)}")


def reason(error: DBAPIError) -> str:
    """Return the first line of what PostgreSQL says: it names indexes and limits, never values."""
    return str(error.orig).strip().splitlines()[0]


async def _set(connection: AsyncConnection, **settings: str) -> None:
    """Change settings of this session, which is the caller's alone."""
    for name, value in settings.items():
        await connection.execute(
            sa.text("SELECT set_config(:name, :value, false)"), {"name": name, "value": value}
        )
