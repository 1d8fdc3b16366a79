"""Statements that find candidates by tokens and bring them as one row, opened by whoever asks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.domain import Candidates, Index
from app.engine.sketches import statements
from app.engine.sketches.sketch_scan import SCAN_SETTINGS
from app.engine.sketches.statements import Clauses, Reach
from app.store.partitions import in_generation, sketch_expression
from app.store.pg import packed_rows
from app.store.pg.adapters import ItemKeys, Places, VarBit
from app.store.pg.connection import Connection
from app.store.pg.round_trip import RoundTrip
from app.store.tables import partition_name

# Before a bit string's bytes comes its length.
_BIT_HEADER_BYTES = 4
_WIDE = "item_key, sealed_id, sealed_vector, sealed_metadata"
_N_CHANGES = "SELECT coalesce(sum(n_changes), 0)::bigint FROM item_counts WHERE index_id = %s"


class Outdated(Exception):
    """Items of the index have changed."""


class Further(NamedTuple):
    """An item that has been found but not read: its key, its place in the table, the Hamming distance of its sketch."""

    item_key: bytes
    place: bytes
    distance: int


class Found(NamedTuple):
    """What has been found for a sketch, and where to look on."""

    candidates: Candidates
    # The Hamming distance of the farthest of them.
    farthest: int
    # Those that come after them, nearest first.
    further: Sequence[Further]


class Everything(NamedTuple):
    """All items that meet some clauses: keys and places, each joined to one value, and sketches (n, m / 8)."""

    # The number of changes to the index's items until then.
    n_changes: int
    item_keys: bytes
    places: bytes
    sketches: NDArray[np.uint8]


async def by_sketch(
    raw: Connection, index: Index, sketches: Sequence[bytes], clauses: Clauses, reach: Reach
) -> list[Found]:
    """Return for each sketch the nearest items that meet the clauses, by way of the ivfflat index, and none further.

    Good when many items meet them. The scan goes on through the lists until it has found enough:
    when it returns fewer, these are all. Raises `StaleIndex`.
    """
    statement = _by_sketch(index, clauses, reach)
    rows = await statements.found_for_each(
        raw, index, (SCAN_SETTINGS, (str(reach.n_probes),)), statement, (sketches, *clauses)
    )
    return [_unpacked(parts) for parts in rows]


async def by_tokens(
    raw: Connection, index: Index, sketches: Sequence[bytes], clauses: Clauses, reach: Reach
) -> list[Found]:
    """Return for each sketch the nearest items that meet the clauses, in no order, and `reach.n_further` others.

    All that meet them are found in the GIN index, then sorted by sketch: good when they are few.
    Raises `StaleIndex`.
    """
    statement = _by_tokens(index, clauses, reach)
    rows = await statements.found_for_each(
        raw, index, (statements.GIN_SETTINGS, ()), statement, (sketches, *clauses)
    )
    return [_unpacked(parts) for parts in rows]


async def by_keys(raw: Connection, index: Index, item_keys: Sequence[bytes]) -> Candidates:
    """Return the stored items among `item_keys`, in no order, with their metadata. Raises `StaleIndex`."""
    n_together = packed_rows.n_together(index.dimension)
    parts = [
        ItemKeys(item_keys[start : start + n_together])
        for start in range(0, max(1, len(item_keys)), n_together)
    ]
    statement = f"{_stored(index)} WHERE index_id = %s AND item_key = ANY(%s)"
    async with statements.IndexTrip(raw, index) as trip:
        found = [trip.execute(statement, (index.id, part)) for part in parts]
    return packed_rows.together([packed_rows.unpacked(*part.one()) for part in found])


async def at_places(
    raw: Connection,
    index: Index,
    wanted: Sequence[Sequence[Further]],
    n_changes: int | None = None,
) -> list[Candidates]:
    """Return each of the items `wanted`, in no order, with their metadata.

    By place it takes a fraction of the time that it takes by key; an item that has left its place
    is found by its key. Raises `StaleIndex`, and `Outdated` when `n_changes` is no longer the
    number of changes to the index's items.
    """
    statement = f"{_stored(index)} WHERE ctid = ANY(%s)"
    most = packed_rows.n_together(index.dimension)
    async with statements.IndexTrip(raw, index) as trip:
        changes = trip.execute(_N_CHANGES, (index.id,))
        found = [
            trip.execute(statement, (Places(item.place for item in items[:most]),))
            for items in wanted
        ]
    if n_changes not in {None, changes.one()[0]}:
        raise Outdated
    answer = []
    for part, items in zip(found, wanted, strict=True):
        candidates, item_keys = packed_rows.unpacked(*part.one()), [item.item_key for item in items]
        is_all = set(candidates.item_keys) == set(item_keys)
        answer.append(candidates if is_all else await by_keys(raw, index, item_keys))
    return answer


async def everything(
    raw: Connection, index: Index, clauses: Clauses, *, most: int
) -> Everything | None:
    """Return all items that meet the clauses. None when they are more than `most`, or none. Raises `StaleIndex`."""
    sketch = sketch_expression(index.encoder_version, index.sketch_bits or 0)
    statement = f"""
        SELECT {packed_rows.KEYS}, string_agg(tidsend(place), ''), string_agg(bit_send(sketch), ''), count(*) FROM (
            SELECT item_key, ctid AS place, {sketch} AS sketch FROM {partition_name(index.id)}
            WHERE index_id IS NOT DISTINCT FROM %s AND {statements.clauses_met(clauses)} AND {sketch} IS NOT NULL
            LIMIT {most + 1:d}
        ) AS met
        """
    async with statements.IndexTrip(raw, index) as trip:
        trip.execute(statements.GIN_SETTINGS)
        # Before the items: a change in between makes the number outdated, never the items.
        changes = trip.execute(_N_CHANGES, (index.id,))
        found = trip.execute(statement, (index.id, *clauses))
    item_keys, places, sketches, n_items = found.one()
    if not 0 < n_items <= most:
        return None
    bits = np.frombuffer(sketches, np.uint8).reshape(n_items, -1)[:, _BIT_HEADER_BYTES:]
    return Everything(changes.one()[0], item_keys, places, bits)


async def explain(
    raw: Connection,
    index: Index,
    sketches: Sequence[bytes],
    clauses: Clauses,
    *,
    uses_tokens: bool,
) -> str:
    """Return PostgreSQL's plan for `by_tokens` or `by_sketch`."""
    reach = Reach(10, n_further=100)
    statement = (_by_tokens if uses_tokens else _by_sketch)(index, clauses, reach)
    async with RoundTrip(raw) as trip:
        trip.execute(*(statements.GIN_SETTINGS, ()) if uses_tokens else (SCAN_SETTINGS, ("1",)))
        values = ([VarBit(sketch) for sketch in sketches], index.id, *clauses)
        plan = trip.execute(f"EXPLAIN {statement}", values)
    return "\n".join(row[0] for row in plan.rows)


def _by_sketch(index: Index, clauses: Clauses, reach: Reach) -> str:
    where = (
        f"index_id = %s AND {in_generation(index.generation)} AND {statements.clauses_met(clauses)}"
    )
    nearest = statements.nearest(
        index, where, "{}", reach.limit, f"{_WIDE}, {statements.distance(index)} AS distance"
    )
    part, group = packed_rows.in_parts(index.dimension, reach.limit)
    return statements.for_each_sketch(f"""
        SELECT {packed_rows.CANDIDATES_AND_METADATA}, max(distance)::integer, NULL, NULL, NULL
        FROM (SELECT *{part} FROM ({nearest}) AS scanned) AS nearest {group}
        """)


def _by_tokens(index: Index, clauses: Clauses, reach: Reach) -> str:
    # What is sorted are places in the table; the wide columns are read for those that are left.
    where = f"index_id IS NOT DISTINCT FROM %s AND {statements.clauses_met(clauses)}"
    columns = f"ctid AS place, item_key AS its_key, ({statements.distance(index)}) + 0 AS distance"
    nearest = statements.nearest(index, where, "({}) + 0", reach.limit + reach.n_further, columns)
    part, group = packed_rows.in_parts(index.dimension, reach.limit)
    return statements.for_each_sketch(f"""
        WITH nearest AS MATERIALIZED ({nearest})
        SELECT candidates.*, further.* FROM (
            SELECT {packed_rows.CANDIDATES_AND_METADATA}, max(distance)::integer
            FROM (SELECT place, distance{part} FROM nearest LIMIT {reach.limit:d}) AS chosen
            JOIN {partition_name(index.id)} AS item ON item.ctid = place {group}
        ) AS candidates, (
            SELECT string_agg(its_key, ''), string_agg(tidsend(place), ''), string_agg(int4send(distance::integer), '')
            FROM (SELECT its_key, place, distance FROM nearest OFFSET {reach.limit:d}) AS others
        ) AS further
        """)


def _stored(index: Index) -> str:
    return f"SELECT {packed_rows.CANDIDATES_AND_METADATA} FROM {partition_name(index.id)}"


def _unpacked(parts: Sequence[Sequence[Any]]) -> Found:
    """Return what was found, of its parts as rows."""
    if not parts:
        return Found(Candidates([], [], [], []), 0, [])
    *_, item_keys, places, distances = parts[0]
    further = map(
        Further,
        packed_rows.keys(item_keys),
        packed_rows.places(places),
        packed_rows.numbers(distances).tolist(),
    )
    candidates = packed_rows.together([packed_rows.unpacked(*part[:-4]) for part in parts])
    return Found(candidates, max(part[-4] or 0 for part in parts), list(further))
