"""Use cases of items: upsert, query, get, delete, list, count."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app import errors, filters, store
from app.crypto import aead, keys, tokens
from app.domain import (
    Index,
    IndexAccess,
    Item,
    Match,
    Matrix,
    PackedItems,
    PackedVectors,
    Permission,
    Query,
    StoredItem,
    UpsertOutcome,
)
from app.engine import batch as batches
from app.engine import packed, plan
from app.engine.costs import Ask
from app.engine.keyed import VECTOR_DTYPES, KeyedIndex, Shape, first_shape
from app.engine.kind import Wanted
from app.engine.opening import open_metadata
from app.engine.search import Searcher
from app.engine.sketches.parameters import EncoderParameters
from app.observe.stages import stage, timed
from app.services import audit
from app.services.access import IndexOpener
from app.services.embedding import EmbeddingService
from app.services.training import TrainingService
from app.settings import Settings


class VectorService:
    """What can be done to the items of an index."""

    def __init__(  # noqa: PLR0913, PLR0917 - one for each thing that an item needs on its way
        self,
        engine: AsyncEngine,
        searcher: Searcher,
        opener: IndexOpener,
        training: TrainingService,
        settings: Settings,
        embedding: EmbeddingService,
    ) -> None:
        self._engine = engine
        self._searcher = searcher
        self._opener = opener
        self._training = training
        self._settings = settings
        self._embedding = embedding

    async def upsert(self, access: IndexAccess, items: Sequence[Item]) -> UpsertOutcome:
        """Add or replace items: all of them, durably, or none."""

        async def upsert(opened: KeyedIndex) -> UpsertOutcome:
            whole = await self._embedding.complete(opened.index, items)
            batch = await asyncio.to_thread(
                batches.check, whole, opened.index, self._settings.max_batch_items
            )
            return await self._write(opened, batch, access)

        return await self._opener.with_index(access, upsert, needs=Permission.WRITE)

    async def upsert_packed(self, access: IndexAccess, items: PackedItems) -> UpsertOutcome:
        """Add or replace items whose vectors came packed: all of them, durably, or none."""

        async def upsert(opened: KeyedIndex) -> UpsertOutcome:
            batch = await asyncio.to_thread(
                packed.check, items, opened.index, self._settings.max_batch_items
            )
            return await self._write(opened, batch, access)

        return await self._opener.with_index(access, upsert, needs=Permission.WRITE)

    async def _write(
        self, opened: KeyedIndex, batch: batches.Batch, access: IndexAccess
    ) -> UpsertOutcome:
        index = opened.index
        shape = opened.shape
        if shape is None:
            shape = await asyncio.to_thread(_first_shape, opened, batch.vectors)
        sealed = await asyncio.to_thread(batches.seal, batch, opened, shape)
        async with stage("sql"), self._engine.begin() as connection:
            await store.indexes.share_encoder(connection, index)
            await store.indexes.check_revision(connection, index)
            if opened.shape is None:
                await _initialise(connection, opened, shape)
            written = await store.items.upsert(connection, index, *sealed)
            await store.indexes.add_to_count(
                connection, index.id, n_items=written.n_new, n_changes=written.n_written
            )
            n_items = (
                0
                if self._settings.auto_train_disabled
                else (await store.indexes.count(connection, index.id))[0]
            )
            await store.audit.record(
                connection, audit.entry(access, "upsert", index.id, n_items=written.n_written)
            )
        return UpsertOutcome(len(batch.ids), await self._training.after_upsert(opened, n_items))

    async def query(self, access: IndexAccess, query: Query) -> list[list[Match]]:
        """Return for each query vector the items nearest to it, nearest first."""

        async def search_index(opened: KeyedIndex) -> list[list[Match]]:
            tree = filters.grammar.parse(query.filters) if query.filters else None
            vectors = _query_matrix(
                await self._embedding.vectorise(opened.index, query), opened.index
            )
            ask = await self._ask(opened, query)
            if opened.shape is None:
                async with stage("sql"), self._engine.begin() as connection:
                    await store.indexes.check_revision(connection, opened.index)
                return [[] for _ in vectors]
            self._training.resume_if_due(opened)
            wanted = Wanted(opened, opened.shape, vectors, ask)
            return await self._searcher.search(wanted, tree, query.include)

        return await self._opener.with_index(access, search_index, needs=Permission.READ)

    async def _ask(self, opened: KeyedIndex, query: Query) -> Ask:
        plan.check(query)
        top_k = query.top_k
        if top_k > self._settings.max_top_k:
            async with stage("sql"), self._engine.begin() as connection:
                n_items, _ = await store.indexes.count(connection, opened.index.id)
            top_k = max(1, min(top_k, n_items))
            if top_k > self._settings.max_top_k:
                raise errors.InvalidInput(f"top_k can be at most {self._settings.max_top_k}")
        return plan.ask(opened, query, top_k, self._settings.target_recall)

    async def get(
        self, access: IndexAccess, ids: Sequence[str], include: frozenset[str]
    ) -> list[StoredItem]:
        """Return the stored items among `ids`, in the order asked for and as often."""

        async def read(opened: KeyedIndex) -> list[StoredItem]:
            item_keys = tokens.item_keys(opened.keys.blind_key, ids)
            async with stage("sql"), self._engine.begin() as connection:
                await store.indexes.check_revision(connection, opened.index)
                rows = await store.items.by_keys(connection, opened.index, item_keys, include)
            return await asyncio.to_thread(
                lambda: [
                    _open_item(opened, item_id, rows[item_key], include)
                    for item_id, item_key in zip(ids, item_keys, strict=True)
                    if item_key in rows
                ]
            )

        return await self._opener.with_index(access, read, needs=Permission.READ)

    async def delete(self, access: IndexAccess, ids: Sequence[str]) -> None:
        """Delete the items among `ids`, all in one transaction."""

        async def delete(opened: KeyedIndex) -> None:
            item_keys = tokens.item_keys(opened.keys.blind_key, ids)
            async with stage("sql"), self._engine.begin() as connection:
                await store.indexes.check_revision(connection, opened.index)
                n_deleted = await store.items.delete(connection, opened.index, item_keys)
                if n_deleted:
                    await store.indexes.add_to_count(
                        connection, opened.index.id, n_items=-n_deleted, n_changes=n_deleted
                    )
                entry = audit.entry(access, "delete_items", opened.index.id, n_items=n_deleted)
                await store.audit.record(connection, entry)

        await self._opener.with_index(access, delete, needs=Permission.WRITE)

    async def ids(self, access: IndexAccess) -> list[str]:
        """Return the ids of all items, in no order."""

        async def read(opened: KeyedIndex) -> list[str]:
            answer: list[str] = []
            async with stage("sql"), self._engine.begin() as connection:
                await store.indexes.check_revision(connection, opened.index)
                async for chunk in store.items.sealed_ids(connection, opened.index):
                    answer += await asyncio.to_thread(_open_ids, opened.keys, chunk)
            return answer

        return await self._opener.with_index(access, read, needs=Permission.READ)

    async def count(self, access: IndexAccess, filtered: Mapping[str, Any] | None = None) -> int:
        """Return the number of items, or of those that match the filter `filtered`."""

        async def read(opened: KeyedIndex) -> int:
            tree = filters.grammar.parse(filtered) if filtered else None
            if tree is not None and opened.shape is not None:
                return await self._searcher.count(opened, opened.shape, tree)
            async with stage("sql"), self._engine.begin() as connection:
                await store.indexes.check_revision(connection, opened.index)
                n_items, _ = await store.indexes.count(connection, opened.index.id)
            return n_items

        return await self._opener.with_index(access, read, needs=Permission.READ)


def _first_shape(opened: KeyedIndex, vectors: Matrix) -> Shape:
    return first_shape(opened, EncoderParameters.fit(0, opened.index.metric, vectors))


async def _initialise(connection: AsyncConnection, opened: KeyedIndex, shape: Shape) -> None:
    """Fix what the first batch decides about an index, in the transaction that stores the batch."""
    parameters = shape.encoder.parameters.to_bytes()
    await store.indexes.initialise(
        connection,
        opened.index,
        dimension=shape.dimension,
        sketch_bits=shape.sketch_bits,
        sealed_encoder=opened.keys.parameters.seal(aead.INDEX_LEVEL, parameters),
    )
    await store.partitions.create_exact_ivf(connection, opened.index.id, shape.sketch_bits)


@timed("parse")
def _query_matrix(query: Query, index: Index) -> Matrix:
    given = (
        packed.unpack(query.vectors, "Query")
        if isinstance(query.vectors, PackedVectors)
        else query.vectors
    )
    if given is None or len(given) == 0:
        if query.contents is not None:
            raise errors.InvalidInput(
                f"Index '{index.name}' has no embedding model: send query_vectors"
            )
        raise errors.InvalidInput("Provide query_vectors or query_contents")
    if index.dimension is None:
        raise errors.InvalidInput(
            f"The dimension of index '{index.name}' is not known before the first upsert"
        )
    vectors = given if isinstance(given, np.ndarray) else batches.to_matrix(given, "Query")
    batches.check_dimension(vectors, index)
    return vectors


def _open_item(
    opened: KeyedIndex, item_id: str, row: store.items.SealedFields, include: frozenset[str]
) -> StoredItem:
    vector = contents = metadata = None
    if "vector" in include and row.sealed_vector is not None:
        dtype = VECTOR_DTYPES[opened.index.storage_precision]
        plain = opened.keys.vectors.open(row.item_key, row.sealed_vector)
        vector = np.frombuffer(plain, dtype=dtype).astype(np.float32)
    if "contents" in include:
        sealed = row.sealed_contents
        contents = (
            "" if sealed is None else opened.keys.contents.open(row.item_key, sealed).decode()
        )
    if "metadata" in include:
        metadata = open_metadata(opened.keys.metadata, row.item_key, row.sealed_metadata)
    return StoredItem(item_id, vector, contents, metadata)


@timed("open")
def _open_ids(index_keys: keys.IndexKeys, rows: Sequence[tuple[bytes, bytes]]) -> list[str]:
    opened = index_keys.ids.open_all(
        (item_key for item_key, _ in rows), (sealed_id for _, sealed_id in rows)
    )
    return [item_id.decode() for item_id in opened]
