"""Rows of `items` in the binary format of COPY (PostgreSQL's documentation, COPY, "Binary Format").

    file    signature (11) ‖ flags (4) ‖ length of the extension (4) ‖ row … ‖ -1 (2)
    row     number of fields (2) ‖ field …
    field   length (4), -1 for null ‖ value
    varbit  length in bits (4) ‖ bytes
    bigint[]   dimensions (4) ‖ has nulls (4) ‖ type (4) ‖ length (4) ‖ first index (4)
               ‖ (8 as 4 bytes ‖ number (8)) …

All numbers are big-endian. Written out by hand, as a batch of rows takes a quarter of the driver's
time for it, and can be had before the transaction begins, in a thread.
"""

import struct
from collections.abc import Sequence
from itertools import chain, repeat
from uuid import UUID

from app.domain import SealedItems, Sketches

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"

_NULL = b"\xff\xff\xff\xff"
_BIGINT_OID = 20
_BIGINT_LENGTH = (8).to_bytes(4, "big")
_N_FIELDS = 9

_length = struct.Struct(">i").pack
_array_head = struct.Struct(">iiiiii").pack
_ARRAY_HEAD_BYTES = 20


def columns(sketch: str, other_sketch: str) -> str:
    """Return the columns of the rows that `rows` writes, in order.

    The names of the two columns for sketches are given.
    """
    return (
        f"index_id, item_key, sealed_id, {sketch}, {other_sketch},"
        " sealed_vector, sealed_contents, sealed_metadata, tokens"
    )


def rows(index_id: UUID, items: SealedItems) -> bytes:
    """Return `items` as rows, between what `HEADER` and `TRAILER` are."""
    n_items = len(items.item_keys)
    head = _N_FIELDS.to_bytes(2, "big") + _field(index_id.bytes)
    fields = (
        repeat(head, n_items),
        map(_field, items.item_keys),
        map(_field, items.ids),
        _bit_fields(items.sketches),
        repeat(_NULL, n_items) if items.next_sketches is None else _bit_fields(items.next_sketches),
        # In two pieces: to put these long ones behind their lengths would copy them once more.
        (_length(len(value)) for value in items.vectors),
        items.vectors,
        map(_field, items.contents),
        map(_field, items.metadata),
        map(_array_field, items.tokens),
    )
    return b"".join(chain.from_iterable(zip(*fields, strict=True)))


def _field(value: bytes | None) -> bytes:
    return _NULL if value is None else _length(len(value)) + value


def _bit_fields(sketches: Sketches) -> Sequence[bytes]:
    n_bytes = sketches.shape[1]
    head = _length(4 + n_bytes) + _length(8 * n_bytes)
    data = sketches.tobytes()
    return [head + data[start : start + n_bytes] for start in range(0, len(data), n_bytes)]


def _array_field(numbers: Sequence[bytes]) -> bytes:
    """Return 8-byte numbers as a `bigint[]`; null for none."""
    if not numbers:
        return _NULL
    n_numbers = len(numbers)
    n_bytes = _ARRAY_HEAD_BYTES + n_numbers * (len(_BIGINT_LENGTH) + 8)
    head = _array_head(n_bytes, 1, 0, _BIGINT_OID, n_numbers, 1)
    return head + _BIGINT_LENGTH + _BIGINT_LENGTH.join(numbers)
