"""PostgreSQL's types as the service sends and receives them: in binary, without a copy too many."""

import struct

from psycopg.adapt import AdaptersMap, Buffer, Dumper, Loader
from psycopg.pq import Format

from app.domain import ITEM_KEY_BYTES

TOKEN_BYTES = 8
PLACE_BYTES = 6

_BIT_OID = 1560
_VARBIT_OID = 1562
_BIGINT_OID = 20
_BIGINT_ARRAY_OID = 1016
_BYTEA_OID = 17
_BYTEA_ARRAY_OID = 1001
_TID_OID = 27
_TID_ARRAY_OID = 1010
_LENGTH_BYTES = 4


class VarBit(bytes):
    """A bit string of whole bytes, most significant bit first, for `bit` and `bit varying`."""

    __slots__ = ()


class Tokens(tuple[bytes, ...]):
    """Numbers for a `bigint[]`, each as its 8 bytes, big-endian."""

    __slots__ = ()


class ItemKeys(tuple[bytes, ...]):
    """Item keys for a `bytea[]`."""

    __slots__ = ()


class Places(tuple[bytes, ...]):
    """Places of rows in a table for a `tid[]`, each as 6 bytes: block and number, big-endian."""

    __slots__ = ()


class _VarBitDumper(Dumper):
    """Binary form of a bit string: its length in bits (int32, big-endian), then its bytes."""

    format = Format.BINARY
    oid = _VARBIT_OID

    def dump(self, obj: VarBit) -> Buffer:
        return (8 * len(obj)).to_bytes(_LENGTH_BYTES, "big") + obj


class _VarBitLoader(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> VarBit:
        return VarBit(bytes(data)[_LENGTH_BYTES:])


class _ArrayDumper(Dumper):
    """Binary form of an array: dimensions, nulls, type of elements, then length and first index.

    Each element follows its length, which is the same for all. psycopg's own dumper asks for the
    type of every element.
    """

    format = Format.BINARY
    element_oid: int
    element_bytes: int

    def dump(self, obj: tuple[bytes, ...]) -> Buffer:
        if not obj:
            return struct.pack(">iii", 0, 0, self.element_oid)
        length = self.element_bytes.to_bytes(_LENGTH_BYTES, "big")
        head = struct.pack(">iiiii", 1, 0, self.element_oid, len(obj), 1)
        return head + length + length.join(obj)


class _TokensDumper(_ArrayDumper):
    oid = _BIGINT_ARRAY_OID
    element_oid = _BIGINT_OID
    element_bytes = TOKEN_BYTES


class _ItemKeysDumper(_ArrayDumper):
    oid = _BYTEA_ARRAY_OID
    element_oid = _BYTEA_OID
    element_bytes = ITEM_KEY_BYTES


class _PlacesDumper(_ArrayDumper):
    oid = _TID_ARRAY_OID
    element_oid = _TID_OID
    element_bytes = PLACE_BYTES


_DUMPERS: dict[type, type[Dumper]] = {
    VarBit: _VarBitDumper,
    Tokens: _TokensDumper,
    ItemKeys: _ItemKeysDumper,
    Places: _PlacesDumper,
}


def register(adapters: AdaptersMap) -> None:
    """Teach a connection the types of this module."""
    for kind, dumper in _DUMPERS.items():
        adapters.register_dumper(kind, dumper)
    for oid in (_BIT_OID, _VARBIT_OID):
        adapters.register_loader(oid, _VarBitLoader)
