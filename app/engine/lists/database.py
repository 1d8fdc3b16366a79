"""The chunks of one index in PostgreSQL, as merges and builds see them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from uuid import UUID

import numpy as np
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.domain import Matrix
from app.engine.keyed import KeyedIndex, Shape
from app.engine.lists.building import Rows
from app.engine.lists.merging import Tagged
from app.engine.opening import chunk_items, open_rows
from app.store import chunks, indexes
from app.store.chunks import Change, ChunkRow, ItemRow, Known, News, Raw
from app.store.pg.engine import driver

Answer = TypeVar("Answer")


async def in_thread(work: Callable[[], Answer]) -> Answer:
    """Return what `work` returns in a thread."""
    return await asyncio.to_thread(work)


@dataclass(frozen=True, slots=True)
class Transaction:
    """A transaction on one index: a `Snapshot` for merges and builds."""

    connection: AsyncConnection
    raw: Raw
    database: "Database"

    @property
    def index_id(self) -> UUID:
        """The id of the index."""
        return self.database.keyed.index.id

    async def own_layout(self) -> bool:
        """Keep others from changing the layout; false when somebody is at it."""
        return await chunks.own_layout(self.raw, self.index_id)

    async def news(self, known: Known) -> News:
        """Return the layout, and what of it and of the fresh chunks is not known."""
        return await chunks.news(self.raw, self.index_id, known)

    async def by_names(self, names: Sequence[bytes]) -> Sequence[ChunkRow]:
        """Return the chunks called `names`."""
        return await chunks.by_names(self.raw, self.index_id, names)

    async def tags(self, item_keys: Collection[bytes]) -> Mapping[bytes, int | None]:
        """Return the tag of each item among `item_keys` that is stored."""
        return await chunks.tags(self.raw, self.index_id, item_keys)

    async def vectors(self, item_keys: Collection[bytes]) -> Mapping[bytes, Tagged]:
        """Return tag and vector of each item among `item_keys` that is stored."""
        rows = await chunks.vectors(self.raw, self.index_id, item_keys)
        vectors = await in_thread(lambda: self.database.opened(rows))
        tagged = map(Tagged, [row.tag for row in rows], vectors)
        return dict(zip([row.item_key for row in rows], tagged, strict=True))

    async def change(self, change: Change) -> None:
        """Write the change of the layout."""
        await chunks.change(self.raw, self.index_id, change)


@dataclass(frozen=True, slots=True)
class Database:
    """One index in PostgreSQL, whose lists can be merged and built anew by who has its keys."""

    engine: AsyncEngine
    keyed: KeyedIndex
    shape: Shape

    async def first_epoch_in_use(self) -> int:
        """Return the first epoch to which somebody may still add chunks."""
        async with self.engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            async with driver(connection) as raw:
                index_id = self.keyed.index.id
                layout = await chunks.newest(raw, index_id)
                return await chunks.first_epoch_in_use(raw, index_id, layout)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Transaction]:
        """Begin a transaction that sees one moment."""
        async with self._transaction("REPEATABLE READ") as transaction:
            yield transaction

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[Transaction]:
        """Begin a transaction while which nobody writes items or changes the layout."""
        async with self._transaction("READ COMMITTED") as transaction:
            await chunks.wait_for_layout(transaction.raw, transaction.index_id)
            await indexes.own_encoder(transaction.connection, transaction.index_id)
            yield transaction

    async def rows(self) -> AsyncIterator[Rows]:
        """Yield all items, some thousands at a time, as of one moment."""
        at_a_time = chunk_items(self.shape.dimension)
        async with self._transaction("READ COMMITTED") as transaction:
            rows = chunks.all_vectors(transaction.raw, transaction.index_id, at_a_time)
            async for part in rows:
                yield await in_thread(partial(self._as_columns, part))

    async def add(self, rows: Sequence[ChunkRow]) -> None:
        """Add chunks that no layout uses yet."""
        async with self._transaction("READ COMMITTED") as transaction:
            await chunks.add(transaction.raw, transaction.index_id, rows)

    def opened(self, rows: Sequence[ItemRow]) -> Matrix:
        """Return the vectors (n, d) of `rows`, in the numbers of the index."""
        item_keys, sealed = [row.item_key for row in rows], [row.sealed_vector for row in rows]
        vectors = open_rows(self.keyed, self.shape, item_keys, sealed)
        return vectors.astype(self.shape.dtype, copy=False)

    def _as_columns(self, rows: Sequence[ItemRow]) -> Rows:
        # A row that was never written by this kind of index has no tag, and no entry yet.
        tagged = [row for row in rows if row.tag is not None]
        tags = np.array([row.tag for row in tagged], np.int64)
        return Rows([row.item_key for row in tagged], tags, self.opened(tagged))

    @asynccontextmanager
    async def _transaction(self, isolation_level: str) -> AsyncIterator[Transaction]:
        async with self.engine.connect() as connection:
            await connection.execution_options(isolation_level=isolation_level)
            async with connection.begin(), driver(connection) as raw:
                yield Transaction(connection, raw, self)
