"""Statements on the items that a filter may match, as far as the blind index can tell.

A filter comes as clauses: an item can only match if it has, for each clause, one of its tokens. That is necessary, not
sufficient: the service checks the opened metadata of whatever is found here. Like those of `candidates`, these
functions block.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import errors as pg

from app.domain import Candidates, Index
from app.store import packing
from app.store.candidates import SCAN_SETTINGS
from app.store.engine import ItemKeys, Places, Tokens, VarBit
from app.store.indexes import StaleIndex
from app.store.partitions import in_generation, sketch_expression
from app.store.tables import partition_name

Clauses: TypeAlias = Sequence[Tokens]

_ROW_CHUNK = 10_000
# Before a bit string's bytes comes its length.
_BIT_HEADER_BYTES = 4
# Some hundred rows: enough to tell one in ten from one in a hundred, and read in less than a millisecond.
_SAMPLE_PAGES = 100
# Every row of the sample is compared with every token: with more than these, there are fewer rows.
_SAMPLE_TOKENS = 1_000

# There are no statistics of tokens, so the planner does not know what the GIN index saves.
_GIN_SETTINGS = "SELECT set_config('enable_seqscan', 'off', true)"
_NARROW = "item_key, sealed_metadata"
_WIDE = "item_key, sealed_id, sealed_vector, sealed_metadata"
_N_CHANGES = "SELECT coalesce(sum(n_changes), 0)::bigint FROM item_counts WHERE index_id = %s"
_REVISION = "SELECT revision FROM indexes WHERE id = %s"


class Outdated(Exception):
    """Items of the index have changed."""


class Row(NamedTuple):
    """An item that may match."""

    item_key: bytes
    sealed_metadata: bytes | None


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


class Estimate(NamedTuple):
    """How many items an index has, and by a small sample the share of them that meets the clauses."""

    n_items: int
    share: float


class Reach(NamedTuple):
    """How far a search goes: items it finds, IVF lists it reads first, or keys of those that come next."""

    limit: int
    n_probes: int = 0
    n_further: int = 0


def estimate(raw: psycopg.Connection[Any], index: Index, clauses: Clauses) -> Estimate:
    """Return how many items may match. Raises `StaleIndex` when `index` is no longer the row as it is now."""
    name = partition_name(index.id)
    n_pages = max(10, _SAMPLE_PAGES * _SAMPLE_TOKENS // max(_SAMPLE_TOKENS, sum(map(len, clauses))))
    percent = f"least(100, 100 * {n_pages} * 8192.0 / greatest(1, pg_relation_size('{name}')))"
    sample = (
        f"SELECT count(*), count(*) FILTER (WHERE {_condition(clauses)}) FROM {name} TABLESAMPLE SYSTEM ({percent})"
    )
    with _pipeline(raw, index):
        count = "SELECT coalesce(sum(n_items), 0)::bigint FROM item_counts WHERE index_id = %s"
        counted = raw.execute(count, (index.id,), prepare=True)
        sampled = raw.execute(sample, tuple(clauses), prepare=True)
    n_items = _first(counted)[0]
    n_seen, n_met = _first(sampled)
    return Estimate(n_items, n_met / max(1, n_seen))


def by_sketch(
    raw: psycopg.Connection[Any], index: Index, sketches: Sequence[bytes], clauses: Clauses, reach: Reach
) -> list[list[Row]]:
    """Return for each sketch the nearest items that meet the clauses, by way of the ivfflat index.

    Good when many items meet them. The scan goes on through the lists until it has found enough: when it
    returns fewer, these are all. Raises `StaleIndex`.
    """
    where = f"index_id = %s AND {in_generation(index.generation)} AND {_condition(clauses)}"
    statement = _ranked(index, where, "{}", reach.limit)
    return _rows(raw, index, (SCAN_SETTINGS, (str(reach.n_probes),)), statement, (sketches, *clauses))


def by_tokens(
    raw: psycopg.Connection[Any], index: Index, sketches: Sequence[bytes], clauses: Clauses, *, limit: int
) -> list[list[Row]]:
    """Return for each sketch the nearest items that meet the clauses, of which there is at least one.

    All that meet them are found in the GIN index, then sorted by sketch: good when they are few. Raises `StaleIndex`.
    """
    return _rows(raw, index, (_GIN_SETTINGS, ()), _by_tokens(index, clauses, limit), (sketches, *clauses))


def candidates_by_sketch(
    raw: psycopg.Connection[Any], index: Index, sketches: Sequence[bytes], clauses: Clauses, reach: Reach
) -> list[Found]:
    """Return what `by_sketch` does as candidates, with their metadata and none further."""
    statement = _candidates_by_sketch(index, clauses, reach)
    rows = _found(raw, index, (SCAN_SETTINGS, (str(reach.n_probes),)), statement, (sketches, *clauses))
    return [_unpacked(parts) for parts in rows]


def candidates_by_tokens(
    raw: psycopg.Connection[Any], index: Index, sketches: Sequence[bytes], clauses: Clauses, reach: Reach
) -> list[Found]:
    """Return what `by_tokens` does as candidates, in no order, with their metadata and `reach.n_further` keys."""
    statement = _candidates_by_tokens(index, clauses, reach)
    rows = _found(raw, index, (_GIN_SETTINGS, ()), statement, (sketches, *clauses))
    return [_unpacked(parts) for parts in rows]


def among(
    raw: psycopg.Connection[Any], index: Index, sketches: Sequence[bytes], item_keys: Sequence[bytes], *, limit: int
) -> list[list[Row]]:
    """Return for each sketch the nearest of the items in `item_keys`. Raises `StaleIndex`."""
    statement = _ranked(index, "index_id = %s AND item_key = ANY(%s)", "({}) + 0", limit)
    return _rows(raw, index, (_GIN_SETTINGS, ()), statement, (sketches, list(item_keys)))


def rows(raw: psycopg.Connection[Any], index: Index, clauses: Clauses) -> Iterator[list[Row]]:
    """Yield all items that meet the clauses, some thousands at a time, as of one moment. Raises `StaleIndex`."""
    statement = (
        f"SELECT item_key, sealed_metadata FROM {partition_name(index.id)}"
        f" WHERE index_id IS NOT DISTINCT FROM %s AND {_condition(clauses)}"
    )
    try:
        with raw.transaction():
            _check(raw.execute(_REVISION, (index.id,)), index)
            if clauses:
                raw.execute(_GIN_SETTINGS)
            with raw.cursor("filtered") as cursor:
                cursor.execute(statement, (index.id, *clauses), binary=True)
                while chunk := cursor.fetchmany(_ROW_CHUNK):
                    yield [Row(*row) for row in chunk]
    except pg.UndefinedTable as error:
        raise StaleIndex from error


def by_keys(raw: psycopg.Connection[Any], index: Index, item_keys: Sequence[bytes]) -> Candidates:
    """Return the stored items among `item_keys`, in no order, with their metadata. Raises `StaleIndex`."""
    n_together = packing.n_together(index.dimension)
    parts = [ItemKeys(item_keys[start : start + n_together]) for start in range(0, max(1, len(item_keys)), n_together)]
    statement = f"{_stored(index)} WHERE index_id = %s AND item_key = ANY(%s)"
    with _pipeline(raw, index):
        found = [raw.execute(statement, (index.id, part), prepare=True) for part in parts]
    return packing.together([packing.unpacked(*_first(part)) for part in found])


def at_places(
    raw: psycopg.Connection[Any], index: Index, wanted: Sequence[Sequence[Further]], n_changes: int | None = None
) -> list[Candidates]:
    """Return each of the items `wanted`, in no order, with their metadata.

    By place it takes a fraction of the time that it takes by key; an item that has left its place is found by its key.
    Raises `StaleIndex`, and `Outdated` when `n_changes` is no longer the number of changes to the index's items.
    """
    statement = f"{_stored(index)} WHERE ctid = ANY(%s)"
    most = packing.n_together(index.dimension)
    with _pipeline(raw, index):
        changes = raw.execute(_N_CHANGES, (index.id,), prepare=True)
        found = [
            raw.execute(statement, (Places(item.place for item in items[:most]),), prepare=True) for items in wanted
        ]
    if n_changes not in {None, _first(changes)[0]}:
        raise Outdated
    answer = []
    for cursor, items in zip(found, wanted, strict=True):
        candidates, item_keys = packing.unpacked(*_first(cursor)), [item.item_key for item in items]
        is_all = set(candidates.item_keys) == set(item_keys)
        answer.append(candidates if is_all else by_keys(raw, index, item_keys))
    return answer


def everything(
    raw: psycopg.Connection[Any], index: Index, clauses: Clauses, *, most: int
) -> tuple[int, list[tuple[bytes, bytes]], NDArray[np.uint8]] | None:
    """Return the number of changes to the index, and of all items that meet the clauses key and place, and sketch.

    The sketches have shape (n, m / 8). None when there are more than `most` items, or none. Raises `StaleIndex`.
    """
    sketch = sketch_expression(index.encoder_version, index.sketch_bits or 0)
    statement = f"""
        SELECT {packing.KEYS}, string_agg(tidsend(place), ''), string_agg(bit_send(sketch), '') FROM (
            SELECT item_key, ctid AS place, {sketch} AS sketch FROM {partition_name(index.id)}
            WHERE index_id IS NOT DISTINCT FROM %s AND {_condition(clauses)} LIMIT {most + 1:d}
        ) AS met
        """
    with _pipeline(raw, index):
        raw.execute(_GIN_SETTINGS, prepare=True)
        # Before the items: a change in between makes the number outdated, never the items.
        changes = raw.execute(_N_CHANGES, (index.id,), prepare=True)
        found = raw.execute(statement, (index.id, *clauses), prepare=True)
    item_keys, places, sketches = _first(found)
    items = list(zip(packing.keys(item_keys), packing.places(places), strict=True))
    if not 0 < len(items) <= most:
        return None
    return _first(changes)[0], items, np.frombuffer(sketches, np.uint8).reshape(len(items), -1)[:, _BIT_HEADER_BYTES:]


def explain(
    raw: psycopg.Connection[Any], index: Index, sketches: Sequence[bytes], clauses: Clauses, *, uses_tokens: bool
) -> str:
    """Return PostgreSQL's plan for `candidates_by_tokens`, which holds that of `by_tokens`, or for that by sketch."""
    reach = Reach(10, n_further=100)
    statement = (_candidates_by_tokens if uses_tokens else _candidates_by_sketch)(index, clauses, reach)
    with raw.pipeline():
        raw.execute(*(_GIN_SETTINGS, ()) if uses_tokens else (SCAN_SETTINGS, ("1",)))
        values = ([VarBit(sketch) for sketch in sketches], index.id, *clauses)
        plan = raw.execute(f"EXPLAIN {statement}", values)
    return "\n".join(row[0] for row in plan)


def _by_tokens(index: Index, clauses: Clauses, limit: int) -> str:
    # With `index_id = …` the planner might read the whole partition by its primary key, of which that is the first
    # column. The sum keeps it from the ivfflat index.
    return _ranked(index, f"index_id IS NOT DISTINCT FROM %s AND {_condition(clauses)}", "({}) + 0", limit)


def _candidates_by_sketch(index: Index, clauses: Clauses, reach: Reach) -> str:
    where = f"index_id = %s AND {in_generation(index.generation)} AND {_condition(clauses)}"
    nearest = _nearest(index, where, "{}", reach.limit, f"{_WIDE}, {_distance(index)} AS distance")
    part, group = _parts(index, reach.limit)
    return _for_each_sketch(f"""
        SELECT {packing.CANDIDATES_AND_METADATA}, max(distance)::integer, NULL, NULL, NULL
        FROM (SELECT *{part} FROM ({nearest}) AS scanned) AS nearest {group}
        """)


def _candidates_by_tokens(index: Index, clauses: Clauses, reach: Reach) -> str:
    # What is sorted are places in the table; the wide columns are read for those that are left.
    where = f"index_id IS NOT DISTINCT FROM %s AND {_condition(clauses)}"
    columns = f"ctid AS place, item_key AS its_key, ({_distance(index)}) + 0 AS distance"
    nearest = _nearest(index, where, "({}) + 0", reach.limit + reach.n_further, columns)
    part, group = _parts(index, reach.limit)
    return _for_each_sketch(f"""
        WITH nearest AS MATERIALIZED ({nearest})
        SELECT candidates.*, further.* FROM (
            SELECT {packing.CANDIDATES_AND_METADATA}, max(distance)::integer
            FROM (SELECT place, distance{part} FROM nearest LIMIT {reach.limit:d}) AS chosen
            JOIN {partition_name(index.id)} AS item ON item.ctid = place {group}
        ) AS candidates, (
            SELECT string_agg(its_key, ''), string_agg(tidsend(place), ''), string_agg(int4send(distance::integer), '')
            FROM (SELECT its_key, place, distance FROM nearest OFFSET {reach.limit:d}) AS others
        ) AS further
        """)


def _stored(index: Index) -> str:
    return f"SELECT {packing.CANDIDATES_AND_METADATA} FROM {partition_name(index.id)}"


def _parts(index: Index, limit: int) -> tuple[str, str]:
    """Return a column and a clause that make several rows of what is too much for one."""
    n_together = packing.n_together(index.dimension)
    if limit <= n_together:
        return "", ""
    return f", (row_number() OVER () - 1) / {n_together} AS part", "GROUP BY part"


def _unpacked(parts: Sequence[Sequence[Any]]) -> Found:
    """Return what was found, of its parts as rows."""
    *_, item_keys, places, distances = parts[0]
    further = map(Further, packing.keys(item_keys), packing.places(places), packing.numbers(distances))
    candidates = packing.together([packing.unpacked(*part[:-4]) for part in parts])
    return Found(candidates, max(part[-4] or 0 for part in parts), list(further))


def _condition(clauses: Clauses) -> str:
    """Return the clauses as a condition, with a parameter for each."""
    return " AND ".join(["tokens && %s::bigint[]"] * len(clauses)) or "true"


def _ranked(index: Index, where: str, order: str, limit: int, columns: str = _NARROW) -> str:
    """Return the statement that finds for each sketch the `limit` nearest items that meet `where`."""
    return _for_each_sketch(_nearest(index, where, order, limit, columns))


def _for_each_sketch(nearest: str) -> str:
    return f"""
        SELECT query.position, candidate.*
        FROM unnest(%b::varbit[]) WITH ORDINALITY AS query (sketch, position)
        CROSS JOIN LATERAL ({nearest}) AS candidate
        """


def _distance(index: Index) -> str:
    bits = index.sketch_bits
    return f"{sketch_expression(index.encoder_version, bits or 0)} <~> query.sketch::bit({bits})"


def _nearest(index: Index, where: str, order: str, limit: int, columns: str) -> str:
    return (
        f"SELECT {columns} FROM {partition_name(index.id)} WHERE {where}"
        f" ORDER BY {order.format(_distance(index))} LIMIT {limit:d}"
    )


def _rows(
    raw: psycopg.Connection[Any],
    index: Index,
    settings: tuple[str, tuple[str, ...]],
    statement: str,
    parameters: tuple[Any, ...],
) -> list[list[Row]]:
    return [[Row(*row) for row in rows] for rows in _found(raw, index, settings, statement, parameters)]


def _found(
    raw: psycopg.Connection[Any],
    index: Index,
    settings: tuple[str, tuple[str, ...]],
    statement: str,
    parameters: tuple[Any, ...],
) -> list[list[list[Any]]]:
    """Return what a statement finds for each sketch; these are the first of the parameters."""
    sketches, *others = parameters
    with _pipeline(raw, index):
        raw.execute(*settings, prepare=True)
        found = raw.execute(statement, ([VarBit(sketch) for sketch in sketches], index.id, *others), prepare=True)
    answer: list[list[list[Any]]] = [[] for _ in sketches]
    for position, *row in found:
        answer[position - 1].append(row)
    return answer


@contextmanager
def _pipeline(raw: psycopg.Connection[Any], index: Index) -> Iterator[None]:
    """Send the statements of the block in one round trip, and raise `StaleIndex` when `index` is out of date."""
    try:
        with raw.pipeline():
            revision = raw.execute(_REVISION, (index.id,), prepare=True)
            yield
        _check(revision, index)
    except pg.UndefinedTable as error:
        raise StaleIndex from error


def _check(revision: psycopg.Cursor[Any], index: Index) -> None:
    if revision.fetchone() != (index.revision,):
        raise StaleIndex


def _first(cursor: psycopg.Cursor[Any]) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = cursor.fetchone()
    assert row is not None  # noqa: S101 - an aggregate without GROUP BY always has one row
    return row
