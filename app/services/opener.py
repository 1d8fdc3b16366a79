"""How a request reaches an index: the row, the right to it, and the keys that open its items.

Rows and unwrapped keys are remembered in the process. A remembered row may be out of date, since other workers
change indexes too: every transaction compares its revision, and `IndexOpener.with_index` starts over with
the new row when the two differ. Keys are remembered for a bounded time, under a keyed hash of the index key.
"""

import asyncio
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import psycopg.errors as pg
from cachetools import LRUCache, TTLCache
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from app import errors, store
from app.crypto import aead, keys, sketch
from app.domain import Index, IndexAccess
from app.settings import Settings

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_ATTEMPTS = 5
_MAX_REMEMBERED_ROWS = 10_000
# What a transaction may end in through no fault of its own, and what repeating it repairs.
_TRANSIENT = (pg.DeadlockDetected, pg.SerializationFailure, pg.UndefinedTable)


@dataclass(frozen=True, slots=True)
class OpenIndex:
    """An index whose key was presented; `encoder` is None until the first upsert.

    While a training moves to another encoder, that is `next_encoder`, and writers use both.
    """

    index: Index
    keys: keys.IndexKeys
    encoder: sketch.Encoder | None
    next_encoder: sketch.Encoder | None = None


class IndexOpener:
    """Finds indexes, checks index keys, and remembers both for a while."""

    def __init__(self, engine: AsyncEngine, settings: Settings) -> None:
        self._engine = engine
        self._hash_key = secrets.token_bytes(32)
        self._rows: LRUCache[str, Index] = LRUCache(_MAX_REMEMBERED_ROWS)
        self._opened: TTLCache[bytes, OpenIndex] = TTLCache(settings.key_cache_size, settings.key_cache_ttl_s)

    async def with_index(self, access: IndexAccess, operation: Callable[[OpenIndex], Awaitable[Answer]]) -> Answer:
        """Return what `operation` returns for the index as it is now.

        `operation` may run several times: it must be one transaction, and raise `StaleIndex` when it finds
        the index changed. Raises `NotFound`, `KeyRejected`.
        """
        for attempt in range(_ATTEMPTS):
            remembered = self._rows.get(access.index_name)
            try:
                return await operation(await self.open(access))
            except store.indexes.StaleIndex:
                self._rows.pop(access.index_name, None)
            except errors.InvalidInput:
                # Refused for what an old row says? Only the row as it is now has the right to.
                if remembered is None or await self._read_row(access.index_name) == remembered:
                    raise
            except (DBAPIError, pg.Error) as error:
                if not isinstance(getattr(error, "orig", error), _TRANSIENT):
                    raise
                self._rows.pop(access.index_name, None)
            await asyncio.sleep(0.01 * attempt)
        raise errors.Unavailable("The index keeps changing; try again")

    async def open(self, access: IndexAccess) -> OpenIndex:
        """Return the index that `access` names, with its keys. Raises `NotFound`, `KeyRejected`."""
        remembered = self._rows.get(access.index_name)
        index = remembered or await self._read_row(access.index_name)
        if not access.index_key:
            raise errors.KeyRejected(f"Index '{index.name}' needs its index_key")
        kek = keys.parse_index_key(access.index_key)
        try:
            return self._unwrap(index, kek)
        except errors.KeyRejected:
            # The remembered row may be that of an index which has been replaced under the same name.
            if remembered is None:
                raise
            return self._unwrap(await self._read_row(access.index_name), kek)

    def forget_expired(self) -> None:
        """Let go of the keys whose time is over; without this they would stay until the next request."""
        self._opened.expire()

    async def _read_row(self, name: str) -> Index:
        if not name:
            raise errors.InvalidInput("index_name cannot be empty")
        # PostgreSQL's text cannot hold U+0000, so no index has such a name.
        if "\0" not in name:
            async with self._engine.connect() as connection:
                index = await store.indexes.by_name(connection, name)
            if index is not None:
                self._rows[name] = index
                return index
        raise errors.NotFound(f"Index '{name}' does not exist")

    def _unwrap(self, index: Index, kek: bytes) -> OpenIndex:
        name = hmac.digest(self._hash_key, kek + index.wrapped_dek, "sha256")
        opened = self._opened.get(name)
        if opened is not None and opened.index.revision == index.revision:
            return opened
        if opened is not None:
            opened = _with_row(opened, index)
        else:
            dek = _unwrap_dek(index, kek)
            index_keys = keys.IndexKeys.derive(dek, index.id)
            opened = open_row(index, index_keys)
        self._opened[name] = opened
        return opened


def _unwrap_dek(index: Index, kek: bytes) -> bytes:
    try:
        return keys.unwrap_dek(kek, index.wrapped_dek, index.id)
    except errors.KeyRejected as error:
        raise errors.KeyRejected(f"Wrong index_key for index '{index.name}'") from error


def _with_row(opened: OpenIndex, index: Index) -> OpenIndex:
    before = opened.index
    if (before.sealed_encoder, before.sealed_next_encoder) == (index.sealed_encoder, index.sealed_next_encoder):
        return OpenIndex(index, opened.keys, opened.encoder, opened.next_encoder)
    return open_row(index, opened.keys)


def open_row(index: Index, index_keys: keys.IndexKeys) -> OpenIndex:
    """Return `index` with its keys and the encoders whose parameters are sealed in its row."""
    encoder, next_encoder = (
        build_encoder(index, index_keys, sealed) for sealed in (index.sealed_encoder, index.sealed_next_encoder)
    )
    return OpenIndex(index, index_keys, encoder, next_encoder)


def build_encoder(index: Index, index_keys: keys.IndexKeys, sealed: bytes | None) -> sketch.Encoder | None:
    """Return the encoder of `index` with the `sealed` parameters, if there are any."""
    if sealed is None:
        return None
    data = index_keys.parameters.open(aead.INDEX_LEVEL, sealed)
    return encoder_for(index, index_keys, sketch.EncoderParameters.from_bytes(data))


def encoder_for(index: Index, index_keys: keys.IndexKeys, parameters: sketch.EncoderParameters) -> sketch.Encoder:
    """Return the encoder of `index` with `parameters`, which also tell the dimension."""
    dimension = len(parameters.mean)
    bits = index.sketch_bits or sketch.sketch_bits(dimension)
    return sketch.Encoder(index_keys.sketch_key, dimension, index.metric, bits, index.sketch_noise, parameters)
