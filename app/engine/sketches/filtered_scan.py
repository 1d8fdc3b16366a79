"""Statements on the items that a filter may match, as far as the blind index can tell.

That an item meets the clauses of a filter is necessary for a match, not sufficient: the service
checks the opened metadata of whatever is found here.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from psycopg import errors as pg

from app.domain import Index
from app.engine.sketches import statements
from app.engine.sketches.sketch_scan import SCAN_SETTINGS
from app.engine.sketches.statements import Clauses, Reach
from app.store.indexes import StaleIndex
from app.store.partitions import in_generation
from app.store.pg.adapters import ItemKeys
from app.store.pg.connection import Connection
from app.store.tables import partition_name

_ROW_CHUNK = 10_000
# Some hundred rows: enough to tell one in ten from one in a hundred, and read in less than a
# millisecond.
_SAMPLE_PAGES = 100
# Every row of the sample is compared with every token: with more than these, there are fewer rows.
_SAMPLE_TOKENS = 1_000

_NARROW = "item_key, sealed_metadata"


class Row(NamedTuple):
    """An item that may match."""

    item_key: bytes
    sealed_metadata: bytes | None


class Estimate(NamedTuple):
    """How many items an index has, and by a small sample the share of them that meets the clauses."""

    n_items: int
    share: float


async def estimate(raw: Connection, index: Index, clauses: Clauses) -> Estimate:
    """Return how many items may match. Raises `StaleIndex` when `index` is no longer the row as it is now."""
    name = partition_name(index.id)
    n_pages = max(10, _SAMPLE_PAGES * _SAMPLE_TOKENS // max(_SAMPLE_TOKENS, sum(map(len, clauses))))
    percent = f"least(100, 100 * {n_pages} * 8192.0 / greatest(1, pg_relation_size('{name}')))"
    condition = statements.clauses_met(clauses)
    sample = f"SELECT count(*), count(*) FILTER (WHERE {condition}) FROM {name} TABLESAMPLE SYSTEM ({percent})"
    async with statements.IndexTrip(raw, index) as trip:
        count = "SELECT coalesce(sum(n_items), 0)::bigint FROM item_counts WHERE index_id = %s"
        counted = trip.execute(count, (index.id,))
        sampled = trip.execute(sample, tuple(clauses))
    n_items = counted.one()[0]
    n_seen, n_met = sampled.one()
    return Estimate(n_items, n_met / max(1, n_seen))


async def by_sketch(
    raw: Connection, index: Index, sketches: Sequence[bytes], clauses: Clauses, reach: Reach
) -> list[list[Row]]:
    """Return for each sketch the nearest items that meet the clauses, by way of the ivfflat index.

    Good when many items meet them. The scan goes on through the lists until it has found enough:
    when it returns fewer, these are all. Raises `StaleIndex`.
    """
    where = (
        f"index_id = %s AND {in_generation(index.generation)} AND {statements.clauses_met(clauses)}"
    )
    statement = _ranked(index, where, "{}", reach.limit)
    settings = (SCAN_SETTINGS, (str(reach.n_probes),))
    return _rows(
        await statements.found_for_each(raw, index, settings, statement, (sketches, *clauses))
    )


async def by_tokens(
    raw: Connection, index: Index, sketches: Sequence[bytes], clauses: Clauses, *, limit: int
) -> list[list[Row]]:
    """Return for each sketch the nearest items that meet the clauses, of which there is at least one.

    All that meet them are found in the GIN index, then sorted by sketch: good when they are few.
    Raises `StaleIndex`.
    """
    statement, settings = _by_tokens(index, clauses, limit), (statements.GIN_SETTINGS, ())
    return _rows(
        await statements.found_for_each(raw, index, settings, statement, (sketches, *clauses))
    )


async def among(
    raw: Connection,
    index: Index,
    sketches: Sequence[bytes],
    item_keys: Sequence[bytes],
    *,
    limit: int,
) -> list[list[Row]]:
    """Return for each sketch the nearest of the items in `item_keys`. Raises `StaleIndex`."""
    statement = _ranked(index, "index_id = %s AND item_key = ANY(%s)", "({}) + 0", limit)
    settings = (statements.GIN_SETTINGS, ())
    return _rows(
        await statements.found_for_each(
            raw, index, settings, statement, (sketches, ItemKeys(item_keys))
        )
    )


async def rows(raw: Connection, index: Index, clauses: Clauses) -> AsyncIterator[list[Row]]:
    """Yield all items that meet the clauses, some thousands at a time, as of one moment. Raises `StaleIndex`."""
    statement = (
        f"SELECT item_key, sealed_metadata FROM {partition_name(index.id)}"
        f" WHERE index_id IS NOT DISTINCT FROM %s AND {statements.clauses_met(clauses)}"
    )
    try:
        async with raw.transaction():
            await raw.limit_statements()
            revision = await raw.execute(statements.REVISION, (index.id,))
            statements.check_revision(await revision.fetchall(), index)
            if clauses:
                await raw.execute(statements.GIN_SETTINGS)
            async with raw.cursor("filtered") as cursor:
                await cursor.execute(statement, (index.id, *clauses), binary=True)
                while chunk := await cursor.fetchmany(_ROW_CHUNK):
                    yield [Row(*row) for row in chunk]
    except pg.UndefinedTable as error:
        raise StaleIndex from error


def _by_tokens(index: Index, clauses: Clauses, limit: int) -> str:
    # With `index_id = …` the planner might read the whole partition by its primary key, of which
    # that is the first column. The sum keeps it from the ivfflat index.
    return _ranked(
        index,
        f"index_id IS NOT DISTINCT FROM %s AND {statements.clauses_met(clauses)}",
        "({}) + 0",
        limit,
    )


def _ranked(index: Index, where: str, order: str, limit: int) -> str:
    """Return the statement that finds for each sketch the `limit` nearest items that meet `where`."""
    return statements.for_each_sketch(statements.nearest(index, where, order, limit, _NARROW))


def _rows(found: list[list[list[Any]]]) -> list[list[Row]]:
    return [[Row(*row) for row in rows] for rows in found]
