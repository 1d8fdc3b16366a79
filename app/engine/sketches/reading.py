"""Items read by their place in the table, by their keys, or all that have some tokens."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from psycopg import errors as pg

from app.domain import Candidates
from app.engine.kind import Row
from app.engine.sketches import statements
from app.engine.sketches.statements import Clauses, Places, Table
from app.observe.stages import stage
from app.store import indexes
from app.store.pg import adapters, packed_rows
from app.store.pg.adapters import ItemKeys
from app.store.pg.pool import Pool


class Outdated(Exception):
    """Items of the index have changed."""


async def places(
    connections: Pool, table: Table, statement: str, values: Sequence[Any], n_queries: int
) -> list[Places]:
    """Return for each query the places that a statement has found. Raises `StaleIndex`."""
    async with indexes.trip(connections, table.index) as trip:
        trip.execute(statements.GIN_SETTINGS)
        found = trip.execute(statement, values)
    return [statements.placed(parts) for parts in statements.grouped(found.rows, n_queries)]


async def rows_at(
    connections: Pool,
    table: Table,
    wanted: Sequence[tuple[Places, slice]],
    n_changes: int | None = None,
) -> list[Candidates]:
    """Return the items at some of the places that each query knows, with their metadata.

    By place it takes a fraction of the time that it takes by key; an item that has left its place
    is found by its key. Raises `StaleIndex`, and `Outdated` when `n_changes` is no longer the
    number of changes to the index's items.
    """
    statement = statements.at_places(table)
    async with indexes.trip(connections, table.index) as trip:
        changes = trip.execute(statements.N_CHANGES, (table.index.id,))
        found = [
            trip.execute(statement, (adapters.Places(known.places[part]),))
            for known, part in wanted
        ]
    if n_changes not in {None, changes.one()[0]}:
        raise Outdated
    answer = []
    for read, (known, part) in zip(found, wanted, strict=True):
        candidates = packed_rows.unpacked(*read.one())
        item_keys = known.item_keys[part]
        is_all = set(candidates.item_keys) == set(item_keys)
        answer.append(candidates if is_all else await rows_of(connections, table, item_keys))
    return answer


async def rows_of(connections: Pool, table: Table, item_keys: Sequence[bytes]) -> Candidates:
    """Return the stored items among `item_keys`, in no order, with their metadata."""
    n_together = packed_rows.n_together(table.dimension)
    starts = range(0, max(1, len(item_keys)), n_together)
    parts = [ItemKeys(item_keys[start : start + n_together]) for start in starts]
    statement = statements.by_keys(table)
    async with indexes.trip(connections, table.index) as trip:
        found = [trip.execute(statement, (table.index.id, part)) for part in parts]
    return packed_rows.together([packed_rows.unpacked(*part.one()) for part in found])


async def rows(
    connections: Pool, table: Table, clauses: Clauses, at_a_time: int
) -> AsyncGenerator[list[Row], None]:
    """Yield key and metadata of all items that meet the clauses, as of one moment."""
    try:
        async with stage("sql"), connections.lend() as raw, raw.transaction():
            await raw.limit_statements()
            await indexes.check_revision_of(raw, table.index)
            if clauses:
                await raw.execute(statements.GIN_SETTINGS)
            async with raw.cursor("matching") as cursor:
                values = (table.index.id, *clauses)
                await cursor.execute(statements.all_rows(table, clauses), values, binary=True)
                while chunk := await cursor.fetchmany(at_a_time):
                    yield [Row(*row) for row in chunk]
    except pg.UndefinedTable as error:
        raise indexes.StaleIndex from error
