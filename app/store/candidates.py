"""The approximate scan: one round trip from sketches to everything that opening and reranking need.

These functions block: a search runs in a thread, on a connection of `engine.create_scan_engine`.
"""

import struct
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import errors as pg

from app.domain import Candidates, Index, Joined
from app.store.engine import VarBit
from app.store.indexes import StaleIndex
from app.store.partitions import in_generation, sketch_expression
from app.store.tables import partition_name

# SET takes no parameters; with is_local the settings end with the transaction. Forbidden to sort, the planner
# uses the ivfflat index whatever its statistics say, for no other path has this order.
SCAN_SETTINGS = (
    "SELECT set_config('ivfflat.probes', %s, true), set_config('enable_sort', 'off', true),"
    " set_config('ivfflat.iterative_scan', 'relaxed_order', true)"
)
_ITEM_KEY_BYTES = 16
_LENGTH_BYTES = 4
# The candidates of one sketch come as one row: a row for each would be a message, an allocation and a tuple for each,
# which for a thousand of them takes as long as scanning for them. PostgreSQL makes no value larger than 1 GB, so that
# very many come as several rows.
_VALUE_BYTES = 64 * 1024 * 1024
_PACKED = """
    string_agg(item_key, ''),
    string_agg(int4send(octet_length(sealed_id)), ''), string_agg(sealed_id, ''),
    string_agg(int4send(octet_length(sealed_vector)), ''), string_agg(sealed_vector, '')
    """


def nearest(
    raw: psycopg.Connection[Any], index: Index, sketches: Sequence[bytes], *, pool: int, n_probes: int
) -> list[Candidates]:
    """Return for each sketch (m bits) the `pool` items whose sketches differ from it in the fewest bits.

    The scan is approximate: it reads `n_probes` of the index's IVF lists, and more only as long as it has
    not found `pool` items. It is exact when it reads all lists. One round trip, and one transaction, as the
    statements of a pipeline are in autocommit.
    Raises `StaleIndex` when `index` is no longer the row as it is now.
    """
    statement, parameters = _statement(index, sketches, pool)
    try:
        with raw.pipeline():
            raw.execute(SCAN_SETTINGS, (str(n_probes),), prepare=True)
            revision = raw.execute("SELECT revision FROM indexes WHERE id = %s", (index.id,), prepare=True)
            found = raw.execute(statement, parameters, prepare=True)
        if revision.fetchone() != (index.revision,):
            raise StaleIndex
    except pg.UndefinedTable as error:
        raise StaleIndex from error
    answer: list[list[Candidates]] = [[] for _ in sketches]
    for position, *packed in found:
        # Of no candidates the aggregates are NULL.
        if packed[0] is not None:
            answer[position - 1].append(_unpacked(*packed))
    return [_together(parts) for parts in answer]


def metadata(
    raw: psycopg.Connection[Any], index: Index, item_keys: Sequence[bytes]
) -> list[tuple[bytes, bytes | None]]:
    """Return item key and sealed metadata of the stored items among `item_keys`."""
    cursor = raw.execute(
        f"SELECT item_key, sealed_metadata FROM {partition_name(index.id)} WHERE index_id = %s AND item_key = ANY(%s)",
        (index.id, list(item_keys)),
        prepare=True,
    )
    return cursor.fetchall()


def explain(raw: psycopg.Connection[Any], index: Index, sketches: Sequence[bytes], *, pool: int) -> str:
    """Return PostgreSQL's plan for `nearest`."""
    statement, parameters = _statement(index, sketches, pool)
    with raw.pipeline():
        raw.execute(SCAN_SETTINGS, ("1",))
        plan = raw.execute(f"EXPLAIN {statement}", parameters)
    return "\n".join(row[0] for row in plan)


def _statement(index: Index, sketches: Sequence[bytes], pool: int) -> tuple[str, tuple[Any, ...]]:
    bits = index.sketch_bits
    n_together = max(1, _VALUE_BYTES // (8 * (index.dimension or 1)))
    part, group = (
        (f", (row_number() OVER () - 1) / {n_together} AS part", "GROUP BY part") if pool > n_together else ("", "")
    )
    statement = f"""
        SELECT {{}}{_PACKED} FROM (
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


def _unpacked(
    item_keys: bytes, id_lengths: bytes, sealed_ids: bytes, vector_lengths: bytes, sealed_vectors: bytes
) -> Candidates:
    """Return the candidates that were packed by `_PACKED`."""
    starts = range(0, len(item_keys), _ITEM_KEY_BYTES)
    return Candidates(
        [item_keys[start : start + _ITEM_KEY_BYTES] for start in starts],
        Joined(sealed_ids, _numbers(id_lengths)),
        Joined(sealed_vectors, _numbers(vector_lengths)),
    )


def _together(parts: Sequence[Candidates]) -> Candidates:
    if len(parts) == 1:
        return parts[0]
    return Candidates(
        [item_key for part in parts for item_key in part.item_keys],
        [sealed for part in parts for sealed in part.sealed_ids],
        [sealed for part in parts for sealed in part.sealed_vectors],
    )


def _numbers(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f">{len(data) // _LENGTH_BYTES}i", data)
