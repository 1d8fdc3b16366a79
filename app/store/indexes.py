"""Statements on `indexes` and `item_counts`."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from psycopg import errors as pg
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from app import errors
from app.domain import Index, IndexKind, Metric, Precision
from app.observe.stages import stage
from app.store.pg.connection import Connection
from app.store.pg.pool import Pool
from app.store.pg.round_trip import RoundTrip
from app.store.tables import dropped_indexes, indexes, item_counts

_REVISION = "SELECT revision FROM indexes WHERE id = %s"
N_ITEMS = "SELECT coalesce(sum(n_items), 0)::bigint FROM item_counts WHERE index_id = %s"


class StaleIndex(Exception):
    """What the caller knows of an index is no longer true; it reads the row again."""


class IndexTrip(RoundTrip):
    """A round trip to the items of `index`. Raises `StaleIndex` if the index has changed."""

    def __init__(self, raw: Connection, index: Index) -> None:
        super().__init__(raw)
        self._index = index
        self._revision = self.execute(_REVISION, (index.id,))

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            await super().__aexit__(kind)
        except pg.UndefinedTable as error:
            raise StaleIndex from error
        if kind is None and list(self._revision.rows) != [(self._index.revision,)]:
            raise StaleIndex


@asynccontextmanager
async def trip(connections: Pool, index: Index) -> AsyncIterator[IndexTrip]:
    """Send the statements of the block to the items of `index`. Raises `StaleIndex`."""
    async with stage("sql"), connections.lend() as raw, IndexTrip(raw, index) as trip:
        yield trip


class Counts(NamedTuple):
    """How many items an index has, how many were changed since it was made, and how.

    `n_changes` counts what was added, replaced or deleted; `n_outdated` leaves out what was added.
    """

    n_items: int
    n_changes: int
    n_outdated: int


async def n_items(connections: Pool, index: Index) -> int:
    """Return the number of items of an index. Raises `StaleIndex`."""
    async with trip(connections, index) as counting:
        counted = counting.execute(N_ITEMS, (index.id,))
    n: int = counted.one()[0]
    return n


async def create(connection: AsyncConnection, values: dict[str, Any]) -> None:
    """Insert the row of a new index. Raises `Conflict` when the name is taken."""
    try:
        await connection.execute(sa.insert(indexes).values(values))
    except IntegrityError as error:
        if isinstance(error.orig, pg.UniqueViolation):
            raise errors.Conflict(f"Index '{values['name']}' already exists") from error
        raise


async def by_name(connection: AsyncConnection, name: str) -> Index | None:
    """Return the index called `name`, if there is one."""
    return await _one(connection, indexes.c.name == name)


async def by_id(connection: AsyncConnection, index_id: UUID) -> Index | None:
    """Return the index with this id, if it still exists."""
    return await _one(connection, indexes.c.id == index_id)


async def _one(connection: AsyncConnection, condition: sa.ColumnElement[bool]) -> Index | None:
    row = (await connection.execute(sa.select(indexes).where(condition))).one_or_none()
    if row is None:
        return None
    return to_index(dict(row._mapping))  # noqa: SLF001 - SQLAlchemy's documented way to a mapping


def to_index(facts: dict[str, Any]) -> Index:
    """Return the index whose row holds `facts`, by name."""
    facts["metric"] = Metric(facts["metric"])
    facts["storage_precision"] = Precision(facts["storage_precision"])
    facts["kind"] = IndexKind(facts["kind"])
    return Index(**facts)


async def names(connection: AsyncConnection) -> Sequence[str]:
    """Return the names of all indexes, in order."""
    return (
        (await connection.execute(sa.select(indexes.c.name).order_by(indexes.c.name)))
        .scalars()
        .all()
    )


async def check_revision(connection: AsyncConnection, index: Index) -> None:
    """Raise `StaleIndex` unless `index` is the row as it is now."""
    statement = sa.select(sa.literal(1)).where(
        indexes.c.id == index.id, indexes.c.revision == index.revision
    )
    if (await connection.execute(statement)).one_or_none() is None:
        raise StaleIndex


async def check_revision_of(raw: Connection, index: Index) -> None:
    """Raise `StaleIndex` unless `index` is the row as it is in the transaction of `raw`."""
    cursor = await raw.execute(_REVISION, (index.id,))
    if await cursor.fetchall() != [(index.revision,)]:
        raise StaleIndex


async def share_encoder(connection: AsyncConnection, index: Index) -> None:
    """Keep the encoder of `index` from being replaced until the transaction ends.

    Writers share the lock, so they never wait for each other. A training takes it alone for the
    moment in which it moves to another encoder (`own_encoder`), and so waits for the writers that
    use the old one. An advisory lock, since locking the row for sharing would write to it in every
    upsert.
    """
    await connection.execute(
        sa.select(sa.func.pg_advisory_xact_lock_shared(_lock_number(index.id)))
    )


async def own_encoder(connection: AsyncConnection, index_id: UUID) -> None:
    """Wait for all who hold `share_encoder`, and hold off others until the transaction ends."""
    await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_lock_number(index_id))))


async def initialise(connection: AsyncConnection, index: Index, fixed: Index) -> None:
    """Store what the first batch has fixed. Raises `StaleIndex` when another writer was first."""
    statement = (
        sa.update(indexes)
        .where(
            indexes.c.id == index.id,
            indexes.c.sealed_encoder.is_(None),
            indexes.c.revision == index.revision,
        )
        .values(
            dimension=fixed.dimension,
            sketch_bits=fixed.sketch_bits,
            sealed_encoder=fixed.sealed_encoder,
            sealed_header=fixed.sealed_header,
            revision=indexes.c.revision + 1,
        )
    )
    if (await connection.execute(statement)).rowcount != 1:
        raise StaleIndex


async def add_header(
    connection: AsyncConnection, index: Index, sealed_header: bytes, wrapped_dek: bytes
) -> None:
    """Store the header of an index of before headers. Raises `StaleIndex` if it has changed."""
    statement = (
        sa.update(indexes)
        .where(indexes.c.id == index.id, indexes.c.revision == index.revision)
        .values(
            sealed_header=sealed_header,
            wrapped_dek=wrapped_dek,
            revision=indexes.c.revision + 1,
        )
    )
    if (await connection.execute(statement)).rowcount != 1:
        raise StaleIndex


async def delete(connection: AsyncConnection, index: Index) -> None:
    """Delete the row of `index`; its partition is dropped later. Raises `StaleIndex`."""
    statement = sa.delete(indexes).where(
        indexes.c.id == index.id, indexes.c.revision == index.revision
    )
    if (await connection.execute(statement)).rowcount != 1:
        raise StaleIndex
    await connection.execute(insert(dropped_indexes).values(id=index.id).on_conflict_do_nothing())


async def add_to_count(
    connection: AsyncConnection, index_id: UUID, *, n_items: int, n_changes: int
) -> None:
    """Add to the number of items and of changes, without waiting for other writers.

    What is no addition replaces or deletes an item. Takes a shard of the count that no other
    transaction holds, or opens a new one.
    """
    n_outdated = n_changes - max(n_items, 0)
    free_shard = (
        sa.select(item_counts.c.shard)
        .where(item_counts.c.index_id == index_id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    update = (
        sa.update(item_counts)
        .where(item_counts.c.index_id == index_id, item_counts.c.shard == free_shard)
        .values(
            n_items=item_counts.c.n_items + n_items,
            n_changes=item_counts.c.n_changes + n_changes,
            n_outdated=item_counts.c.n_outdated + n_outdated,
        )
    )
    if (await connection.execute(update)).rowcount:
        return
    # The number of the new shard is free or being made by another transaction: random, so that none
    # waits.
    shard = sa.cast(sa.func.floor(sa.func.random() * 2**31 - 1), sa.Integer)
    await connection.execute(
        sa.insert(item_counts).values(
            index_id=index_id,
            shard=shard,
            n_items=n_items,
            n_changes=n_changes,
            n_outdated=n_outdated,
        )
    )


async def count(connection: AsyncConnection, index_id: UUID) -> tuple[int, int]:
    """Return the number of items of an index, and of changes to them since it was made."""
    counted = await counts(connection, index_id)
    return counted.n_items, counted.n_changes


async def counts(connection: AsyncConnection, index_id: UUID) -> Counts:
    """Return what is counted of an index."""
    sums = [
        sa.func.coalesce(sa.func.sum(item_counts.c[name]), 0).cast(sa.BigInteger)
        for name in Counts._fields
    ]
    statement = sa.select(*sums).where(item_counts.c.index_id == index_id)
    return Counts._make((await connection.execute(statement)).one())


def _lock_number(index_id: UUID) -> int:
    """Return the advisory lock of an index: 64 bits of its random id."""
    return int.from_bytes(index_id.bytes[:8], "big", signed=True)
