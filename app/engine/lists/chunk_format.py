"""What is sealed in a chunk: the entries of many items, column by column.

    format (1) = 0x01 ‖ kind of codes (1) ‖ 0 (2) ‖ n entries (4) ‖ w, bytes of a code (4) ‖ 0 (4)
    codes      n · w     kind 0: sketches, m bits packed most significant bit first, zeros up to 64
                         kind 1: vectors as float32; kind 2: vectors as float16
    records    n · 32    item key (16) ‖ tag (8, int64) ‖ length (4, float32) ‖ offset (4, float32)
    lists      n · 4     number of the list (int32), -1 for none
    zeros                up to one of the lengths of `padding`

All numbers are little-endian. An entry with a vector has offset 0, and length 0, or -1 where the
space has no place for it.
"""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.crypto import aead
from app.engine.lists.entries import RECORD, Entries
from app.engine.lists.padding import largest_length, pad
from app.errors import DataCorrupted

FORMAT = 1
# Of the sealed value. Opening holds the interpreter's lock, for a third of a millisecond at most.
MAX_BYTES = 1 << 20

_HEADER = struct.Struct("<BBxxII4x")
_LIST = np.dtype("<i4")
_CODES: tuple[np.dtype[Any], ...] = (np.dtype("<u8"), np.dtype("<f4"), np.dtype("<f2"))
_ROOM = largest_length(MAX_BYTES - aead.OVERHEAD_BYTES - aead.SESSION_BYTES) - _HEADER.size


def parts(entries: Entries) -> Iterator[Entries]:
    """Yield `entries` in parts that each fit into a chunk, in order."""
    step = capacity(entries.codes.shape[1] * entries.codes.itemsize)
    for start in range(0, len(entries), step):
        yield entries[start : start + step]


def capacity(code_bytes: int) -> int:
    """Return how many entries with codes of `code_bytes` fit into a chunk: at least one."""
    return max(1, _ROOM // (code_bytes + RECORD.itemsize + _LIST.itemsize))


def to_bytes(entries: Entries) -> bytes:
    """Return what is sealed of `entries`."""
    codes = entries.codes
    kind = _CODES.index(codes.dtype.newbyteorder("<"))
    header = _HEADER.pack(FORMAT, kind, len(entries), codes.shape[1] * codes.itemsize)
    columns = (codes.astype(_CODES[kind]), entries.records, entries.lists.astype(_LIST))
    return pad(header + b"".join(column.tobytes() for column in columns))


def from_array(data: NDArray[np.uint8]) -> Entries:
    """Return copies of the entries in what `to_bytes` wrote. Raises `DataCorrupted`."""
    if len(data) < _HEADER.size:
        raise _corrupted()
    format_, kind, n_entries, width = _HEADER.unpack_from(data.data)
    if format_ != FORMAT or kind >= len(_CODES) or width % _CODES[kind].itemsize or not width:
        raise _corrupted()
    codes_end = _HEADER.size + n_entries * width
    records_end = codes_end + n_entries * RECORD.itemsize
    lists_end = records_end + n_entries * _LIST.itemsize
    if lists_end > len(data):
        raise _corrupted()
    return Entries(
        data[codes_end:records_end].view(RECORD).copy(),
        data[records_end:lists_end].view(_LIST).astype(np.int32),
        data[_HEADER.size : codes_end].view(_CODES[kind]).reshape(n_entries, -1).copy(),
    )


def _corrupted() -> DataCorrupted:
    return DataCorrupted("a chunk of the index is malformed")
