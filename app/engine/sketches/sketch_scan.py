"""The approximate scan: one round trip from sketches to everything that opening and reranking need."""

from collections.abc import Sequence
from typing import Any

from app.domain import Candidates, Index
from app.engine.sketches import statements
from app.store.partitions import in_generation, sketch_expression
from app.store.pg import packed_rows
from app.store.pg.adapters import ItemKeys, VarBit
from app.store.pg.connection import Connection
from app.store.pg.round_trip import RoundTrip
from app.store.tables import partition_name

# SET takes no parameters; with is_local the settings end with the transaction. Forbidden to sort,
# the planner uses the ivfflat index whatever its statistics say, for no other path has this order.
# So it need not plan each time.
SCAN_SETTINGS = (
    "SELECT set_config('ivfflat.probes', %s, true), set_config('enable_sort', 'off', true),"
    " set_config('ivfflat.iterative_scan', 'relaxed_order', true),"
    " set_config('ivfflat.max_probes', '32768', true),"
    " set_config('plan_cache_mode', 'force_generic_plan', true)"
)


async def nearest(
    raw: Connection, index: Index, sketches: Sequence[bytes], *, pool: int, n_probes: int
) -> list[Candidates]:
    """Return for each sketch (m bits) the `pool` items whose sketches differ from it in the fewest bits.

    The scan is approximate: it reads `n_probes` of the index's IVF lists, and more only as long as
    it has not found `pool` items. It is exact when it reads all lists. One round trip, and one
    transaction, as the statements of a pipeline are in autocommit. Raises `StaleIndex` when `index`
    is no longer the row as it is now.
    """
    statement, parameters = _statement(index, sketches, pool)
    async with statements.IndexTrip(raw, index) as trip:
        trip.execute(SCAN_SETTINGS, (str(n_probes),))
        found = trip.execute(statement, parameters)
    answer: list[list[Candidates]] = [[] for _ in sketches]
    for position, *packed in found.rows:
        # Of no candidates the aggregates are NULL.
        if packed[0] is not None:
            answer[position - 1].append(packed_rows.unpacked(*packed))
    return [packed_rows.together(parts) for parts in answer]


async def metadata(
    raw: Connection, index: Index, item_keys: Sequence[bytes]
) -> Sequence[tuple[bytes, bytes | None]]:
    """Return item key and sealed metadata of the stored items among `item_keys`."""
    async with RoundTrip(raw) as trip:
        found = trip.execute(
            f"SELECT item_key, sealed_metadata FROM {partition_name(index.id)}"
            " WHERE index_id = %s AND item_key = ANY(%s)",
            (index.id, ItemKeys(item_keys)),
        )
    return found.rows


async def explain(raw: Connection, index: Index, sketches: Sequence[bytes], *, pool: int) -> str:
    """Return PostgreSQL's plan for `nearest`."""
    statement, parameters = _statement(index, sketches, pool)
    async with RoundTrip(raw) as trip:
        trip.execute(SCAN_SETTINGS, ("1",))
        plan = trip.execute(f"EXPLAIN {statement}", parameters)
    return "\n".join(row[0] for row in plan.rows)


def _statement(index: Index, sketches: Sequence[bytes], pool: int) -> tuple[str, tuple[Any, ...]]:
    bits = index.sketch_bits
    part, group = packed_rows.in_parts(index.dimension, pool)
    statement = f"""
        SELECT {{}}{packed_rows.CANDIDATES} FROM (
            SELECT item_key, sealed_id, sealed_vector{part} FROM (
                SELECT item_key, sealed_id, sealed_vector FROM {partition_name(index.id)}
                WHERE index_id = %s AND {in_generation(index.generation)}
                ORDER BY {sketch_expression(index.encoder_version, bits or 0)} <~> {{}}::bit({bits}) LIMIT %s
            ) AS scanned
        ) AS candidate {group}
        """
    if len(sketches) == 1:
        return statement.format("1, ", "%s::varbit"), (index.id, VarBit(sketches[0]), pool)
    # One statement for the batch: LATERAL repeats the index scan for each sketch.
    batch = f"""
        SELECT query.position, packed.* FROM unnest(%b::varbit[]) WITH ORDINALITY AS query (sketch, position)
        CROSS JOIN LATERAL ({statement.format("", "query.sketch")}) AS packed
        """
    return batch, ([VarBit(sketch) for sketch in sketches], index.id, pool)
