"""Use cases of items: upsert, query, get, delete, list, count."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sqlalchemy.ext.asyncio import AsyncConnection

from app import errors, filters, store
from app.crypto import aead, keys, tokens
from app.domain import (
    Index,
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
from app.engine import header, packed, plan
from app.engine.costs import Ask
from app.engine.keyed import VECTOR_DTYPES, KeyedIndex, Shape, first_shape
from app.engine.kind import Wanted
from app.engine.opening import open_metadata
from app.engine.search import Searcher
from app.engine.sketches.parameters import EncoderParameters
from app.observe.stages import stage, timed
from app.services.access import IndexOpener, Use, on_index
from app.services.embedding import EmbeddingService
from app.services.training import TrainingService
from app.settings import Settings


class VectorService:
    """What can be done to the items of an index."""

    def __init__(
        self,
        searcher: Searcher,
        opener: IndexOpener,
        training: TrainingService,
        embedding: EmbeddingService,
        settings: Settings,
    ) -> None:
        self._searcher = searcher
        self._opener = opener
        self._training = training
        self._embedding = embedding
        self._settings = settings

    @on_index(needs=Permission.WRITE)
    async def upsert(self, use: Use, items: Sequence[Item]) -> UpsertOutcome:
        """Add or replace items: all of them, durably, or none."""
        whole = await self._embedding.complete(use.index, items)
        limit = self._settings.max_batch_items
        batch = await asyncio.to_thread(batches.check, whole, use.index, limit)
        return await self._write(use, batch)

    @on_index(needs=Permission.WRITE)
    async def upsert_packed(self, use: Use, items: PackedItems) -> UpsertOutcome:
        """Add or replace items whose vectors came packed: all of them, durably, or none."""
        limit = self._settings.max_batch_items
        batch = await asyncio.to_thread(packed.check, items, use.index, limit)
        return await self._write(use, batch)

    async def _write(self, use: Use, batch: batches.Batch) -> UpsertOutcome:
        keyed, index = use.keyed, use.index
        shape = keyed.shape
        if shape is None:
            shape = await asyncio.to_thread(_first_shape, keyed, batch.vectors)
        sealed = await asyncio.to_thread(batches.seal, batch, keyed, shape)
        async with stage("sql"), use.engine.begin() as connection:
            await store.indexes.share_encoder(connection, index)
            await store.indexes.check_revision(connection, index)
            if keyed.shape is None:
                await _initialise(connection, keyed, shape)
            written = await store.items.upsert(connection, index, *sealed)
            await store.indexes.add_to_count(
                connection, index.id, n_items=written.n_new, n_changes=written.n_written
            )
            n_items = await self._count_for_training(connection, index)
            await use.record(connection, "upsert", written.n_written)
        return UpsertOutcome(len(batch.ids), await self._training.after_upsert(keyed, n_items))

    async def _count_for_training(self, connection: AsyncConnection, index: Index) -> int:
        if self._settings.auto_train_disabled:
            return 0
        n_items, _ = await store.indexes.count(connection, index.id)
        return n_items

    @on_index(needs=Permission.READ)
    async def query(self, use: Use, query: Query) -> list[list[Match]]:
        """Return for each query vector the items nearest to it, nearest first."""
        keyed = use.keyed
        where = filters.grammar.parse(query.filters) if query.filters else None
        vectors = _query_matrix(await self._embedding.vectorise(use.index, query), use.index)
        ask = await self._ask(use, query)
        if keyed.shape is None:
            async with use.transaction():
                return [[] for _ in vectors]
        self._training.resume_if_due(keyed)
        wanted = Wanted(keyed, keyed.shape, vectors, ask)
        return await self._searcher.search(wanted, where, query.include)

    async def _ask(self, use: Use, query: Query) -> Ask:
        plan.check(query)
        top_k, limit = query.top_k, self._settings.max_top_k
        if top_k > limit:
            async with use.transaction() as connection:
                n_items, _ = await store.indexes.count(connection, use.index.id)
            top_k = max(1, min(top_k, n_items))
            if top_k > limit:
                raise errors.InvalidInput(f"top_k can be at most {limit}")
        return plan.ask(use.keyed, query, top_k, self._settings.target_recall)

    @on_index(needs=Permission.READ)
    async def get(self, use: Use, ids: Sequence[str], include: frozenset[str]) -> list[StoredItem]:
        """Return the stored items among `ids`, in the order asked for and as often."""
        item_keys = tokens.item_keys(use.keyed.keys.blind_key, ids)
        async with use.transaction() as connection:
            rows = await store.items.by_keys(connection, use.index, item_keys, include)
        return await asyncio.to_thread(
            lambda: [
                _open_item(use.keyed, item_id, rows[item_key], include)
                for item_id, item_key in zip(ids, item_keys, strict=True)
                if item_key in rows
            ]
        )

    @on_index(needs=Permission.WRITE)
    async def delete(self, use: Use, ids: Sequence[str]) -> None:
        """Delete the items among `ids`, all in one transaction."""
        item_keys = tokens.item_keys(use.keyed.keys.blind_key, ids)
        async with use.transaction() as connection:
            n_deleted = await store.items.delete(connection, use.index, item_keys)
            if n_deleted:
                await store.indexes.add_to_count(
                    connection, use.index.id, n_items=-n_deleted, n_changes=n_deleted
                )
            await use.record(connection, "delete_items", n_deleted)

    @on_index(needs=Permission.READ)
    async def ids(self, use: Use) -> list[str]:
        """Return the ids of all items, in no order."""
        answer: list[str] = []
        async with use.transaction() as connection:
            async for chunk in store.items.sealed_ids(connection, use.index):
                answer += await asyncio.to_thread(_open_ids, use.keyed.keys, chunk)
        return answer

    @on_index(needs=Permission.READ)
    async def count(self, use: Use, filtered: Mapping[str, Any] | None = None) -> int:
        """Return the number of items, or of those that match the filter `filtered`."""
        where = filters.grammar.parse(filtered) if filtered else None
        keyed = use.keyed
        if where is not None and keyed.shape is not None:
            return await self._searcher.count(keyed, keyed.shape, where)
        async with use.transaction() as connection:
            n_items, _ = await store.indexes.count(connection, use.index.id)
        return n_items


def _first_shape(opened: KeyedIndex, vectors: Matrix) -> Shape:
    return first_shape(opened, EncoderParameters.fit(0, opened.index.metric, vectors))


async def _initialise(connection: AsyncConnection, opened: KeyedIndex, shape: Shape) -> None:
    """Fix what the first batch decides about an index, in the transaction that stores the batch."""
    parameters = shape.encoder.parameters.to_bytes()
    fixed = replace(
        opened.index,
        dimension=shape.dimension,
        sketch_bits=shape.sketch_bits,
        sealed_encoder=opened.keys.parameters.seal(aead.INDEX_LEVEL, parameters),
    )
    sealed_header = header.seal(opened.keys, header.Header.of(fixed))
    fixed = replace(fixed, sealed_header=sealed_header)
    await store.indexes.initialise(connection, opened.index, fixed)
    await store.partitions.create_exact_ivf(connection, fixed.id, shape.sketch_bits)


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
