"""The statements that find candidates by their sketches: their text, and what comes back.

A filter comes as clauses: an item can only match if it has, for each clause, one of its tokens.
Every statement finds the nearest of each of several queries, and brings them as one row a query.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from app.domain import Candidates, Index
from app.engine.sketches.bound import Hammings
from app.store.partitions import in_generation, sketch_expression
from app.store.pg import packed_rows
from app.store.pg.adapters import Tokens, VarBit
from app.store.tables import partition_name

Clauses: TypeAlias = Sequence[Tokens]

# SET takes no parameters; with is_local the settings end with the transaction. Forbidden to sort,
# the planner uses the ivfflat index whatever its statistics say, for no other path has this order.
# So it need not plan each time. A limit of the role on the lists that are read would make answers
# incomplete.
LIST_SETTINGS = (
    "SELECT set_config('ivfflat.probes', %s, true), set_config('enable_sort', 'off', true),"
    " set_config('ivfflat.iterative_scan', 'relaxed_order', true),"
    " set_config('ivfflat.max_probes', '32768', true),"
    " set_config('plan_cache_mode', 'force_generic_plan', true)"
)
# There are no statistics of tokens, so the planner does not know what the GIN index saves.
GIN_SETTINGS = "SELECT set_config('enable_seqscan', 'off', true)"

N_CHANGES = "SELECT coalesce(sum(n_changes), 0)::bigint FROM item_counts WHERE index_id = %s"

# The planner might read the whole partition by its primary key, of which `index_id` is the first
# column: this condition no index can answer.
_IN_INDEX = "index_id IS NOT DISTINCT FROM %s"
# Before a bit string's bytes comes its length.
_BIT_HEADER_BYTES = 4


class Reach(NamedTuple):
    """The Hamming distances between which a look reads, and how many candidates at most."""

    nearest: int
    farthest: int
    n_candidates: int


class Seen(NamedTuple):
    """What a look has found for a query: items to open, and all distances up to its limit."""

    rows: Candidates
    hammings: Hammings


class Places(NamedTuple):
    """Items in the order of their sketches: keys and places in the table, and Hamming distances."""

    item_keys: Sequence[bytes]
    places: Sequence[bytes]
    hammings: Hammings


class Everything(NamedTuple):
    """All items that meet some clauses: keys and places, each joined to one value, and sketches."""

    # The number of changes to the index's items until then.
    n_changes: int
    item_keys: bytes
    places: bytes
    sketches: np.ndarray[tuple[int, int], np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True)
class Table:
    """The items of one index, as statements name them."""

    index: Index
    sketch_bits: int
    dimension: int

    @property
    def name(self) -> str:
        """The partition."""
        return partition_name(self.index.id)

    @property
    def sketch(self) -> str:
        """The sketch of an item, as the ivfflat index has it."""
        return sketch_expression(self.index.encoder_version, self.sketch_bits)

    @property
    def hamming(self) -> str:
        """The Hamming distance of an item's sketch from that of the query."""
        return f"{self.sketch} <~> query.sketch::bit({self.sketch_bits})"

    @property
    def in_lists(self) -> str:
        """What is true of every item that the ivfflat index of this generation holds."""
        return f"index_id = %s AND {in_generation(self.index.generation)}"


def clauses_met(clauses: Clauses) -> str:
    """Return the clauses as a condition, with a parameter for each."""
    return " AND ".join(["tokens && %s::bigint[]"] * len(clauses)) or "true"


def by_lists(table: Table, clauses: Clauses | None, most: int) -> str:
    """Return the statement that finds candidates in the ivfflat index, with metadata for a filter.

    The scan goes on through the lists until it has found as many as it was asked for: when it
    returns fewer, these are all.
    """
    where = f"{table.in_lists} AND {clauses_met(clauses or ())}"
    part, group = packed_rows.in_parts(table.dimension, most)
    columns = packed_rows.candidates("hamming >= query.nearest", with_metadata=clauses is not None)
    return for_each(
        f"""
        SELECT {columns}, string_agg(int4send(hamming::integer), '') FROM (
            SELECT *{part} FROM (
                SELECT {packed_rows.COLUMNS}, {table.hamming} AS hamming FROM {table.name}
                WHERE {where} ORDER BY {table.hamming} LIMIT %s
            ) AS scanned
        ) AS numbered WHERE hamming <= query.farthest {group}
        """
    )


def by_tokens(table: Table, clauses: Clauses, most: int) -> str:
    """Return the statement that finds the places of the nearest items that have the tokens.

    All that have them are found in the GIN index, then sorted by sketch: good when they are few.
    """
    where = f"{_IN_INDEX} AND {clauses_met(clauses)}"
    return for_each(_places(table, where, most))


def among(table: Table, most: int) -> str:
    """Return the statement that finds the places of the nearest of some item keys."""
    return for_each(_places(table, "index_id = %s AND item_key = ANY(%s)", most))


def peeked(table: Table, clauses: Clauses, most: int, *, uses_tokens: bool) -> str:
    """Return the statement that finds the metadata of the nearest items that may match."""
    where = _IN_INDEX if uses_tokens else table.in_lists
    order = f"({table.hamming}) + 0" if uses_tokens else table.hamming
    return for_each(
        f"""
        SELECT {packed_rows.KEYS_AND_METADATA} FROM (
            SELECT item_key, sealed_metadata FROM {table.name}
            WHERE {where} AND {clauses_met(clauses)} ORDER BY {order} LIMIT {most:d}
        ) AS nearest
        """
    )


def at_places(table: Table) -> str:
    """Return the statement that reads items at their places in the table."""
    return f"SELECT {packed_rows.CANDIDATES_AND_METADATA} FROM {table.name} WHERE ctid = ANY(%s)"


def by_keys(table: Table) -> str:
    """Return the statement that reads items by their keys."""
    return (
        f"SELECT {packed_rows.CANDIDATES_AND_METADATA} FROM {table.name}"
        " WHERE index_id = %s AND item_key = ANY(%s)"
    )


def everything(table: Table, clauses: Clauses, most: int) -> str:
    """Return the statement that finds all items that meet clauses, or one more than `most`."""
    return f"""
        SELECT {packed_rows.KEYS}, string_agg(tidsend(place), ''),
            string_agg(bit_send(sketch), ''), count(*)
        FROM (
            SELECT item_key, ctid AS place, {table.sketch} AS sketch FROM {table.name}
            WHERE {_IN_INDEX} AND {clauses_met(clauses)} AND {table.sketch} IS NOT NULL
            LIMIT {most + 1:d}
        ) AS met
        """


def all_rows(table: Table, clauses: Clauses) -> str:
    """Return the statement that reads keys and metadata of all items that meet the clauses."""
    return (
        f"SELECT item_key, sealed_metadata FROM {table.name}"
        f" WHERE {_IN_INDEX} AND {clauses_met(clauses)}"
    )


def sample(table: Table, clauses: Clauses, n_pages: int) -> str:
    """Return the statement that counts in some pages the items, and those that meet the clauses."""
    n_bytes = f"greatest(1, pg_relation_size('{table.name}'))"
    return (
        f"SELECT count(*), count(*) FILTER (WHERE {clauses_met(clauses)}) FROM {table.name}"
        f" TABLESAMPLE SYSTEM (least(100, 100 * {n_pages} * 8192.0 / {n_bytes}))"
    )


def for_each(nearest: str) -> str:
    """Return the statement that repeats `nearest` for each query, with the query's number."""
    return f"""
        SELECT query.position, candidate.*
        FROM unnest(%b::varbit[], %b::integer[], %b::integer[])
            WITH ORDINALITY AS query (sketch, nearest, farthest, position)
        CROSS JOIN LATERAL ({nearest}) AS candidate
        """


def queries(sketches: Sequence[bytes], reaches: Sequence[Reach]) -> tuple[Any, Any, Any]:
    """Return the first parameters of a statement that `for_each` has made."""
    return (
        [VarBit(sketch) for sketch in sketches],
        [reach.nearest for reach in reaches],
        [reach.farthest for reach in reaches],
    )


def grouped(rows: Sequence[tuple[Any, ...]], n_queries: int) -> list[list[tuple[Any, ...]]]:
    """Return what a statement for each of `n_queries` has found, without the query's number."""
    answer: list[list[tuple[Any, ...]]] = [[] for _ in range(n_queries)]
    for position, *row in rows:
        answer[position - 1].append(tuple(row))
    return answer


def seen(parts: Sequence[tuple[Any, ...]]) -> Seen:
    """Return what `by_lists` has found for a query."""
    rows = packed_rows.together([packed_rows.unpacked(*part[:-1]) for part in parts])
    hammings = packed_rows.numbers(b"".join(part[-1] or b"" for part in parts))
    return Seen(rows, np.sort(hammings.astype(np.int32)))


def placed(parts: Sequence[tuple[Any, ...]]) -> Places:
    """Return what `by_tokens` or `among` has found for a query."""
    ((item_keys, places, hammings),) = parts
    numbers = packed_rows.numbers(hammings).astype(np.int32)
    return Places(packed_rows.keys(item_keys), packed_rows.places(places), numbers)


def all_of(row: tuple[Any, ...], n_changes: int, most: int) -> Everything | None:
    """Return what `everything` has found; None when there are none, or more than `most`."""
    item_keys, places, sketches, n_items = row
    if not 0 < n_items <= most:
        return None
    bits = np.frombuffer(sketches, np.uint8).reshape(n_items, -1)[:, _BIT_HEADER_BYTES:]
    return Everything(n_changes, item_keys, places, bits)


def _places(table: Table, where: str, most: int) -> str:
    # The sum keeps the planner from the ivfflat index.
    return f"""
        SELECT {packed_rows.KEYS}, string_agg(tidsend(place), ''),
            string_agg(int4send(hamming::integer), '')
        FROM (
            SELECT item_key, ctid AS place, ({table.hamming}) + 0 AS hamming FROM {table.name}
            WHERE {where} ORDER BY ({table.hamming}) + 0 LIMIT {most:d}
        ) AS nearest
        """
