"""The header of an index: what its row says in the clear, once more and sealed.

PostgreSQL keeps name, metric, bits, noise and the like where its owner can read and change them.
The header says what they were when somebody with the key chose them. A row that differs from its
header is `DataCorrupted`: noise that was switched off with SQL, or a name exchanged for that of
another index, is an error instead of an answer.

    header   JSON of `Header`, sealed with the sub-keys of `encoder` at `aead.HEADER_LEVEL`

The header is renewed in the transaction that changes one of its facts. Version 2 of a wrapped key
(`crypto.keys`, `crypto.user_keys`) says that the index has a header: without one it does not open.
"""

from collections.abc import Mapping
from typing import Any, Self

import msgspec

from app.crypto import aead, keys
from app.domain import Index, IndexKind
from app.errors import DataCorrupted


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of an index that only somebody with its key may change."""

    name: str
    kind: str
    metric: str
    storage_precision: str
    dimension: int | None
    sketch_bits: int | None
    sketch_noise: float
    encoder_version: int
    embedding_model: str | None
    embedding_weights: str | None

    @classmethod
    def of(cls, index: Index) -> Self:
        """Return what the row of `index` says."""
        return msgspec.convert(index, cls, from_attributes=True)

    @classmethod
    def of_new(cls, values: Mapping[str, Any]) -> Self:
        """Return what the row of a new index will say, given the `values` that are stored."""
        usual = {"kind": IndexKind.IVFFLAT.value, "encoder_version": 0}
        return msgspec.convert({**usual, **values}, cls)


_decode = msgspec.json.Decoder(Header).decode


def seal(index_keys: keys.IndexKeys, header: Header) -> bytes:
    """Return `header` as it is stored."""
    return index_keys.parameters.seal(aead.HEADER_LEVEL, msgspec.json.encode(header))


def check(index: Index, index_keys: keys.IndexKeys) -> None:
    """Raise `DataCorrupted` unless the row of `index` says what its header says.

    An index of before headers has none, and its wrapped keys demand none.
    """
    if index.sealed_header is None:
        if index_keys.demands_header:
            raise DataCorrupted(f"The sealed header of index '{index.name}' is missing")
        return
    try:
        sealed = _decode(index_keys.parameters.open(aead.HEADER_LEVEL, index.sealed_header))
    except msgspec.DecodeError as error:
        raise DataCorrupted("the stored header of the index is malformed") from error
    row = Header.of(index)
    wrong = [
        name for name in Header.__struct_fields__ if getattr(row, name) != getattr(sealed, name)
    ]
    if wrong:
        raise DataCorrupted(
            f"The row of index '{index.name}' was changed without its key: {', '.join(wrong)}"
        )
