"""Vectors as clients pack them, row-major little-endian float32 in base64, to a matrix."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import pybase64

from app import errors
from app.domain import Index, Matrix, PackedItems, PackedVectors
from app.engine import batch as batches

T = TypeVar("T")

_DTYPE = np.dtype("<f4")


def check(items: PackedItems, index: Index, max_items: int) -> batches.Batch:
    """Return `items` as a batch for `index`. Raises `InvalidInput`, `TooLarge`."""
    n_items = len(items.ids)
    if not n_items:
        raise errors.InvalidInput("batch.ids cannot be empty")
    if n_items > max_items:
        raise errors.TooLarge(f"A batch can hold at most {max_items} items")
    vectors = unpack(items.vectors, "Item")
    if len(vectors) != n_items:
        raise errors.InvalidInput(
            f"batch.ids has {n_items} ids, batch.vectors_b64 {len(vectors)} vectors"
        )
    batch = batches.Batch(
        items.ids, vectors, _parallel(items.contents, n_items), _parallel(items.metadata, n_items)
    )
    return batches.check_batch(batch, index, max_items)


def unpack(packed: PackedVectors, what: str) -> Matrix:
    """Return the vectors as a finite matrix (n, d) that shares the decoded bytes, read-only.

    Raises `InvalidInput`, naming the row (`what`) where one is to blame.
    """
    if packed.dimension < 1:
        raise errors.InvalidInput("batch.dimension must be at least 1")
    try:
        # Strict: the lax way skips characters that do not belong there, and the vectors shift.
        data = pybase64.b64decode(packed.base64, validate=True)
    except ValueError:  # not chained: it may quote the text
        raise errors.InvalidInput("batch.vectors_b64 is not valid base64") from None
    if len(data) % (packed.dimension * _DTYPE.itemsize):
        raise errors.InvalidInput(
            f"batch.vectors_b64 holds {len(data)} bytes,"
            " which is no multiple of 4 times batch.dimension"
        )
    if not data:
        raise errors.InvalidInput("batch.vectors_b64 cannot be empty")
    matrix = (
        np.frombuffer(data, _DTYPE).reshape(-1, packed.dimension).astype(np.float32, copy=False)
    )
    batches.check_finite(matrix, what)
    return matrix


def _parallel(values: Sequence[T], length: int) -> Sequence[T | None]:
    """Return `values` cut or filled up to `length`: what a client leaves out is absent."""
    return [*values[:length], *[None] * (length - len(values))]
