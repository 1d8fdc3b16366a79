"""Statements on the chunks of a sealed index, and on the layouts that tell which are in use.

A chunk never changes. Writers add *fresh* chunks, each in the epoch that is open when it is
written. A merge puts what fresh chunks hold into other chunks, deletes them, and makes the next
layout, which opens another epoch. Searches look for fresh chunks from the layout's first epoch on,
so they never walk over what is left of merged ones, however long a snapshot keeps those from being
vacuumed.

A layout passes over an epoch only when nobody can add to this epoch any more. A writer holds the
lock of its epoch until COMMIT, and has seen the epoch open while it held the lock (`share_epoch`).
A merge takes the lock of each closed epoch for a moment (`first_epoch_in_use`), before it reads
(docs/decisions/0130).

Statements that searches send are added to a round trip (`ask_…`); the others go through psycopg
itself, in the transaction of the connection `raw`.
"""

from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

import numpy as np
import psycopg

from app.domain import INT32, Candidates, Joined
from app.store.indexes import StaleIndex
from app.store.pg import packed_rows
from app.store.pg.adapters import ItemKeys
from app.store.pg.adapters import ItemKeys as Names
from app.store.pg.round_trip import Answer, RoundTrip
from app.store.tables import chunk_partition_name, partition_name

Raw: TypeAlias = psycopg.AsyncConnection[Any]

NAME_BYTES = 16
# Searches that began with an older layout have ended by then.
RETENTION_S = 60

_INSERT_BYTES = 16 * 1024 * 1024
_EPOCH_BITS = 32
_INT16 = np.dtype(">i2")

# To read the table from end to end is the one plan that must not be: its rows come and go, and
# statistics tell little about them. The plan is then the same each time.
READ_SETTINGS = (
    "SELECT set_config('enable_seqscan', 'off', true),"
    " set_config('plan_cache_mode', 'force_generic_plan', true)"
)
_NEWEST = """
    SELECT version, generation, encoder_version, open_epoch, first_epoch, pages, sealed_root
    FROM layouts WHERE index_id = %s ORDER BY version DESC LIMIT 1
    """
# Chunks as one row: a row for each would be a message, an allocation and a tuple for each.
_PACKED = (
    "name",
    "int4send(generation)",
    "int2send(encoder_version)",
    "int4send(octet_length(sealed_entries))",
    "sealed_entries",
)


class LayoutRow(NamedTuple):
    """A row of `layouts`; `pages` are names of chunks."""

    version: int
    generation: int
    encoder_version: int
    open_epoch: int
    first_epoch: int
    pages: Sequence[bytes]
    sealed_root: bytes


class ChunkRow(NamedTuple):
    """A row of `chunks`, without what filters need."""

    name: bytes
    generation: int
    encoder_version: int
    sealed_entries: bytes


class ItemRow(NamedTuple):
    """What a merge or a training reads of an item."""

    item_key: bytes
    tag: int | None
    sealed_vector: bytes


class Known(NamedTuple):
    """What a worker knows of an index: the version of the layout, its pages, and fresh chunks."""

    version: int = -1
    pages: Sequence[bytes] = ()
    fresh: Sequence[bytes] = ()


class News(NamedTuple):
    """What one statement tells of an index; all of it was true at the same moment.

    `fresh` names all fresh chunks, and `chunks` are those of them that were not known. `pages` are
    the pages of the layout that were not known. Where the version was known, `layout.pages` and
    `layout.sealed_root` are empty.
    """

    layout: LayoutRow
    fresh: Sequence[bytes]
    chunks: Sequence[ChunkRow]
    pages: Sequence[ChunkRow]


class Rows(NamedTuple):
    """Rows of items with their tags (n,), for a search."""

    candidates: Candidates
    tags: np.ndarray[tuple[int], np.dtype[np.int64]]


class Change(NamedTuple):
    """What a merge or a training changes in one transaction, and the layout that it makes.

    `merged` are fresh chunks that are gone then, `carried` those that stay and move to the epoch
    that opens. `retired` are chunks and pages that the layout no longer uses.
    """

    layout: LayoutRow
    chunks: Sequence[ChunkRow] = ()
    fresh: Sequence[ChunkRow] = ()
    merged: Sequence[bytes] = ()
    carried: Sequence[bytes] = ()
    retired: Sequence[bytes] = ()


# ---------------------------------------------------------------- searches


class NewsAnswer:
    """What `ask_news` tells as soon as its round trip is over."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def read(self) -> News:
        """Return the news. Raises `StaleIndex` when the index has no layout, because it is gone."""
        if not self._answer.rows:
            raise StaleIndex
        return _news(self._answer.one())


class ChunksAnswer:
    """What `ask_chunks` tells as soon as its round trip is over."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def read(self) -> Sequence[ChunkRow]:
        """Return the chunks that are there."""
        return [ChunkRow(*row) for row in self._answer.rows]


class RowsAnswer:
    """What `ask_rows` tells as soon as its round trip is over."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def read(self) -> Rows:
        """Return the rows that are there, in no order."""
        tags, *packed = self._answer.one()
        return Rows(
            packed_rows.unpacked(*packed), np.frombuffer(tags or b"", ">i8").astype(np.int64)
        )


def ask_news(trip: RoundTrip, index_id: UUID, known: Known) -> NewsAnswer:
    """Ask for the layout, for the names of all fresh chunks, and for what is not `known`."""
    return NewsAnswer(trip.execute(*_ask(index_id, known)))


def ask_chunks(trip: RoundTrip, index_id: UUID, names: Sequence[bytes]) -> ChunksAnswer:
    """Ask for the chunks called `names`; one that is missing has been replaced meanwhile."""
    statement = f"""
        SELECT name, generation, encoder_version, sealed_entries
        FROM {chunk_partition_name(index_id)} WHERE index_id = %s AND name = ANY (%s)
        """
    return ChunksAnswer(trip.execute(statement, (index_id, Names(names))))


def ask_rows(
    trip: RoundTrip, index_id: UUID, item_keys: Sequence[bytes], *, with_metadata: bool = False
) -> RowsAnswer:
    """Ask for the rows of the items with these keys."""
    columns = packed_rows.candidates(with_metadata=with_metadata)
    # No entry has the tag of a row that has none.
    statement = f"""
        SELECT string_agg(int8send(coalesce(tag, 0)), ''), {columns}
        FROM {partition_name(index_id)} WHERE index_id = %s AND item_key = ANY (%s)
        """
    return RowsAnswer(trip.execute(statement, (index_id, ItemKeys(item_keys))))


# ---------------------------------------------------------------- writers


async def share_epoch(raw: Raw, index_id: UUID, remembered: int) -> int:
    """Return the epoch that is open; no layout passes over it until the transaction ends.

    `remembered` is the epoch that was open when the caller last looked. Raises `StaleIndex` when
    the index is gone.
    """
    while True:
        is_shared = await _one(
            raw, "SELECT pg_try_advisory_xact_lock_shared(%s)", _epoch_lock(index_id, remembered)
        )
        # A statement of its own: it sees what was committed before the lock was given.
        epoch: int = (await newest(raw, index_id)).open_epoch
        if is_shared and epoch == remembered:
            return epoch
        remembered = epoch


async def add_fresh(raw: Raw, index_id: UUID, epoch: int, chunks: Sequence[ChunkRow]) -> None:
    """Add fresh chunks to the `epoch` that the transaction shares."""
    await _insert(raw, index_id, epoch, chunks)


# ---------------------------------------------------------------- merges and trainings


async def newest(raw: Raw, index_id: UUID) -> LayoutRow:
    """Return the layout as it is now. Raises `StaleIndex` when the index is gone."""
    cursor = await raw.execute(_NEWEST, (index_id,))
    row = await cursor.fetchone()
    if row is None:
        raise StaleIndex
    return LayoutRow(*row)


async def first_epoch_in_use(raw: Raw, index_id: UUID, layout: LayoutRow) -> int:
    """Return the first epoch, from that of `layout` on, to which somebody may still add chunks.

    To be called in a transaction of its own, before the one that reads the chunks.
    """
    for epoch in range(layout.first_epoch, layout.open_epoch):
        lock = _epoch_lock(index_id, epoch)
        if not await _one(raw, "SELECT pg_try_advisory_xact_lock(%s)", lock):
            return epoch
    return layout.open_epoch


async def own_layout(raw: Raw, index_id: UUID) -> bool:
    """Keep others from changing the layout until the transaction ends; false when one is at it."""
    return bool(await _one(raw, "SELECT pg_try_advisory_xact_lock(%s)", _layout_lock(index_id)))


async def wait_for_layout(raw: Raw, index_id: UUID) -> None:
    """Wait for a merge that is at work, and keep others out until the transaction ends."""
    await raw.execute("SELECT pg_advisory_xact_lock(%s)", (_layout_lock(index_id),))


async def news(raw: Raw, index_id: UUID, known: Known) -> News:
    """Return what `ask_news` asks for, as the transaction sees it. Raises `StaleIndex`."""
    cursor = await raw.execute(*_ask(index_id, known))
    row = await cursor.fetchone()
    if row is None:
        raise StaleIndex
    return _news(row)


async def by_names(raw: Raw, index_id: UUID, names: Sequence[bytes]) -> list[ChunkRow]:
    """Return the chunks called `names`."""
    cursor = await raw.execute(
        f"""
        SELECT name, generation, encoder_version, sealed_entries
        FROM {chunk_partition_name(index_id)} WHERE index_id = %s AND name = ANY (%s)
        """,
        (index_id, Names(names)),
    )
    return [ChunkRow(*row) for row in await cursor.fetchall()]


async def tags(raw: Raw, index_id: UUID, item_keys: Collection[bytes]) -> dict[bytes, int | None]:
    """Return the tag of each item among `item_keys` that is stored, looked up in their order."""
    cursor = await raw.execute(
        f"SELECT item_key, tag FROM {partition_name(index_id)}"
        " WHERE index_id = %s AND item_key = ANY (%s)",
        (index_id, ItemKeys(sorted(item_keys))),
    )
    return dict(await cursor.fetchall())


async def vectors(raw: Raw, index_id: UUID, item_keys: Collection[bytes]) -> list[ItemRow]:
    """Return the rows of the items among `item_keys` that are stored, looked up in their order."""
    cursor = await raw.execute(
        f"SELECT item_key, tag, sealed_vector FROM {partition_name(index_id)}"
        " WHERE index_id = %s AND item_key = ANY (%s)",
        (index_id, ItemKeys(sorted(item_keys))),
    )
    return [ItemRow(*row) for row in await cursor.fetchall()]


async def all_vectors(raw: Raw, index_id: UUID, at_a_time: int) -> AsyncIterator[list[ItemRow]]:
    """Yield the rows of all items, `at_a_time`, as of one moment."""
    async with raw.cursor("all_vectors") as cursor:
        await cursor.execute(
            f"SELECT item_key, tag, sealed_vector FROM {partition_name(index_id)}"
            " WHERE index_id = %s",
            (index_id,),
            binary=True,
        )
        while rows := await cursor.fetchmany(at_a_time):
            yield [ItemRow(*row) for row in rows]


async def add(raw: Raw, index_id: UUID, chunks: Sequence[ChunkRow]) -> None:
    """Add chunks that no layout uses yet."""
    await _insert(raw, index_id, None, chunks)


async def drop_unused(raw: Raw, index_id: UUID, layout: LayoutRow) -> None:
    """Delete chunks that a training has left which did not come to its end."""
    await raw.execute(
        f"DELETE FROM {chunk_partition_name(index_id)}"
        " WHERE index_id = %s AND epoch IS NULL AND generation > %s",
        (index_id, layout.generation),
    )


async def change(raw: Raw, index_id: UUID, change: Change) -> None:
    """Write a change of the layout. Raises `UniqueViolation` when another came first."""
    table, layout = chunk_partition_name(index_id), change.layout
    await raw.execute(
        """
        INSERT INTO layouts (index_id, version, generation, encoder_version, open_epoch,
            first_epoch, pages, sealed_root, retired)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
        """,
        (index_id, *layout[:5], Names(layout.pages), layout.sealed_root, Names(change.retired)),
    )
    if change.merged:
        await raw.execute(
            f"DELETE FROM {table} WHERE index_id = %s AND name = ANY (%s)",
            (index_id, Names(change.merged)),
        )
    if change.carried:
        await raw.execute(
            f"UPDATE {table} SET epoch = %s WHERE index_id = %s AND name = ANY (%s)",
            (layout.open_epoch, index_id, Names(change.carried)),
        )
    await _insert(raw, index_id, None, change.chunks)
    await _insert(raw, index_id, layout.open_epoch, change.fresh)


async def sweep(raw: Raw, index_id: UUID) -> None:
    """Delete what was retired more than a minute ago, and the layouts of before."""
    await raw.execute(
        f"""
        WITH past AS (
            SELECT version, retired FROM layouts
            WHERE index_id = %(id)s
                AND created_at < clock_timestamp() - make_interval(secs => %(age)s)
        ), deleted AS (
            DELETE FROM {chunk_partition_name(index_id)}
            WHERE index_id = %(id)s AND name IN (SELECT unnest(retired) FROM past)
        )
        DELETE FROM layouts USING past
        WHERE index_id = %(id)s AND layouts.version = past.version
            AND layouts.version < (SELECT max(version) FROM layouts WHERE index_id = %(id)s)
        """,
        {"id": index_id, "age": RETENTION_S},
    )


async def _insert(raw: Raw, index_id: UUID, epoch: int | None, chunks: Sequence[ChunkRow]) -> None:
    for part in _portions(chunks):
        names, generations, versions, sealed = map(list, zip(*part, strict=True))
        await raw.execute(
            f"""
            INSERT INTO {chunk_partition_name(index_id)}
                (index_id, epoch, name, generation, encoder_version, sealed_entries)
            SELECT %s, %s, *
            FROM unnest(%s::bytea[], %s::integer[], %s::smallint[], %b::bytea[])
            """,
            (index_id, epoch, Names(names), generations, versions, sealed),
        )


def _portions(chunks: Sequence[ChunkRow]) -> Iterator[Sequence[ChunkRow]]:
    """Yield `chunks` in parts that each make a statement of some megabytes."""
    start, n_bytes = 0, 0
    for number, chunk in enumerate(chunks, 1):
        n_bytes += len(chunk.sealed_entries)
        if n_bytes >= _INSERT_BYTES or number == len(chunks):
            yield chunks[start:number]
            start, n_bytes = number, 0


def _ask(index_id: UUID, known: Known) -> tuple[str, tuple[Any, ...]]:
    """Return the statement that asks for news, and its parameters."""
    table = chunk_partition_name(index_id)
    statement = f"""
        SELECT version, layout.generation, layout.encoder_version, open_epoch, first_epoch,
            CASE WHEN is_new THEN (SELECT string_agg(page, '') FROM unnest(pages) AS page) END,
            CASE WHEN is_new THEN sealed_root END, fresh.*, page.*
        FROM (SELECT *, version <> %s AS is_new FROM ({_NEWEST}) AS newest) AS layout
        CROSS JOIN LATERAL (
            SELECT string_agg(name, ''), {_packed("is_new")}
            FROM (
                SELECT *, name <> ALL (%s) AS is_new FROM {table}
                WHERE index_id = %s AND epoch >= first_epoch
            ) AS chunk
        ) AS fresh
        LEFT JOIN LATERAL (
            SELECT {_packed()} FROM {table}
            WHERE index_id = %s AND name = ANY (layout.pages) AND name <> ALL (%s)
        ) AS page ON is_new
        """
    fresh, pages = Names(known.fresh), Names(known.pages)
    return statement, (known.version, index_id, fresh, index_id, index_id, pages)


def _news(row: Sequence[Any]) -> News:
    """Return what a row of the statement tells."""
    layout = LayoutRow._make((*row[:5], _names(row[5]), row[6] or b""))
    n_packed = len(_PACKED)
    fresh, packed_chunks, packed_pages = row[7], row[8 : 8 + n_packed], row[8 + n_packed :]
    return News(layout, _names(fresh), _chunk_rows(*packed_chunks), _chunk_rows(*packed_pages))


async def _one(raw: Raw, statement: str, value: Any) -> Any:
    cursor = await raw.execute(statement, (value,))
    row = await cursor.fetchone()
    assert row is not None  # noqa: S101 - a function has a value
    return row[0]


def _layout_lock(index_id: UUID) -> int:
    """Return the advisory lock of the layout: bits of the random id that no other lock has."""
    return int.from_bytes(index_id.bytes[8:], "big", signed=True)


def _epoch_lock(index_id: UUID, epoch: int) -> int:
    """Return the advisory lock of an epoch: half of it says the index, half of it the epoch."""
    lock = index_id.bytes[8:12] + (epoch % (1 << _EPOCH_BITS)).to_bytes(_EPOCH_BITS // 8, "big")
    return int.from_bytes(lock, "big", signed=True)


def _packed(condition: str = "true") -> str:
    """Return the columns that `_chunk_rows` reads, of the chunks that meet `condition`."""
    return ", ".join(f"string_agg({column}, '') FILTER (WHERE {condition})" for column in _PACKED)


def _names(joined: bytes | None) -> list[bytes]:
    return packed_rows.keys(joined)


def _chunk_rows(
    names: bytes | None,
    generations: bytes | None,
    versions: bytes | None,
    lengths: bytes | None,
    values: bytes | None,
) -> list[ChunkRow]:
    """Return the chunks of a packed row; of none, all is NULL."""
    columns = (
        _names(names),
        np.frombuffer(generations or b"", INT32).tolist(),
        np.frombuffer(versions or b"", _INT16).tolist(),
        Joined(values or b"", lengths or b""),
    )
    return list(map(ChunkRow, *columns))
