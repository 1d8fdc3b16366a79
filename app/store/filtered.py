"""Statements on the items that a filter may match, as far as the blind index can tell.

A filter comes as clauses: an item can only match if it has, for each clause, one of its tokens. That is necessary, not
sufficient: the service checks the opened metadata of whatever is found here. Like those of `candidates`, these
functions block.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import psycopg
from psycopg import errors as pg

from app.domain import Index
from app.store.candidates import SCAN_SETTINGS
from app.store.engine import Tokens, VarBit
from app.store.indexes import StaleIndex
from app.store.partitions import in_generation, sketch_expression
from app.store.tables import partition_name

Clauses: TypeAlias = Sequence[Tokens]

_ROW_CHUNK = 10_000
# Some hundred rows: enough to tell one in ten from one in a hundred, and read in less than a millisecond.
_SAMPLE_PAGES = 100
# Every row of the sample is compared with every token: with more than these, there are fewer rows.
_SAMPLE_TOKENS = 20

# There are no statistics of tokens, so the planner does not know what the GIN index saves.
_GIN_SETTINGS = "SELECT set_config('enable_seqscan', 'off', true)"
_NARROW = "item_key, sealed_metadata"
_FULL = "item_key, sealed_id, sealed_vector, sealed_metadata"
_REVISION = "SELECT revision FROM indexes WHERE id = %s"


class Row(NamedTuple):
    """An item that may match."""

    item_key: bytes
    sealed_metadata: bytes | None


class FullRow(NamedTuple):
    """An item with what an answer is made of."""

    item_key: bytes
    sealed_id: bytes
    sealed_vector: bytes
    sealed_metadata: bytes | None


class Estimate(NamedTuple):
    """How many items an index has, and by a small sample the share of them that meets the clauses."""

    n_items: int
    share: float


class Reach(NamedTuple):
    """How far a scan of sketches goes: how many items it finds, and how many IVF lists it reads first."""

    limit: int
    n_probes: int


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


def full_by_sketch(
    raw: psycopg.Connection[Any], index: Index, sketches: Sequence[bytes], clauses: Clauses, reach: Reach
) -> list[list[FullRow]]:
    """Return what `by_sketch` does, with all that an answer is made of."""
    where = f"index_id = %s AND {in_generation(index.generation)} AND {_condition(clauses)}"
    statement = _ranked(index, where, "{}", reach.limit, _FULL)
    found = _found(raw, index, (SCAN_SETTINGS, (str(reach.n_probes),)), statement, (sketches, *clauses))
    return [[FullRow(*row) for row in rows] for rows in found]


def full_by_tokens(
    raw: psycopg.Connection[Any], index: Index, sketches: Sequence[bytes], clauses: Clauses, *, limit: int
) -> list[list[FullRow]]:
    """Return what `by_tokens` does, with all that an answer is made of, in no order."""
    found = _found(raw, index, (_GIN_SETTINGS, ()), _full_by_tokens(index, clauses, limit), (sketches, *clauses))
    return [[FullRow(*row) for row in rows] for rows in found]


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


def by_keys(raw: psycopg.Connection[Any], index: Index, item_keys: Sequence[bytes]) -> dict[bytes, FullRow]:
    """Return the stored items among `item_keys`. Raises `StaleIndex`."""
    statement = (
        f"SELECT item_key, sealed_id, sealed_vector, sealed_metadata FROM {partition_name(index.id)}"
        " WHERE index_id = %s AND item_key = ANY(%s)"
    )
    with _pipeline(raw, index):
        found = raw.execute(statement, (index.id, list(item_keys)), prepare=True)
    return {row[0]: FullRow(*row) for row in found}


def explain(
    raw: psycopg.Connection[Any], index: Index, sketches: Sequence[bytes], clauses: Clauses, *, uses_tokens: bool
) -> str:
    """Return PostgreSQL's plan for `full_by_tokens`, which holds that of `by_tokens`, or for `by_sketch`."""
    where = f"index_id = %s AND {in_generation(index.generation)} AND {_condition(clauses)}"
    statement = _full_by_tokens(index, clauses, 10) if uses_tokens else _ranked(index, where, "{}", 10)
    with raw.pipeline():
        raw.execute(*(_GIN_SETTINGS, ()) if uses_tokens else (SCAN_SETTINGS, ("1",)))
        values = ([VarBit(sketch) for sketch in sketches], index.id, *clauses)
        plan = raw.execute(f"EXPLAIN {statement}", values)
    return "\n".join(row[0] for row in plan)


def _by_tokens(index: Index, clauses: Clauses, limit: int) -> str:
    # With `index_id = …` the planner might read the whole partition by its primary key, of which that is the first
    # column. The sum keeps it from the ivfflat index.
    return _ranked(index, f"index_id IS NOT DISTINCT FROM %s AND {_condition(clauses)}", "({}) + 0", limit)


def _full_by_tokens(index: Index, clauses: Clauses, limit: int) -> str:
    # What is sorted are places in the table; the wide columns are read for those that are left.
    where = f"index_id IS NOT DISTINCT FROM %s AND {_condition(clauses)}"
    name, nearest = partition_name(index.id), _nearest(index, where, "({}) + 0", limit, "ctid AS place")
    return _for_each_sketch(f"SELECT {_FULL} FROM ({nearest}) AS nearest JOIN {name} AS item ON item.ctid = place")


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


def _nearest(index: Index, where: str, order: str, limit: int, columns: str) -> str:
    bits = index.sketch_bits
    distance = f"{sketch_expression(index.encoder_version, bits or 0)} <~> query.sketch::bit({bits})"
    return (
        f"SELECT {columns} FROM {partition_name(index.id)} WHERE {where}"
        f" ORDER BY {order.format(distance)} LIMIT {limit:d}"
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
