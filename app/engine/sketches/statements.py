"""What statements that look for candidates are made of, and how they are sent.

A filter comes as clauses: an item can only match if it has, for each clause, one of its tokens.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from psycopg import errors as pg

from app.domain import Index
from app.store.indexes import StaleIndex
from app.store.partitions import sketch_expression
from app.store.pg.adapters import Tokens, VarBit
from app.store.pg.connection import Connection
from app.store.pg.round_trip import RoundTrip
from app.store.tables import partition_name

Clauses: TypeAlias = Sequence[Tokens]

# There are no statistics of tokens, so the planner does not know what the GIN index saves.
GIN_SETTINGS = "SELECT set_config('enable_seqscan', 'off', true)"
REVISION = "SELECT revision FROM indexes WHERE id = %s"


class Reach(NamedTuple):
    """How far a search goes: items it finds, IVF lists it reads first, or keys of those that come next."""

    limit: int
    n_probes: int = 0
    n_further: int = 0


def clauses_met(clauses: Clauses) -> str:
    """Return the clauses as a condition, with a parameter for each."""
    return " AND ".join(["tokens && %s::bigint[]"] * len(clauses)) or "true"


def distance(index: Index) -> str:
    """Return the Hamming distance of an item's sketch from that of the query."""
    bits = index.sketch_bits
    return f"{sketch_expression(index.encoder_version, bits or 0)} <~> query.sketch::bit({bits})"


def nearest(index: Index, where: str, order: str, limit: int, columns: str) -> str:
    """Return the statement that finds the `limit` items nearest to a sketch that meet `where`.

    `order` makes of the distance what is sorted by: as it is, it is the order of the ivfflat index.
    """
    return (
        f"SELECT {columns} FROM {partition_name(index.id)} WHERE {where}"
        f" ORDER BY {order.format(distance(index))} LIMIT {limit:d}"
    )


def for_each_sketch(nearest: str) -> str:
    """Return the statement that repeats `nearest` for each sketch of its first parameter, with the sketch's number."""
    return f"""
        SELECT query.position, candidate.*
        FROM unnest(%b::varbit[]) WITH ORDINALITY AS query (sketch, position)
        CROSS JOIN LATERAL ({nearest}) AS candidate
        """


async def found_for_each(
    raw: Connection,
    index: Index,
    settings: tuple[str, tuple[str, ...]],
    statement: str,
    parameters: tuple[Any, ...],
) -> list[list[list[Any]]]:
    """Return what a statement finds for each sketch; these are the first of the parameters. Raises `StaleIndex`."""
    sketches, *others = parameters
    async with IndexTrip(raw, index) as trip:
        trip.execute(*settings)
        found = trip.execute(
            statement, ([VarBit(sketch) for sketch in sketches], index.id, *others)
        )
    answer: list[list[list[Any]]] = [[] for _ in sketches]
    for position, *row in found.rows:
        answer[position - 1].append(row)
    return answer


class IndexTrip(RoundTrip):
    """A round trip to the items of `index`. Raises `StaleIndex` when that is no longer the row as it is now."""

    def __init__(self, raw: Connection, index: Index) -> None:
        super().__init__(raw)
        self._index = index
        self._revision = self.execute(REVISION, (index.id,))

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            await super().__aexit__(kind)
        except pg.UndefinedTable as error:
            raise StaleIndex from error
        if kind is None:
            check_revision(self._revision.rows, self._index)


def check_revision(rows: Sequence[tuple[Any, ...]], index: Index) -> None:
    """Raise `StaleIndex` unless `rows`, the answer to `REVISION`, are that of `index`."""
    if list(rows) != [(index.revision,)]:
        raise StaleIndex
