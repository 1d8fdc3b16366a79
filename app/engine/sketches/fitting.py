"""An encoder that is fitted to the vectors: found in a sample, announced, and its sketches written.

From the announcement on, every upsert writes sketches by both encoders. So only the items that were
stored before lack one, and searches use the old encoder until all have it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

import numpy as np
from sqlalchemy.ext.asyncio import AsyncConnection

from app import store
from app.crypto import aead
from app.domain import Index, Matrix
from app.engine.keyed import KeyedIndex, open_row
from app.engine.opening import chunk_items, open_slice, open_vectors, slices
from app.engine.sketches import ivf_statements, samples
from app.engine.sketches.encoder import Encoder
from app.engine.sketches.parameters import EncoderParameters
from app.engine.sketches.samples import SealedVector
from app.engine.trainable import Work
from app.store.indexes import StaleIndex

Answer = TypeVar("Answer")

_FIRST_FITTED_VERSION = 1
_SAMPLE_ITEMS = 20_000
_SAMPLE_BYTES = 32 * 1024 * 1024
_MIN_SAMPLE = 256
_ATTEMPTS = 5
_PAUSE_S = 0.05
_N_WRITERS = 2
_EMPTIED_AT_A_TIME = 2_000


async def prepare(work: Work) -> None:
    """Fit the encoder and write its sketches, unless the encoder in use still fits."""
    index = work.opened.index
    if index.sealed_next_encoder is None:
        work.enter("fitting")
        parameters = await _fitted(work)
        if parameters is None:
            return
        if index.encoder_version >= _FIRST_FITTED_VERSION:
            await _empty(work)
        index = await _announced(work, parameters)
    work.enter("encoding")
    await _Filler(work, open_row(index, work.opened.keys)).fill()


async def _fitted(work: Work) -> EncoderParameters | None:
    """Return the next encoder's parameters, None if the data have not moved since the last fit.

    The encoder of the first batch is always replaced.
    """
    index, encoder = work.opened.index, work.opened.encoder
    assert encoder is not None  # noqa: S101 - an index with items has an encoder
    sample = await _sample(work, encoder.dimension)

    def fitted() -> EncoderParameters | None:
        is_fitted = index.encoder_version >= _FIRST_FITTED_VERSION
        if is_fitted and not encoder.parameters.needs_refit(index.metric, sample):
            return None
        return EncoderParameters.fit(index.encoder_version + 1, index.metric, sample)

    return await asyncio.to_thread(fitted)


async def _empty(work: Work) -> None:
    """Empty the column that the next encoder will fill: sketches of an earlier one may be in it.

    Writers do not write to this column before the announcement, and empty it in rows they replace.
    """
    index = work.opened.index
    last: bytes | None = b""

    async def emptied(connection: AsyncConnection) -> bytes | None:
        assert last is not None  # noqa: S101 - the loop ends then
        version = index.encoder_version + 1
        return await samples.empty_sketches(connection, index, version, last, _EMPTIED_AT_A_TIME)

    while last is not None:
        last = await _committed(work, emptied)


async def _sample(work: Work, dimension: int) -> Matrix:
    """Return the vectors of the first items: item keys are pseudo-random, so these are typical."""
    n_wanted = min(_SAMPLE_ITEMS, max(_MIN_SAMPLE, _SAMPLE_BYTES // (4 * dimension)))
    parts = [np.empty((0, dimension), np.float32)]
    n_read = 0
    async for rows in _first_chunks(work, dimension, n_wanted):
        parts.append(await open_vectors(work.opened, rows))
        n_read += len(rows)
        work.advance(n_read / n_wanted)
    return np.concatenate(parts)


async def _first_chunks(
    work: Work, dimension: int, n_wanted: int
) -> AsyncIterator[list[SealedVector]]:
    """Yield the first items in the order of their keys, `n_wanted` in all."""
    last = b""
    while n_wanted:
        limit = min(chunk_items(dimension), n_wanted)
        async with work.engine.connect() as connection:
            rows = await samples.vectors_after(connection, work.opened.index, last, limit)
        if not rows:
            return
        yield rows
        last, n_wanted = rows[-1][0], n_wanted - len(rows)


async def _announced(work: Work, parameters: EncoderParameters) -> Index:
    """Store the next encoder, and return the row of the index as it is then."""
    index = work.opened.index
    sealed = work.opened.keys.parameters.seal(aead.INDEX_LEVEL, parameters.to_bytes())
    async with work.engine.begin() as connection:
        await store.indexes.own_encoder(connection, index.id)
        await ivf_statements.announce(connection, index, sealed)
        await work.hold(connection)
        announced = await store.indexes.by_id(connection, index.id)
    if announced is None or announced.sealed_next_encoder is None:
        raise StaleIndex
    return announced


class _Filler:
    """Gives every item that lacks the sketch by the next encoder of `opened` that sketch.

    While PostgreSQL writes some chunks, the next is encoded. While searches are under way, one
    processor is theirs: then nothing is encoded before all is written.
    """

    def __init__(self, work: Work, opened: KeyedIndex) -> None:
        assert opened.next_encoder is not None  # noqa: S101 - it was announced before
        self._work = work
        self._opened = opened
        self._encoder = opened.next_encoder
        self._version = opened.index.encoder_version + 1
        self._writing: deque[asyncio.Task[None]] = deque()

    async def fill(self) -> None:
        """Fill the column."""
        try:
            async for rows in self._chunks():
                sketches = await self._sketches(rows)
                await self._hand_over([item_key for item_key, _ in rows], sketches)
            await asyncio.gather(*self._writing)
        finally:
            for task in self._writing:
                task.cancel()
            await asyncio.gather(*self._writing, return_exceptions=True)

    async def _chunks(self) -> AsyncIterator[list[SealedVector]]:
        """Yield the items that lack the sketch, in the order of their keys."""
        last, limit = b"", chunk_items(self._encoder.dimension)
        while rows := await self._lacking(last, limit):
            yield rows
            last = rows[-1][0]
            # Item keys are spread evenly, so a key tells which share is done.
            self._work.advance(int.from_bytes(last[:2], "big") / 0x10000)

    async def _lacking(self, last: bytes, limit: int) -> list[SealedVector]:
        async with self._work.engine.connect() as connection:
            return await samples.vectors_after(
                connection, self._opened.index, last, limit, lacking=self._version
            )

    async def _sketches(self, rows: Sequence[SealedVector]) -> list[bytes]:
        sketches: list[bytes] = []
        for part in slices(rows, self._encoder.dimension):
            sketches += await asyncio.to_thread(_encode, self._opened, self._encoder, part)
        return sketches

    async def _hand_over(self, item_keys: Sequence[bytes], sketches: Sequence[bytes]) -> None:
        """Begin to write a chunk, as soon as there is a writer for it."""
        if len(self._writing) == _N_WRITERS:
            await self._writing.popleft()
        self._writing.append(asyncio.create_task(self._write(item_keys, sketches)))
        while self._writing and not self._work.is_quiet():
            await self._writing.popleft()

    async def _write(self, item_keys: Sequence[bytes], sketches: Sequence[bytes]) -> None:
        async def written(connection: AsyncConnection) -> None:
            await samples.write_sketches(
                connection, self._opened.index, self._version, item_keys, sketches
            )

        await _committed(self._work, written)


async def _committed(work: Work, write: Callable[[AsyncConnection], Awaitable[Answer]]) -> Answer:
    """Return what `write` returns in a transaction of its own, which is repeated if it collides."""
    for attempt in range(_ATTEMPTS - 1):
        try:
            async with work.engine.begin() as connection:
                return await write(connection)
        except samples.Collision:
            await asyncio.sleep(_PAUSE_S * 2**attempt)
    async with work.engine.begin() as connection:
        return await write(connection)


def _encode(opened: KeyedIndex, encoder: Encoder, rows: Sequence[SealedVector]) -> list[bytes]:
    vectors = open_slice(opened, rows)
    return [
        bits.tobytes() for bits in encoder.encode_items(vectors, [item_key for item_key, _ in rows])
    ]
