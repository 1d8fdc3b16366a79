"""The partition of `items` that each index has, and the ivfflat index on it.

Names are made of an index's id and numbers only, so they need no quoting. A partial index can only
answer queries whose WHERE clause implies its predicate: each generation of the ivfflat index has a
predicate of its own (`in_generation`), always true, which the queries for that generation repeat.
So a new generation that has just been built is not used with the probes of the old one.
"""

from uuid import UUID

import sqlalchemy as sa
from psycopg import errors as pg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app import errors
from app.store.tables import (
    chunk_partition_name,
    chunks,
    dropped_indexes,
    items,
    ivf_name,
    partition_name,
    sketch_column,
)

# A row of up to 8 KB, with a vector of 1,536 float32, stays in one piece: a TOAST fetch for each
# candidate would cost more than the scan.
TOAST_TUPLE_TARGET = 8160
# Chunks come and go with every write, and most of a chunk is TOAST: after a fifth of a large table
# VACUUM would come too late.
_CHUNK_OPTIONS = (
    "autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500,"
    " toast.autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_threshold = 2000"
)
_SOMEBODY_ELSE = (pg.ObjectNotInPrerequisiteState, pg.UndefinedTable, pg.LockNotAvailable)


async def create(connection: AsyncConnection, index_id: UUID) -> None:
    """Create the partition of an index. Neither reads nor writes of other indexes wait for it."""
    name = partition_name(index_id)
    await create_items(connection, index_id)
    # With fastupdate, new entries would wait in a list that every search reads from end to end.
    await connection.exec_driver_sql(
        f"CREATE INDEX {name}_tokens_idx ON {name} USING gin (tokens) WITH (fastupdate = off)"
    )


async def create_items(connection: AsyncConnection, index_id: UUID) -> None:
    """Create the partition of an index's items, without what one kind of index alone needs."""
    name = partition_name(index_id)
    options = f"toast_tuple_target = {TOAST_TUPLE_TARGET}"
    for statement in (
        f"CREATE TABLE {name} (LIKE {items.name} INCLUDING ALL) WITH ({options})",
        # Not inherited: how often each token occurs is nobody's business, and no plan needs it.
        f"ALTER TABLE {name} ALTER COLUMN tokens SET STATISTICS 0",
        f"ALTER TABLE {items.name} ATTACH PARTITION {name} FOR VALUES IN ('{index_id}')",
    ):
        await connection.exec_driver_sql(statement)


async def create_exact_ivf(connection: AsyncConnection, index_id: UUID, sketch_bits: int) -> None:
    """Create the first ivfflat index of an empty partition.

    It has one list, so every search scans all sketches.
    """
    await connection.exec_driver_sql(
        f"CREATE INDEX {ivf_name(index_id, 1)} ON {partition_name(index_id)}"
        f" {ivf_definition(0, sketch_bits, 1, 1)}"
    )


def ivf_definition(encoder_version: int, sketch_bits: int, n_lists: int, generation: int) -> str:
    """Return what follows the table's name in CREATE INDEX."""
    return (
        f"USING ivfflat (({sketch_expression(encoder_version, sketch_bits)}) bit_hamming_ops) "
        f"WITH (lists = {n_lists}) WHERE {in_generation(generation)}"
    )


def sketch_expression(encoder_version: int, sketch_bits: int) -> str:
    """Return the expression that the ivfflat index is on; a query must order by the same one."""
    return f"{sketch_column(encoder_version)}::bit({sketch_bits})"


def in_generation(generation: int) -> str:
    """Return a condition that is true of every item: an item key has 16 bytes, this literal has 4.

    The literal says itself what a backslash means in it, which a role may set otherwise.
    """
    return rf"item_key <> E'\\x{generation:08x}'"


async def create_chunks(connection: AsyncConnection, index_id: UUID) -> None:
    """Create the partition of a sealed index's chunks; nobody waits for it."""
    name = chunk_partition_name(index_id)
    for statement in (
        f"CREATE TABLE {name} (LIKE {chunks.name} INCLUDING ALL) WITH ({_CHUNK_OPTIONS})",
        f"ALTER TABLE {chunks.name} ATTACH PARTITION {name} FOR VALUES IN ('{index_id}')",
    ):
        await connection.exec_driver_sql(statement)


async def drop_deleted(engine: AsyncEngine) -> None:
    """Drop the partitions of deleted indexes while other indexes are read and written."""
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        for index_id in (await connection.execute(sa.select(dropped_indexes.c.id))).scalars().all():
            partitions = (
                (items.name, partition_name(index_id)),
                (chunks.name, chunk_partition_name(index_id)),
            )
            if all([await _drop(connection, *partition) for partition in partitions]):
                await connection.execute(
                    sa.delete(dropped_indexes).where(dropped_indexes.c.id == index_id)
                )


async def _drop(connection: AsyncConnection, table: str, partition: str) -> bool:
    """Drop a partition of `table`, if there is one; false when another worker is at it."""
    if not await _detach(connection, table, partition):
        return False
    await connection.exec_driver_sql(f"DROP TABLE IF EXISTS {partition}")
    return True


async def _detach(connection: AsyncConnection, table: str, partition: str) -> bool:
    """Detach the partition of a deleted index; false when another worker is at it."""
    statement = sa.text(
        "SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = to_regclass(:name)"
    )
    is_pending = (await connection.execute(statement, {"name": partition})).scalar_one_or_none()
    if is_pending is None:
        return True
    # A crash in the middle of CONCURRENTLY leaves the partition pending, to be finalized.
    how = "FINALIZE" if is_pending else "CONCURRENTLY"
    try:
        await connection.exec_driver_sql(f"ALTER TABLE {table} DETACH PARTITION {partition} {how}")
    except (DBAPIError, errors.Unavailable) as error:
        # PostgreSQL detaches one partition of a table at a time; whoever drops the next will see to
        # this one.
        if isinstance(getattr(error, "orig", error.__cause__), _SOMEBODY_ELSE):
            return False
        raise
    return True
