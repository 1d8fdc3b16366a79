"""Statements of training on the items of one index: what it reads, writes and measures.

Like those of `store.items`, they name the index's own partition and go through psycopg itself.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from psycopg import errors as pg
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Index
from app.store.partitions import in_generation, sketch_expression
from app.store.pg.adapters import ItemKeys, VarBit
from app.store.pg.engine import driver
from app.store.tables import partition_name, sketch_column

SealedVector = tuple[bytes, bytes]


class Collision(Exception):
    """Another transaction was in the way; the same again will do."""


# As `nearest` sets them, but a scan ends with the lists it was asked to read.
_SCAN_SETTINGS = (
    "SELECT set_config('ivfflat.probes', %s, true), set_config('enable_sort', 'off', true),"
    " set_config('ivfflat.iterative_scan', 'off', true)"
)

# What the planner knows of a young table is far off, so it is left one way: the rows in the order
# of their keys, by the primary key, joined through a hash table. Either side of that join comes in
# the order of the keys.
_WRITE_SETTINGS = (
    "SELECT set_config('enable_nestloop', 'off', true),"
    " set_config('enable_mergejoin', 'off', true),"
    " set_config('enable_bitmapscan', 'off', true), set_config('enable_seqscan', 'off', true)"
)


async def vectors_after(
    connection: AsyncConnection,
    index: Index,
    item_key: bytes,
    limit: int,
    *,
    lacking: int | None = None,
) -> list[SealedVector]:
    """Return keys and sealed vectors of the `limit` items that follow `item_key`, in order.

    Of those that lack the sketch by version `lacking` of the encoder, if that is given.
    """
    condition = "" if lacking is None else f"AND {sketch_column(lacking)} IS NULL"
    async with driver(connection) as raw, raw.cursor(binary=True) as cursor:
        # The planner knows little of a young table, and would read and sort all that follows for
        # each chunk.
        await cursor.execute(
            "SELECT set_config('enable_bitmapscan', 'off', true),"
            " set_config('enable_sort', 'off', true)"
        )
        await cursor.execute(
            f"SELECT item_key, sealed_vector FROM {partition_name(index.id)}"
            f" WHERE index_id = %s AND item_key > %s {condition} ORDER BY item_key LIMIT %s",
            (index.id, item_key, limit),
        )
        return await cursor.fetchall()


async def all_vectors(
    connection: AsyncConnection, index: Index, at_a_time: int
) -> AsyncIterator[list[SealedVector]]:
    """Yield key and sealed vector of every item, in no order, as of one moment."""
    async with driver(connection) as raw, raw.cursor("all_vectors") as cursor:
        await cursor.execute(
            f"SELECT item_key, sealed_vector FROM {partition_name(index.id)} WHERE index_id = %s",
            (index.id,),
            binary=True,
        )
        while chunk := await cursor.fetchmany(at_a_time):
            yield chunk


async def write_sketches(
    connection: AsyncConnection,
    index: Index,
    encoder_version: int,
    item_keys: Sequence[bytes],
    sketches: Sequence[bytes],
) -> None:
    """Store sketches by another version of the encoder with the items that still lack one.

    Who was replaced meanwhile has one already, of the newer vector: PostgreSQL looks at a row that
    it had to wait for once more. Given `item_keys` in their order, rows are locked in it, as in
    `store.items.upsert`. Raises `Collision` when that was not enough to avoid a deadlock.
    """
    statement, parameters = _write_statement(index, encoder_version, item_keys, sketches)
    async with driver(connection) as raw:
        await raw.execute(_WRITE_SETTINGS)
        try:
            await raw.execute(statement, parameters)
        except pg.DeadlockDetected as error:
            raise Collision from error


async def empty_sketches(
    connection: AsyncConnection, index: Index, encoder_version: int, after: bytes, limit: int
) -> bytes | None:
    """Empty the column for a version of the encoder in the next `limit` items after a key.

    Return the last key, or None when there are no more. Rows are locked in the order of keys, as in
    `write_sketches`, and for the same reason. Raises `Collision`.
    """
    column, partition = sketch_column(encoder_version), partition_name(index.id)
    statement = f"""
        WITH emptied AS (
            SELECT item_key FROM {partition} WHERE index_id = %s AND item_key > %s
            ORDER BY item_key LIMIT %s
        ), found AS (
            SELECT item_key FROM {partition}
            WHERE index_id = %s AND item_key IN (SELECT item_key FROM emptied)
                AND {column} IS NOT NULL
            ORDER BY item_key FOR UPDATE
        ), written AS (
            UPDATE {partition} AS stored SET {column} = NULL FROM found
            WHERE stored.index_id = %s AND stored.item_key = found.item_key
        )
        SELECT item_key FROM emptied ORDER BY item_key DESC LIMIT 1
        """
    async with driver(connection) as raw:
        try:
            cursor = await raw.execute(
                statement, (index.id, after, limit, index.id, index.id), binary=True
            )
        except pg.DeadlockDetected as error:
            raise Collision from error
        row = await cursor.fetchone()
        return None if row is None else bytes(row[0])


async def explain_write_sketches(
    connection: AsyncConnection, index: Index, item_keys: Sequence[bytes]
) -> str:
    """Return PostgreSQL's plan for `write_sketches`."""
    sketches = [b""] * len(item_keys)
    statement, parameters = _write_statement(index, index.encoder_version + 1, item_keys, sketches)
    async with driver(connection) as raw:
        await raw.execute(_WRITE_SETTINGS)
        cursor = await raw.execute(f"EXPLAIN {statement}", parameters)
        return "\n".join(row[0] for row in await cursor.fetchall())


def _write_statement(
    index: Index, encoder_version: int, item_keys: Sequence[bytes], sketches: Sequence[bytes]
) -> tuple[str, tuple[Any, ...]]:
    column = sketch_column(encoder_version)
    # The keys twice: as a condition on the index, which then reads no other rows, and beside their
    # sketches.
    statement = f"""
        UPDATE {partition_name(index.id)} AS stored SET {column} = fresh.sketch
        FROM unnest(%b::bytea[], %b::varbit[]) AS fresh (item_key, sketch)
        WHERE stored.index_id = %s AND stored.item_key = ANY(%b)
            AND stored.item_key = fresh.item_key
            AND stored.{column} IS NULL
        """
    keys = ItemKeys(item_keys)
    return statement, (keys, [VarBit(bits) for bits in sketches], index.id, keys)


async def candidate_keys(
    connection: AsyncConnection,
    index: Index,
    sketches: Sequence[bytes],
    *,
    pool: int,
    n_probes: int,
) -> list[bytes]:
    """Return for each sketch the keys of its `pool` candidates in order, joined to one value.

    Exactly `n_probes` lists of the ivfflat index of `index.generation` are read, whether queries
    use it yet or not.
    """
    statement, parameters = _candidates_statement(index, sketches, pool)
    async with driver(connection) as raw:
        await raw.execute(_SCAN_SETTINGS, (str(n_probes),))
        cursor = await raw.execute(statement, parameters, binary=True)
        return [keys or b"" for (keys,) in await cursor.fetchall()]


async def explain_candidate_keys(connection: AsyncConnection, index: Index, sketch: bytes) -> str:
    """Return PostgreSQL's plan for `candidate_keys`."""
    statement, parameters = _candidates_statement(index, [sketch], 10)
    async with driver(connection) as raw:
        await raw.execute(_SCAN_SETTINGS, ("1",))
        cursor = await raw.execute(f"EXPLAIN {statement}", parameters)
        return "\n".join(row[0] for row in await cursor.fetchall())


def _candidates_statement(
    index: Index, sketches: Sequence[bytes], pool: int
) -> tuple[str, tuple[Any, ...]]:
    # A scalar subquery for each sketch: rows come out in the order of the array, keys in that of
    # the scan.
    statement = f"""
        SELECT (SELECT string_agg(item_key, ''::bytea) FROM ({_scan(index)}) AS scan)
        FROM unnest(%b::varbit[]) WITH ORDINALITY AS query (sketch, position)
        """
    return statement, (index.id, pool, [VarBit(sketch) for sketch in sketches])


async def list_sizes(connection: AsyncConnection, index: Index, n_samples: int) -> list[int]:
    """Return the size of the list that each of some stored items is nearest to. Needs no key.

    A list is met as often as it has items, so the mean is that of the items, not of the lists.
    """
    async with driver(connection) as raw:
        await raw.execute(_SCAN_SETTINGS, ("1",))
        column = sketch_column(index.encoder_version)
        cursor = await raw.execute(
            f"""
            SELECT count(*)::int8 FROM (
                SELECT {column} AS sketch, item_key AS sampled FROM {partition_name(index.id)}
                WHERE index_id = %s AND {column} IS NOT NULL ORDER BY item_key LIMIT %s
            ) AS query
            CROSS JOIN LATERAL ({_scan(index)}) AS candidate GROUP BY query.sampled
            """,
            (index.id, n_samples, index.id, None),
        )
        return [size for (size,) in await cursor.fetchall()]


def _scan(index: Index) -> str:
    """Return the scan of the candidates of `query.sketch`; it takes the index's id and a limit."""
    bits = index.sketch_bits
    assert bits is not None  # noqa: S101 - an index with items has a dimension, and so sketches
    return (
        f"SELECT item_key FROM {partition_name(index.id)}"
        f" WHERE index_id = %s AND {in_generation(index.generation)}"
        f" ORDER BY {sketch_expression(index.encoder_version, bits)}"
        f" <~> query.sketch::bit({bits}) LIMIT %s"
    )
