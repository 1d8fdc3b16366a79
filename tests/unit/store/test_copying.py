from uuid import UUID

import numpy as np

from app.domain import SealedItems
from app.store.pg import copy_rows

INDEX_ID = UUID(bytes=bytes(range(16)))


def field(value: bytes | None) -> bytes:
    return b"\xff\xff\xff\xff" if value is None else len(value).to_bytes(4, "big") + value


def test_rows_are_as_postgresql_documents_them() -> None:
    items = SealedItems(
        [b"k" * 16, b"l" * 16],
        [b"id", b"another id"],
        np.array([[1, 2], [3, 4]], np.uint8),
        None,
        [b"vector", b"other"],
        [None, b"contents"],
        [b"metadata", None],
        [[b"token--1", b"token--2"], []],
    )
    head = b"\0\x09" + field(INDEX_ID.bytes)
    array = (
        bytes.fromhex("00000001 00000000 00000014 00000002 00000001")
        + field(b"token--1")
        + field(b"token--2")
    )
    assert copy_rows.rows(INDEX_ID, items) == b"".join(
        [
            *(head, field(b"k" * 16), field(b"id"), field(b"\0\0\0\x10\x01\x02"), field(None)),
            *(field(b"vector"), field(None), field(b"metadata"), field(array)),
            *(
                head,
                field(b"l" * 16),
                field(b"another id"),
                field(b"\0\0\0\x10\x03\x04"),
                field(None),
            ),
            *(field(b"other"), field(b"contents"), field(None), field(None)),
        ]
    )
