"""Statements on the items of one index.

They go to the index's own partition and through psycopg itself rather than SQLAlchemy: binary COPY,
binary results and pipelines are what makes them fast, and the partition's name is no parameter. The
index id is in every statement all the same, so that they also hold where `items` is distributed by
it.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg import errors as pg
from psycopg.rows import class_row
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Candidates, Index
from app.observe.stages import stage
from app.store.indexes import IndexTrip, StaleIndex, check_revision_of
from app.store.partitions import TOAST_TUPLE_TARGET
from app.store.pg import copy_rows
from app.store.pg.adapters import ItemKeys
from app.store.pg.engine import driver
from app.store.pg.pool import Pool
from app.store.pg.round_trip import Answer
from app.store.tables import partition_name, sketch_column

_ID_CHUNK = 10_000


class Written(NamedTuple):
    """How many items a statement added, and how many it touched."""

    n_new: int
    n_written: int


class SealedFields(NamedTuple):
    """What was asked for of one stored item; None for what was not, or for what the item lacks."""

    item_key: bytes
    sealed_id: bytes | None
    sealed_vector: bytes | None
    sealed_contents: bytes | None
    sealed_metadata: bytes | None


_FIELD_COLUMNS = {
    "vector": "sealed_vector",
    "contents": "sealed_contents",
    "metadata": "sealed_metadata",
}


async def upsert(
    connection: AsyncConnection, index: Index, item_keys: Sequence[bytes], rows: Sequence[bytes]
) -> Written:
    """Add or replace items; `rows` are pieces that `copy_rows.rows` made, in the order of keys.

    Rows are written in the order of their keys, so that concurrent batches cannot deadlock.
    """
    async with driver(connection) as raw:
        if not await _is_any_stored(raw, index, item_keys):
            try:
                # The savepoint is for a batch that is stored by two writers at the same time.
                async with raw.transaction():
                    await _copy(raw, index, partition_name(index.id), rows)
                return Written(len(item_keys), len(item_keys))
            except pg.UniqueViolation:
                pass
        return await _replace(raw, index, rows)


async def _is_any_stored(
    raw: psycopg.AsyncConnection[Any], index: Index, item_keys: Sequence[bytes]
) -> bool:
    cursor = await raw.execute(
        f"SELECT EXISTS (SELECT FROM {partition_name(index.id)}"
        " WHERE index_id = %s AND item_key = ANY(%s))",
        (index.id, ItemKeys(item_keys)),
    )
    return bool(_one(await cursor.fetchone())[0])


async def _copy(
    raw: psycopg.AsyncConnection[Any], index: Index, table: str, rows: Sequence[bytes]
) -> None:
    async with (
        raw.cursor() as cursor,
        cursor.copy(f"COPY {table} ({_columns(index)}) FROM STDIN (FORMAT BINARY)") as copy,
    ):
        await copy.write(copy_rows.HEADER)
        for piece in rows:
            await copy.write(piece)
        await copy.write(copy_rows.TRAILER)


async def _replace(
    raw: psycopg.AsyncConnection[Any], index: Index, rows: Sequence[bytes]
) -> Written:
    """Store rows of which some may be stored already."""
    name, columns = partition_name(index.id), _columns(index)
    # Like the partition, so that its rows stay in one piece here too: taking them apart costs more
    # than the rest.
    await raw.execute(
        f"CREATE TEMPORARY TABLE incoming (LIKE {name} INCLUDING DEFAULTS INCLUDING STORAGE)"
        f" WITH (toast_tuple_target = {TOAST_TUPLE_TARGET}) ON COMMIT DROP"
    )
    await _copy(raw, index, "incoming", rows)
    sketch, other_sketch = _sketch_columns(index)
    cursor = await raw.execute(
        f"""
        WITH written AS (
            INSERT INTO {name} AS stored ({columns})
            SELECT {columns} FROM incoming ORDER BY item_key
            ON CONFLICT (index_id, item_key) DO UPDATE SET
                sealed_id = excluded.sealed_id, {sketch} = excluded.{sketch},
                {other_sketch} = excluded.{other_sketch},
                sealed_vector = excluded.sealed_vector, sealed_contents = excluded.sealed_contents,
                sealed_metadata = excluded.sealed_metadata, tokens = excluded.tokens,
                updated_at = now()
            RETURNING xmax = 0 AS is_new
        )
        SELECT count(*) FILTER (WHERE is_new), count(*) FROM written
        """
    )
    return Written(*_one(await cursor.fetchone()))


def _columns(index: Index) -> str:
    return copy_rows.columns(*_sketch_columns(index))


def _sketch_columns(index: Index) -> tuple[str, str]:
    """Return the columns for sketches by the index's encoder and by the next one."""
    return sketch_column(index.encoder_version), sketch_column(index.encoder_version + 1)


async def by_keys(
    connection: AsyncConnection, index: Index, item_keys: Sequence[bytes], fields: frozenset[str]
) -> dict[bytes, SealedFields]:
    """Return the stored items among `item_keys` with `fields`: id, vector, contents, metadata."""
    columns = [
        f"{column} AS {column}" if field in fields else f"NULL::bytea AS {column}"
        for field, column in _FIELD_COLUMNS.items()
    ]
    sealed_id = "sealed_id" if "id" in fields else "NULL::bytea AS sealed_id"
    async with (
        driver(connection) as raw,
        raw.cursor(binary=True, row_factory=class_row(SealedFields)) as cursor,
    ):
        await cursor.execute(
            f"SELECT item_key, {sealed_id}, {', '.join(columns)}"
            f" FROM {partition_name(index.id)} WHERE index_id = %s AND item_key = ANY(%s)",
            (index.id, ItemKeys(item_keys)),
        )
        return {row.item_key: row for row in await cursor.fetchall()}


def sealed_metadata(trip: IndexTrip, index: Index, item_keys: Sequence[bytes]) -> Answer:
    """Return what will be item key and sealed metadata of the stored items among `item_keys`."""
    return trip.execute(
        f"SELECT item_key, sealed_metadata FROM {partition_name(index.id)}"
        " WHERE index_id = %s AND item_key = ANY(%s)",
        (index.id, ItemKeys(item_keys)),
    )


async def delete(connection: AsyncConnection, index: Index, item_keys: Sequence[bytes]) -> int:
    """Delete the stored items among `item_keys`; return how many there were."""
    async with driver(connection) as raw:
        # Locked in the order in which `upsert` writes, so that the two cannot deadlock.
        cursor = await raw.execute(
            f"""
            WITH doomed AS (
                SELECT item_key FROM {partition_name(index.id)}
                WHERE index_id = %s AND item_key = ANY(%s) ORDER BY item_key FOR UPDATE
            )
            DELETE FROM {partition_name(index.id)} AS stored USING doomed
            WHERE stored.index_id = %s AND stored.item_key = doomed.item_key
            """,
            (index.id, ItemKeys(item_keys), index.id),
        )
        return cursor.rowcount


async def everything(
    connections: Pool, index: Index, at_a_time: int
) -> AsyncGenerator[Candidates, None]:
    """Yield all items with their ids, vectors and metadata, `at_a_time`, as of one moment.

    Raises `StaleIndex`.
    """
    try:
        async with stage("sql"), connections.lend() as raw, raw.transaction():
            await raw.limit_statements()
            await check_revision_of(raw, index)
            async with raw.cursor("everything") as cursor:
                await cursor.execute(
                    "SELECT item_key, sealed_id, sealed_vector, sealed_metadata"
                    f" FROM {partition_name(index.id)} WHERE index_id = %s",
                    (index.id,),
                    binary=True,
                )
                while rows := await cursor.fetchmany(at_a_time):
                    keys, ids, vectors, metadata = zip(*rows, strict=True)
                    yield Candidates(keys, ids, vectors, [sealed or b"" for sealed in metadata])
    except pg.UndefinedTable as error:
        raise StaleIndex from error


async def sealed_ids(
    connection: AsyncConnection, index: Index
) -> AsyncIterator[list[tuple[bytes, bytes]]]:
    """Yield item key and sealed id of every item, some thousands at a time, as of one moment."""
    async with driver(connection) as raw, raw.cursor("sealed_ids") as cursor:
        await cursor.execute(
            f"SELECT item_key, sealed_id FROM {partition_name(index.id)} WHERE index_id = %s",
            (index.id,),
            binary=True,
        )
        while chunk := await cursor.fetchmany(_ID_CHUNK):
            yield chunk


async def sizes(connection: AsyncConnection, index: Index) -> tuple[int, int]:
    """Return the bytes on disk of an index with all its parts, and of its ivfflat index alone."""
    async with driver(connection) as raw:
        cursor = await raw.execute(
            """
            SELECT pg_total_relation_size(to_regclass(%(name)s)),
                coalesce(sum(pg_relation_size(indexrelid)), 0)::bigint
            FROM pg_index JOIN pg_class AS relation ON relation.oid = indexrelid
            WHERE indrelid = to_regclass(%(name)s) AND starts_with(relation.relname, 'ivf_')
            """,
            {"name": partition_name(index.id)},
        )
        total, ivf = _one(await cursor.fetchone())
        return total or 0, ivf


def _one(row: tuple[Any, ...] | None) -> tuple[Any, ...]:
    assert row is not None  # noqa: S101 - an aggregate without GROUP BY always has one row
    return row
