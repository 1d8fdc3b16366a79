"""Opening many vectors with breaks, in which other requests of the same worker get the interpreter."""

import asyncio
from collections.abc import Sequence

import numpy as np

from app.domain import Matrix
from app.engine import batch as batches
from app.engine.keyed import KeyedIndex
from app.engine.sketches.samples import SealedVector

# So much is read from the database at a time, and so much of it opened without a break.
_CHUNK_BYTES = 4 * 1024 * 1024
_MAX_CHUNK = 2_000
_SLICE_BYTES = 400 * 1024


def chunk_items(dimension: int) -> int:
    """Return how many vectors to read at a time."""
    return max(1, min(_MAX_CHUNK, _CHUNK_BYTES // (4 * dimension)))


def slices(rows: Sequence[SealedVector], dimension: int) -> list[Sequence[SealedVector]]:
    """Return `rows` in parts of a few milliseconds' work."""
    step = max(1, _SLICE_BYTES // (4 * dimension))
    return [rows[start : start + step] for start in range(0, len(rows), step)]


async def open_vectors(opened: KeyedIndex, rows: Sequence[SealedVector]) -> Matrix:
    """Return vectors (n, d), opened in a thread, a slice at a time."""
    dimension = opened.index.dimension or 1
    parts = [await asyncio.to_thread(open_slice, opened, part) for part in slices(rows, dimension)]
    return np.concatenate(parts) if parts else np.empty((0, dimension), np.float32)


def open_slice(opened: KeyedIndex, rows: Sequence[SealedVector]) -> Matrix:
    """Return vectors (n, d) at once."""
    item_keys, sealed = [item_key for item_key, _ in rows], [value for _, value in rows]
    dtype = batches.VECTOR_DTYPES[opened.index.storage_precision]
    vectors = opened.keys.vectors.open_rows(item_keys, sealed, dtype, opened.index.dimension or 1)
    return vectors.astype(np.float32, copy=False)
