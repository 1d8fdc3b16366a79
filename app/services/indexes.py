"""Use cases of indexes: create, list, describe, delete, and our own statistics."""

import asyncio
import logging
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncEngine

from app import errors, store
from app.crypto import keys
from app.domain import (
    MAX_DIMENSION,
    OPERATOR,
    Caller,
    IndexAccess,
    IndexDescription,
    Metric,
    NewIndex,
)
from app.engine import header, metadata_schema
from app.engine.profile import SearchProfile
from app.engine.sketches.encoder import MAX_SKETCH_BITS, sketch_bits
from app.observe.stages import stage
from app.services import audit
from app.services.access import IndexOpener, Use, on_index
from app.services.embedding import EmbeddingService
from app.services.stats import IndexStats
from app.settings import Settings
from app.training import drift

logger = logging.getLogger(__name__)

_MAX_NAME_LENGTH = 255
_MIN_SKETCH_BITS = 64
# At one half a sketch would say nothing.
_MAX_SKETCH_NOISE = 0.4
_RESERVED_NAME = "default"
# What older clients take an index for that was not made by one of them.
_DEFAULT_CONFIG = {"type": "ivfflat"}


class IndexService:
    """What can be done to an index as a whole."""

    def __init__(
        self,
        engine: AsyncEngine,
        opener: IndexOpener,
        settings: Settings,
        embedding: EmbeddingService,
    ) -> None:
        self._engine = engine
        self._opener = opener
        self._settings = settings
        self._embedding = embedding
        self._sweeps: set[asyncio.Task[None]] = set()

    async def create(self, new: NewIndex, caller: Caller = OPERATOR) -> None:
        """Create an empty index. Raises `InvalidInput`, `Conflict`, `ModelUnavailable`."""
        _check_name(new.name)
        kek = _index_key(new)
        metric = _metric(new.metric)
        if new.dimension is not None and not 0 <= new.dimension <= MAX_DIMENSION:
            raise errors.InvalidInput(f"dimension must be between 1 and {MAX_DIMENSION}")
        if new.metadata_schema is not None:
            metadata_schema.check(new.metadata_schema)
        new, embedding_weights = await self._embedding.settle(new)
        index_id, dek = uuid4(), keys.generate_dek()
        index_keys = keys.IndexKeys.derive(dek, index_id)
        values = {
            "id": index_id,
            "name": new.name,
            "metric": metric.value,
            "storage_precision": new.storage_precision.value,
            "dimension": new.dimension or None,
            "sketch_bits": self._sketch_bits(new),
            "sketch_noise": self._sketch_noise(new),
            "wrapped_dek": keys.wrap_dek(kek, dek, index_id),
            "requested_n_lists": new.n_lists,
            "embedding_model": new.embedding_model,
            "embedding_weights": embedding_weights,
            "index_config": new.index_config,
        }
        if new.metadata_schema:
            values["sealed_schema"] = metadata_schema.seal(index_keys, new.metadata_schema)
        values["sealed_header"] = header.seal(index_keys, header.Header.of_new(values))
        async with stage("sql"), self._engine.begin() as connection:
            await store.indexes.create(connection, values)
            await store.partitions.create(connection, index_id)
            access = IndexAccess(new.name, new.index_key, caller)
            await store.audit.record(connection, audit.entry(access, "create", index_id))

    async def names(self, caller: Caller) -> list[str]:
        """Return the names of the indexes that `caller` may see."""
        async with stage("sql"):
            return await self._opener.visible_names(caller)

    async def check_user(self, caller: Caller) -> None:
        """Raise `Forbidden` for a user that was revoked, on a route where no index would tell."""
        if caller.user is not None:
            await self._opener.visible_names(caller)

    @on_index(needs=None)
    async def describe(self, use: Use) -> IndexDescription:
        """Return the contract's facts about an index."""
        index = use.index
        async with use.transaction():
            pass
        legacy = _DEFAULT_CONFIG if self._settings.legacy_describe else None
        return IndexDescription(
            index.name,
            index.is_trained,
            index.dimension or 0,
            index.metric,
            index.n_lists,
            index.index_config or legacy,
            use.keyed.schema,
        )

    async def delete(self, access: IndexAccess) -> None:
        """Delete an index with all its items. Its name is free at once."""
        await self._delete(access)
        self.sweep()

    @on_index(needs=None)
    async def _delete(self, use: Use) -> None:
        async with stage("sql"), use.engine.begin() as connection:
            await store.indexes.delete(connection, use.index)
            await use.record(connection, "delete")

    def sweep(self) -> None:
        """Begin to drop what deleted indexes have left. It may wait for readers of all."""
        sweep = asyncio.create_task(self._drop_deleted())
        self._sweeps.add(sweep)
        sweep.add_done_callback(self._sweeps.discard)

    async def close(self) -> None:
        """End the sweeps; the next one takes over."""
        for sweep in self._sweeps:
            sweep.cancel()
        await asyncio.gather(*self._sweeps, return_exceptions=True)

    async def _drop_deleted(self) -> None:
        try:
            await store.partitions.drop_deleted(self._engine)
        except errors.AppError as error:
            logger.warning("dropping deleted indexes is put off: %s", error)

    @on_index(needs=None)
    async def stats(self, use: Use) -> IndexStats:
        """Return what is known of an index beyond the contract."""
        index = use.index
        async with use.transaction() as connection:
            look = await drift.look(connection, index, self._settings.drift_share)
            n_bytes, n_ivf_bytes = await store.items.sizes(connection, index)
            job = await store.training.job(connection, index.id)
        return IndexStats(
            index,
            look,
            SearchProfile.from_json(index.n_lists, index.profile),
            job,
            await self._embedding.stats(index),
            n_bytes,
            n_ivf_bytes,
            use.keyed.schema or {},
        )

    def _sketch_bits(self, new: NewIndex) -> int | None:
        bits = self._settings.sketch_bits if new.sketch_bits is None else new.sketch_bits
        if bits is None:
            return sketch_bits(new.dimension) if new.dimension else None
        if not _MIN_SKETCH_BITS <= bits <= MAX_SKETCH_BITS or bits % 8:
            raise errors.InvalidInput(
                "sketch_bits must be a multiple of 8"
                f" between {_MIN_SKETCH_BITS} and {MAX_SKETCH_BITS}"
            )
        return bits

    def _sketch_noise(self, new: NewIndex) -> float:
        noise = self._settings.sketch_noise if new.sketch_noise is None else new.sketch_noise
        if not 0 <= noise <= _MAX_SKETCH_NOISE:
            raise errors.InvalidInput(f"sketch_noise must be between 0 and {_MAX_SKETCH_NOISE}")
        return noise


def _check_name(name: str) -> None:
    if not name:
        raise errors.InvalidInput("index_name cannot be empty")
    if len(name) > _MAX_NAME_LENGTH:
        raise errors.InvalidInput(f"index_name cannot be longer than {_MAX_NAME_LENGTH} characters")
    if any(character < " " or "\x7f" <= character <= "\x9f" for character in name):
        raise errors.InvalidInput("index_name cannot hold control characters")
    if name == _RESERVED_NAME:
        raise errors.InvalidInput(f"index_name '{_RESERVED_NAME}' is reserved")


def _index_key(new: NewIndex) -> bytes:
    if not new.index_key:
        raise errors.InvalidInput("index_key must be supplied: 32 bytes as 64 hex digits")
    return keys.parse_index_key(new.index_key)


def _metric(name: str) -> Metric:
    try:
        return Metric(name)
    except ValueError as error:
        raise errors.InvalidInput(f"metric must be one of {', '.join(Metric)}") from error
