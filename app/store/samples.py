"""Statements of training on the items of one index: the vectors it reads, the sketches it writes, what it measures.

Like those of `store.items`, they name the index's own partition and go through psycopg itself.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from psycopg import errors as pg
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Index
from app.store.engine import VarBit, driver
from app.store.partitions import in_generation, sketch_expression
from app.store.tables import partition_name, sketch_column

SealedVector = tuple[bytes, bytes]


class Collision(Exception):
    """Another transaction was in the way; the same again will do."""


# As `nearest` sets them, but a scan ends with the lists it was asked to read.
_SCAN_SETTINGS = (
    "SELECT set_config('ivfflat.probes', %s, true), set_config('enable_sort', 'off', true),"
    " set_config('ivfflat.iterative_scan', 'off', true)"
)


async def vectors_after(
    connection: AsyncConnection, index: Index, item_key: bytes, limit: int, *, lacking: int | None = None
) -> list[SealedVector]:
    """Return item keys and sealed vectors of the `limit` items that follow `item_key`, in the order of their keys.

    Of those that lack the sketch by version `lacking` of the encoder, if that is given.
    """
    condition = "" if lacking is None else f"AND {sketch_column(lacking)} IS NULL"
    async with driver(connection) as raw, raw.cursor(binary=True) as cursor:
        await cursor.execute(
            f"SELECT item_key, sealed_vector FROM {partition_name(index.id)}"
            f" WHERE index_id = %s AND item_key > %s {condition} ORDER BY item_key LIMIT %s",
            (index.id, item_key, limit),
        )
        return await cursor.fetchall()


async def all_vectors(connection: AsyncConnection, index: Index, at_a_time: int) -> AsyncIterator[list[SealedVector]]:
    """Yield item key and sealed vector of every item, `at_a_time`, in no order, as of one moment."""
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

    Who was replaced meanwhile has one already, of the newer vector. Rows are locked in the order of their keys, as
    in `store.items.upsert`. Raises `Collision` when that was not enough to avoid a deadlock.
    """
    name, column = partition_name(index.id), sketch_column(encoder_version)
    async with driver(connection) as raw:
        statement = f"""
            WITH lacking AS (
                SELECT stored.item_key, fresh.sketch
                FROM unnest(%b::bytea[], %b::varbit[]) AS fresh (item_key, sketch)
                JOIN {name} AS stored ON stored.index_id = %s AND stored.item_key = fresh.item_key
                WHERE stored.{column} IS NULL ORDER BY stored.item_key FOR UPDATE OF stored
            )
            UPDATE {name} AS stored SET {column} = lacking.sketch FROM lacking
            WHERE stored.index_id = %s AND stored.item_key = lacking.item_key AND stored.{column} IS NULL
            """
        try:
            await raw.execute(statement, (list(item_keys), [VarBit(bits) for bits in sketches], index.id, index.id))
        except pg.DeadlockDetected as error:
            raise Collision from error


async def ranks(  # noqa: PLR0913 - what is asked, of what, by which scan
    connection: AsyncConnection,
    index: Index,
    sketches: Sequence[bytes],
    neighbours: Sequence[Sequence[bytes]],
    *,
    pool: int,
    n_probes: int,
) -> list[tuple[int, int, int]]:
    """Return (query, neighbour, rank) for each of `neighbours` that is among the `pool` candidates of its query.

    Queries and neighbours are counted from 0, ranks from 1. Exactly `n_probes` lists of the ivfflat index of
    `index.generation` are read, whether queries use it already or not.
    """
    statement, parameters = _ranks_statement(index, sketches, neighbours, pool)
    async with driver(connection) as raw:
        await raw.execute(_SCAN_SETTINGS, (str(n_probes),))
        cursor = await raw.execute(statement, parameters, binary=True)
        return await cursor.fetchall()


async def explain_ranks(connection: AsyncConnection, index: Index, sketch: bytes, neighbour: bytes) -> str:
    """Return PostgreSQL's plan for `ranks`."""
    statement, parameters = _ranks_statement(index, [sketch], [[neighbour]], 10)
    async with driver(connection) as raw:
        await raw.execute(_SCAN_SETTINGS, ("1",))
        cursor = await raw.execute(f"EXPLAIN {statement}", parameters)
        return "\n".join(row[0] for row in await cursor.fetchall())


def _ranks_statement(
    index: Index, sketches: Sequence[bytes], neighbours: Sequence[Sequence[bytes]], pool: int
) -> tuple[str, tuple[Any, ...]]:
    flat = [(query, rank, key) for query, keys in enumerate(neighbours) for rank, key in enumerate(keys)]
    statement = f"""
        WITH neighbour AS MATERIALIZED (
            SELECT * FROM unnest(%b::int4[], %b::int4[], %b::bytea[]) AS neighbour (query, number, item_key)
        )
        SELECT neighbour.query, neighbour.number, candidate.rank
        FROM unnest(%b::varbit[]) WITH ORDINALITY AS query (sketch, position)
        CROSS JOIN LATERAL (
            SELECT item_key, (row_number() OVER ())::int4 AS rank FROM ({_scan(index)}) AS scan
        ) AS candidate
        JOIN neighbour ON neighbour.query = query.position - 1 AND neighbour.item_key = candidate.item_key
        """
    return statement, (
        [query for query, _, _ in flat],
        [number for _, number, _ in flat],
        [key for _, _, key in flat],
        [VarBit(sketch) for sketch in sketches],
        index.id,
        pool,
    )


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
    """Return the scan of the candidates of `query.sketch`; its parameters are the index's id and the limit."""
    bits = index.sketch_bits
    assert bits is not None  # noqa: S101 - an index with items has a dimension, and so sketches
    return (
        f"SELECT item_key FROM {partition_name(index.id)} WHERE index_id = %s AND {in_generation(index.generation)}"
        f" ORDER BY {sketch_expression(index.encoder_version, bits)} <~> query.sketch::bit({bits}) LIMIT %s"
    )
