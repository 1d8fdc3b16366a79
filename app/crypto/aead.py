"""Seal and open single values and whole batches of vectors: AES-256-GCM (NIST SP 800-38D).

    sealed value   version (1) = 0x01 ‖ nonce (12) ‖ ciphertext, as long as the plaintext ‖ tag (16)
    of a writer    version (1) = 0x02 ‖ session (32) ‖ nonce (12) ‖ ciphertext ‖ tag (16)
    AAD            index UUID (16) ‖ item key (16) ‖ column label (ASCII) ‖ context, if there is one

The AAD is not stored: whoever opens a value says where it came from, so a value moved to another
row, column or index does not open. A `Sealer` spreads its values over 64 sub-keys by the first byte
of the item key, because random nonces bound one key to 2^32 values; README.md has the arithmetic.
Who may write but not read seals under the key of a session (`app.crypto.sessions`), which the value
names.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, overload
from uuid import UUID

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.utils import Buffer
from numpy.typing import NDArray

from app.domain import ITEM_KEY_BYTES, Joined
from app.errors import DataCorrupted

VERSION = 1
SESSION_VERSION = 2
NONCE_BYTES = 12
TAG_BYTES = 16
HEADER_BYTES = 1 + NONCE_BYTES
OVERHEAD_BYTES = HEADER_BYTES + TAG_BYTES
KEY_BYTES = 32
SESSION_BYTES = 32
N_SHARDS = 64
KEY_MATERIAL_BYTES = N_SHARDS * KEY_BYTES
# The item key of a value that belongs to the index as a whole.
INDEX_LEVEL = bytes(ITEM_KEY_BYTES)
# That of its metadata schema, so that it cannot be taken for another.
SCHEMA_LEVEL = bytes(ITEM_KEY_BYTES - 1) + b"\x01"
# That of its header.
HEADER_LEVEL = bytes(ITEM_KEY_BYTES - 1) + b"\x02"

_VERSION = bytes([VERSION])
_SHARD_MASK = N_SHARDS - 1


class _Shards(dict[int, AESGCM]):
    """AES-GCM under each sub-key, set up when first asked for: few queries touch all of them."""

    def __init__(self, key_material: bytes) -> None:
        super().__init__()
        self._key_material = key_material

    def __missing__(self, shard: int) -> AESGCM:
        start = shard * KEY_BYTES
        aesgcm = self[shard] = AESGCM(self._key_material[start : start + KEY_BYTES])
        return aesgcm


class _OneShard(dict[int, AESGCM]):
    """The same key whatever the shard."""

    def __init__(self, key: bytes) -> None:
        super().__init__()
        self._aesgcm = AESGCM(key)

    def __missing__(self, shard: int) -> AESGCM:
        return self._aesgcm


# From the name of a session to its cipher for the sealer's column. Raises `DataCorrupted`.
Sessions: TypeAlias = Callable[[bytes], AESGCM]


class Sealer:
    """Seals and opens the values of one column of one index. Safe to share between threads."""

    __slots__ = ("_aad_prefix", "_aad_suffix", "_header", "_label", "_sessions", "_shards")

    def __init__(
        self,
        key_material: bytes,
        index_id: UUID,
        label: str,
        *,
        sessions: Sessions | None = None,
        session: bytes = b"",
    ) -> None:
        """`key_material` is 64 sub-keys of 32 bytes, one after the other.

        `sessions` opens what writers sealed. With the name of a `session`, `key_material` is that
        session's one key, and nothing else opens.
        """
        self._shards = _ciphers(key_material, is_session=bool(session))
        self._header = bytes([SESSION_VERSION]) + session if session else _VERSION
        self._sessions = sessions
        self._aad_prefix = index_id.bytes
        self._aad_suffix = label.encode("ascii")
        self._label = label

    def __repr__(self) -> str:
        return f"Sealer({self._label!r})"

    def seal(self, item_key: bytes, plaintext: Buffer, context: bytes = b"") -> bytes:
        """Seal `plaintext` for the row `item_key`: 29 bytes more (a writer's 61), always new.

        `context` is what else is bound into the value, behind the label.
        """
        nonce = os.urandom(NONCE_BYTES)
        aad = self._aad_prefix + item_key + self._aad_suffix + context
        ciphertext = self._shards[item_key[0] & _SHARD_MASK].encrypt(nonce, plaintext, aad)
        return self._header + nonce + ciphertext

    def open(self, item_key: bytes, sealed: bytes) -> bytes:
        """Open a value stored in the row `item_key`. Raises `DataCorrupted`."""
        if len(sealed) < OVERHEAD_BYTES or len(item_key) != ITEM_KEY_BYTES:
            raise self._corrupted()
        aad = self._aad_prefix + item_key + self._aad_suffix
        aesgcm, start = self._cipher(item_key, sealed)
        body = start + NONCE_BYTES
        try:
            return aesgcm.decrypt(sealed[start:body], sealed[body:], aad)
        except InvalidTag as error:
            raise self._corrupted() from error

    def open_array(self, item_key: bytes, sealed: bytes, context: bytes = b"") -> NDArray[np.uint8]:
        """Open a value as `open` does, into memory of its own, which the caller can wipe.

        Raises `DataCorrupted`.
        """
        if len(sealed) < OVERHEAD_BYTES or len(item_key) != ITEM_KEY_BYTES:
            raise self._corrupted()
        aad = self._aad_prefix + item_key + self._aad_suffix + context
        aesgcm, start = self._cipher(item_key, sealed)
        body = start + NONCE_BYTES
        opened = np.empty(len(sealed) - body - TAG_BYTES, np.uint8)
        try:
            aesgcm.decrypt_into(sealed[start:body], sealed[body:], aad, opened.data)
        except InvalidTag as error:
            raise self._corrupted() from error
        return opened

    def open_all(self, item_keys: Iterable[bytes], sealed: Iterable[bytes]) -> list[bytes]:
        """Open each value for its item key, as `open` does. Raises `DataCorrupted`."""
        return [
            self.open(item_key, value) for item_key, value in zip(item_keys, sealed, strict=True)
        ]

    def _cipher(self, item_key: bytes, sealed: bytes) -> tuple[AESGCM, int]:
        """Return the cipher that opens `sealed`, and where its nonce begins.

        Raises `DataCorrupted`.
        """
        if sealed.startswith(self._header):
            return self._shards[item_key[0] & _SHARD_MASK], len(self._header)
        if (
            self._sessions is None
            or sealed[0] != SESSION_VERSION
            or len(sealed) < OVERHEAD_BYTES + SESSION_BYTES
        ):
            raise self._corrupted()
        return self._sessions(sealed[1 : 1 + SESSION_BYTES]), 1 + SESSION_BYTES

    @overload
    def seal_all(self, item_keys: Sequence[bytes], plaintexts: Sequence[bytes]) -> list[bytes]: ...

    @overload
    def seal_all(
        self, item_keys: Sequence[bytes], plaintexts: Sequence[bytes | None]
    ) -> list[bytes | None]: ...

    def seal_all(
        self, item_keys: Sequence[bytes], plaintexts: Sequence[bytes | None]
    ) -> Sequence[bytes | None]:
        """Seal each plaintext for its item key, as `seal` does; None stays None."""
        # One call: the system's random numbers cost as much as sealing a short value.
        nonces = os.urandom(NONCE_BYTES * len(item_keys))
        header, shards = self._header, self._shards
        prefix, suffix = self._aad_prefix, self._aad_suffix
        sealed: list[bytes | None] = []
        start = 0
        for item_key, plaintext in zip(item_keys, plaintexts, strict=True):
            if plaintext is None:
                sealed.append(None)
                continue
            nonce = nonces[start : start + NONCE_BYTES]
            start += NONCE_BYTES
            aesgcm = shards[item_key[0] & _SHARD_MASK]
            sealed.append(
                header + nonce + aesgcm.encrypt(nonce, plaintext, prefix + item_key + suffix)
            )
        return sealed

    def seal_rows(self, item_keys: Sequence[bytes], rows: NDArray[Any]) -> list[bytes]:
        """Seal each row of `rows` (n, d) for its item key: its numbers in order, little-endian."""
        data = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("<")).tobytes()
        width = rows.shape[1] * rows.itemsize
        plaintexts = [data[start : start + width] for start in range(0, len(data), width)]
        return self.seal_all(item_keys, plaintexts)

    def open_rows(
        self,
        item_keys: Sequence[bytes],
        sealed: Sequence[bytes],
        dtype: np.dtype[Any],
        dimension: int,
    ) -> NDArray[Any]:
        """Open the rows (n, dimension) that `seal_rows` sealed, into one new array.

        Raises `DataCorrupted`.
        """
        rows = np.empty((len(sealed), dimension), dtype.newbyteorder("<"))
        joined = _joined(sealed, dimension * rows.itemsize + OVERHEAD_BYTES)
        if joined is None or set(map(len, item_keys)) - {ITEM_KEY_BYTES}:
            self._open_each(item_keys, sealed, rows)
        else:
            self._open_joined(item_keys, joined, rows)
        return rows

    def _open_joined(self, item_keys: Sequence[bytes], joined: bytes, rows: NDArray[Any]) -> None:
        """Open values of one length, one after the other in `joined`, into `rows`.

        The hot path of a search: each value is decrypted straight into its row, and what is the
        same for all rows is checked or computed before the loop.
        """
        width = rows.shape[1] * rows.itemsize
        step = width + OVERHEAD_BYTES
        if joined[::step].strip(_VERSION):
            raise self._corrupted()
        target = rows.reshape(-1).view(np.uint8).data
        shards, prefix, suffix = self._shards, self._aad_prefix, self._aad_suffix
        starts, places = range(0, len(joined), step), range(0, len(target), width)
        try:
            for item_key, start, place in zip(item_keys, starts, places, strict=True):
                body = start + HEADER_BYTES
                shards[item_key[0] & _SHARD_MASK].decrypt_into(
                    joined[start + 1 : body],
                    joined[body : start + step],
                    prefix + item_key + suffix,
                    target[place : place + width],
                )
        except InvalidTag as error:
            raise self._corrupted() from error

    def _open_each(
        self, item_keys: Sequence[bytes], sealed: Sequence[bytes], rows: NDArray[Any]
    ) -> None:
        """Open values of which some were sealed in sessions, and so are longer, into `rows`."""
        for row, item_key, value in zip(rows, item_keys, sealed, strict=True):
            plaintext = self.open(item_key, value)
            if len(plaintext) != row.nbytes:
                raise self._corrupted()
            row[:] = np.frombuffer(plaintext, row.dtype)

    def _corrupted(self) -> DataCorrupted:
        return DataCorrupted(f"a stored value of the column '{self._label}' does not open")


def _ciphers(key_material: bytes, *, is_session: bool) -> Mapping[int, AESGCM]:
    """Return the cipher of each shard: under its sub-key, or under the one key of a session."""
    if len(key_material) != (KEY_BYTES if is_session else KEY_MATERIAL_BYTES):
        raise ValueError(
            f"a sealer takes {KEY_MATERIAL_BYTES} bytes of key material, "
            f"one of a session {KEY_BYTES}"
        )
    return _OneShard(key_material) if is_session else _Shards(key_material)


def _joined(values: Sequence[bytes], length: int) -> bytes | None:
    """Return `values` one after the other if each is `length` bytes long."""
    if isinstance(values, Joined):
        return values.joined if values.width == length else None
    return None if set(map(len, values)) - {length} else b"".join(values)
