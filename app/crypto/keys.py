"""The key hierarchy: the client's index key (KEK) wraps the data key (DEK), which gives all others.

    wrapped DEK   version (1) = 0x02 ‖ nonce (12) ‖ ciphertext (32) ‖ tag (16)
    AAD           "sealdex/v2/dek" ‖ index UUID (16); in version 1 "sealdex/v1/dek" ‖ index UUID

    Version 2 says that the row of the index has a sealed header; version 1 is of before headers.

    DEK ── HKDF-SHA256, salt = index UUID, info = "sealdex/v1/" ‖ label
    ├── contents · metadata · vector · id-seal · encoder     64 sub-keys each, for `aead.Sealer`
    ├── fresh-chunk · chunk · layout                         the same, of a sealed index
    ├── id-blind · tokens · sketch                           32 bytes each
    └── writer                                               X25519 private key, for `sessions`

    read key      what HKDF-Extract gives of the DEK: every key above follows from it
    write key     X25519 public key (32) ‖ id-blind (32) ‖ tokens (32) ‖ sketch (32)
                  ‖ encoder's 64 sub-keys

The wrapped DEK and, for users, wrapped read and write keys (`user_keys`) are the only key material
in the database. A wrong KEK is noticed by the comparison of the GCM tag alone, which OpenSSL does
in constant time (CRYPTO_memcmp): how long a rejection takes says nothing about the key.
"""

import os
import threading
from functools import cached_property, partial
from typing import Self
from uuid import UUID

from cachetools import LRUCache
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.crypto import aead, hkdf, sessions
from app.errors import DataCorrupted, Forbidden, InvalidInput, KeyRejected

KEY_BYTES = 32

# Each is one session key, derived and kept: a search among rows of many sessions asks for the same
# ones again.
_MAX_SESSIONS = 1024
_WRITE_KEY_BYTES = sessions.PUBLIC_BYTES + 3 * KEY_BYTES + aead.KEY_MATERIAL_BYTES
_WRAPPED_BYTES = aead.OVERHEAD_BYTES + KEY_BYTES
_KEY_ID_BYTES = 6
_ROOT_KEY_ID_BYTES = 4
# By version.
_WRAP_LABELS = {b"\x01": b"sealdex/v1/dek", b"\x02": b"sealdex/v2/dek"}
_VERSION = b"\x02"


def parse_index_key(text: str) -> bytes:
    """Read 64 hex digits of either case as 32 bytes. Raises `InvalidInput`."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    # fromhex skips white space, so the length of the text counts too.
    if len(text) != 2 * KEY_BYTES or len(key) != KEY_BYTES:
        raise InvalidInput("index_key must be 32 bytes (64 hex digits)")
    return key


def generate_dek() -> bytes:
    """Draw a new random data key."""
    return os.urandom(KEY_BYTES)


def wrap_dek(kek: bytes, dek: bytes, index_id: UUID) -> bytes:
    """Wrap `dek` under `kek`, bound to the index: 61 bytes, different each time."""
    nonce = os.urandom(aead.NONCE_BYTES)
    aad = _WRAP_LABELS[_VERSION] + index_id.bytes
    return _VERSION + nonce + _wrapper(kek).encrypt(nonce, dek, aad)


def unwrap_dek(kek: bytes, wrapped: bytes, index_id: UUID) -> bytes:
    """Unwrap the data key.

    Raises `KeyRejected` when `kek` is not the key that wrapped it for this index.
    """
    if len(wrapped) != _WRAPPED_BYTES or wrapped[:1] not in _WRAP_LABELS:
        raise DataCorrupted("the stored data key of the index has an unknown format")
    nonce, ciphertext = wrapped[1 : aead.HEADER_BYTES], wrapped[aead.HEADER_BYTES :]
    try:
        return _wrapper(kek).decrypt(nonce, ciphertext, _WRAP_LABELS[wrapped[:1]] + index_id.bytes)
    except InvalidTag as error:
        raise KeyRejected("the index key does not open this index") from error


def demands_header(wrapped: bytes) -> bool:
    """Whether an index with this wrapped data key has a sealed header; true only if it unwraps."""
    return wrapped[:1] == _VERSION


def key_id(kek: bytes, index_id: UUID) -> str:
    """Return what tells index keys apart in the audit log: 12 hex digits, different for each index.

    It confirms a guessed KEK, as the wrapped DEK beside it in the database does; a KEK has 256
    random bits.
    """
    return hkdf.expand(hkdf.extract(index_id.bytes, kek), "key-id", _KEY_ID_BYTES).hex()


def root_key_id(root_key: str) -> str | None:
    """Return what tells root keys apart in the audit log: 8 hex digits.

    None for a key that could be guessed, that is for any but those of `sealdex keygen`: with the
    digest of a word the database's owner could test guesses.
    """
    try:
        key = parse_index_key(root_key)
    except InvalidInput:
        return None
    return hkdf.expand(hkdf.extract(b"", key), "root-key-id", _ROOT_KEY_ID_BYTES).hex()


def _wrapper(kek: bytes) -> AESGCM:
    """AES-256-GCM under the KEK: AESGCM would take 16 bytes too, and quietly be AES-128."""
    if len(kek) != KEY_BYTES:
        raise InvalidInput("index_key must be 32 bytes (64 hex digits)")
    return AESGCM(kek)


class _SessionCiphers:
    """What opens values that writers sealed, derived when first asked for and then kept.

    Safe to share between threads. This class knows nothing of `IndexKeys`: two objects that hold
    each other live until the garbage collector comes, long after the keys were to be forgotten.
    """

    def __init__(self, pseudorandom_key: bytes, index_id: UUID) -> None:
        self._pseudorandom_key = pseudorandom_key
        self._index_id = index_id
        self._sessions: LRUCache[bytes, sessions.Session] = LRUCache(_MAX_SESSIONS)
        self._ciphers: LRUCache[tuple[str, bytes], AESGCM] = LRUCache(_MAX_SESSIONS)
        self._lock = threading.Lock()

    @cached_property
    def private_key(self) -> bytes:
        """X25519 private key of the index."""
        return hkdf.expand(self._pseudorandom_key, "writer")

    def cipher(self, label: str, name: bytes) -> AESGCM:
        """Return the cipher of a column in the session called `name`. Raises `DataCorrupted`."""
        with self._lock:
            cipher = self._ciphers.get((label, name))
            if cipher is None:
                cipher = self._ciphers[label, name] = AESGCM(self._session(name).key(label))
            return cipher

    def _session(self, name: bytes) -> sessions.Session:
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = sessions.enter(self.private_key, name, self._index_id)
        return session


class IndexKeys:
    """Every key of one index, derived from its data key when first used and then kept.

    A query needs the sealers of vectors and ids only; deriving and setting up each costs up to 0.15
    ms.
    """

    def __init__(
        self, pseudorandom_key: bytes, index_id: UUID, *, demands_header: bool = True
    ) -> None:
        """`demands_header` is what the wrapped key has said from which these keys come."""
        self.index_id = index_id
        self.demands_header = demands_header
        self._pseudorandom_key = pseudorandom_key
        self._sessions = _SessionCiphers(pseudorandom_key, index_id)

    @classmethod
    def derive(cls, dek: bytes, index_id: UUID, *, demands_header: bool = True) -> Self:
        """Derive the keys of the index whose data key is `dek`."""
        return cls(hkdf.extract(index_id.bytes, dek), index_id, demands_header=demands_header)

    def __repr__(self) -> str:
        return f"IndexKeys(index_id={self.index_id})"

    def read_key(self) -> bytes:
        """Return what opens, and so also seals, all values of the index (32 bytes)."""
        return self._pseudorandom_key

    def write_key(self) -> bytes:
        """Return what `WriterKeys` takes: enough to write items and to delete them by id."""
        encoder = hkdf.expand(self._pseudorandom_key, "encoder", aead.KEY_MATERIAL_BYTES)
        public = sessions.public_bytes(self._sessions.private_key)
        return public + self.blind_key + self.token_key + self.sketch_key + encoder

    @cached_property
    def contents(self) -> aead.Sealer:
        """Seals contents."""
        return self._sealer("contents")

    @cached_property
    def metadata(self) -> aead.Sealer:
        """Seals metadata."""
        return self._sealer("metadata")

    @cached_property
    def vectors(self) -> aead.Sealer:
        """Seals exact vectors."""
        return self._sealer("vector")

    @cached_property
    def ids(self) -> aead.Sealer:
        """Seals ids."""
        return self._sealer("id-seal")

    @cached_property
    def parameters(self) -> aead.Sealer:
        """Seals the encoder's parameters and the metadata schema, at their levels of `aead`."""
        return self._sealer("encoder")

    @cached_property
    def fresh_chunks(self) -> aead.Sealer:
        """Seals the chunks of entries that writers add to a sealed index."""
        return self._sealer("fresh-chunk")

    @cached_property
    def chunks(self) -> aead.Sealer:
        """Seals the chunks of the lists of a sealed index; a session's do not open."""
        return self._readers_sealer("chunk")

    @cached_property
    def layout(self) -> aead.Sealer:
        """Seals centroids and directory of a sealed index; a session's do not open."""
        return self._readers_sealer("layout")

    @cached_property
    def blind_key(self) -> bytes:
        """Key of `tokens.item_key`."""
        return hkdf.expand(self._pseudorandom_key, "id-blind")

    @cached_property
    def token_key(self) -> bytes:
        """Key of the blind-index tokens of metadata."""
        return hkdf.expand(self._pseudorandom_key, "tokens")

    @cached_property
    def sketch_key(self) -> bytes:
        """Key of `sketch.Encoder`."""
        return hkdf.expand(self._pseudorandom_key, "sketch")

    def _sealer(self, label: str) -> aead.Sealer:
        key_material = hkdf.expand(self._pseudorandom_key, label, aead.KEY_MATERIAL_BYTES)
        return aead.Sealer(
            key_material, self.index_id, label, sessions=partial(self._sessions.cipher, label)
        )

    def _readers_sealer(self, label: str) -> aead.Sealer:
        key_material = hkdf.expand(self.read_key(), label, aead.KEY_MATERIAL_BYTES)
        return aead.Sealer(key_material, self.index_id, label)


class WriterKeys(IndexKeys):
    """The keys of someone who may write but not read: they seal, and open the encoder only."""

    def __init__(
        self,
        write_key: bytes,
        index_id: UUID,
        session: sessions.Session | None = None,
        *,
        demands_header: bool = True,
    ) -> None:
        """`write_key` is that of `IndexKeys.write_key`.

        A session may be used again; where none is given, a new one begins.
        """
        if len(write_key) != _WRITE_KEY_BYTES:
            raise DataCorrupted("the stored write key of a user has an unknown format")
        super().__init__(b"", index_id, demands_header=demands_header)
        self._write_key = write_key
        starts = (sessions.PUBLIC_BYTES + number * KEY_BYTES for number in range(3))
        self._keys = [write_key[start : start + KEY_BYTES] for start in starts]
        self.session = session or sessions.begin(write_key[: sessions.PUBLIC_BYTES], index_id)

    def read_key(self) -> bytes:
        """Refuse: it is not among the keys of a writer."""
        raise Forbidden("permission denied: this user has no key that reads")

    def write_key(self) -> bytes:
        """Return the key itself."""
        return self._write_key

    @cached_property
    def parameters(self) -> aead.Sealer:
        """Seals the encoder's parameters, as for everybody."""
        return aead.Sealer(self._write_key[-aead.KEY_MATERIAL_BYTES :], self.index_id, "encoder")

    @cached_property
    def blind_key(self) -> bytes:
        """Key of `tokens.item_key`."""
        return self._keys[0]

    @cached_property
    def token_key(self) -> bytes:
        """Key of the blind-index tokens of metadata."""
        return self._keys[1]

    @cached_property
    def sketch_key(self) -> bytes:
        """Key of `sketch.Encoder`."""
        return self._keys[2]

    def _sealer(self, label: str) -> aead.Sealer:
        return aead.Sealer(self.session.key(label), self.index_id, label, session=self.session.name)
