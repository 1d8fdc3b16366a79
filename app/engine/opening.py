"""Sealed values to vectors and metadata, at once or with breaks for other requests."""

import asyncio
from collections.abc import Sequence

import msgspec
import numpy as np

from app.crypto import aead
from app.domain import Matrix, Metadata
from app.engine.costs import MAX_READ_ITEMS, OPENED_BYTES, READ_BYTES
from app.engine.keyed import KeyedIndex, Shape
from app.engine.sketches.samples import SealedVector
from app.observe.stages import timed

_decode_metadata = msgspec.json.Decoder(dict).decode


@timed("open")
def open_rows(
    keyed: KeyedIndex, shape: Shape, item_keys: Sequence[bytes], sealed: Sequence[bytes]
) -> Matrix:
    """Return vectors (n, d), as float32."""
    vectors = keyed.keys.vectors.open_rows(item_keys, sealed, shape.dtype, shape.dimension)
    return vectors.astype(np.float32, copy=False)


@timed("open")
def open_metadata(sealer: aead.Sealer, item_key: bytes, sealed: bytes | None) -> Metadata:
    """Return the metadata of an item; empty when it has none."""
    return {} if sealed is None else _decode_metadata(sealer.open(item_key, sealed))


def chunk_items(dimension: int) -> int:
    """Return how many vectors to read at a time."""
    return max(1, min(MAX_READ_ITEMS, READ_BYTES // (4 * dimension)))


def slices(rows: Sequence[SealedVector], dimension: int) -> list[Sequence[SealedVector]]:
    """Return `rows` in parts of a few milliseconds' work."""
    step = max(1, OPENED_BYTES // (4 * dimension))
    return [rows[start : start + step] for start in range(0, len(rows), step)]


async def open_vectors(keyed: KeyedIndex, rows: Sequence[SealedVector]) -> Matrix:
    """Return vectors (n, d), opened in a thread, a slice at a time."""
    if keyed.shape is None:
        return np.empty((0, 1), np.float32)
    dimension = keyed.shape.dimension
    parts = [await asyncio.to_thread(open_slice, keyed, part) for part in slices(rows, dimension)]
    return np.concatenate(parts) if parts else np.empty((0, dimension), np.float32)


def open_slice(keyed: KeyedIndex, rows: Sequence[SealedVector]) -> Matrix:
    """Return vectors (n, d) at once."""
    if keyed.shape is None:
        return np.empty((0, 1), np.float32)
    item_keys, sealed = [item_key for item_key, _ in rows], [value for _, value in rows]
    return open_rows(keyed, keyed.shape, item_keys, sealed)
