"""PostgreSQL's plans for the statements of a search."""

from collections.abc import Sequence

from app.domain import Index
from app.engine.sketches import statements
from app.engine.sketches.statements import Reach, Table
from app.store.pg.adapters import Tokens
from app.store.pg.pool import Pool
from app.store.pg.round_trip import RoundTrip


def table_of(index: Index) -> Table:
    assert index.sketch_bits is not None
    assert index.dimension is not None
    return Table(index, index.sketch_bits, index.dimension)


async def plan_by_lists(
    pool: Pool, index: Index, clauses: Sequence[Tokens] | None = None, n_queries: int = 1
) -> str:
    table = table_of(index)
    statement = statements.by_lists(table, clauses, 10)
    values = (*queries(table, n_queries), index.id, *(clauses or ()), 10)
    return await _plan(pool, (statements.LIST_SETTINGS, ("1",)), statement, values)


async def plan_by_tokens(pool: Pool, index: Index, clauses: Sequence[Tokens]) -> str:
    table = table_of(index)
    statement = statements.by_tokens(table, clauses, 10)
    values = (*queries(table, 1), index.id, *clauses)
    return await _plan(pool, (statements.GIN_SETTINGS, ()), statement, values)


def queries(table: Table, n_queries: int) -> tuple[object, ...]:
    sketch = bytes(table.sketch_bits // 8)
    return statements.queries([sketch] * n_queries, [Reach(0, table.sketch_bits, 10)] * n_queries)


async def _plan(
    pool: Pool,
    settings: tuple[str, tuple[str, ...]],
    statement: str,
    values: tuple[object, ...],
) -> str:
    async with pool.lend() as raw, RoundTrip(raw) as trip:
        trip.execute(*settings)
        plan = trip.execute(f"EXPLAIN {statement}", values)
    return "\n".join(row[0] for row in plan.rows)
