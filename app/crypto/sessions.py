"""Sessions of writers: keys under which someone seals what only the index's own key opens.

The index has an X25519 key pair (x, X) (RFC 7748); x is derived from its data key. Who may write
but not read has only X. A session is an ephemeral pair (e, E) and the key that Diffie-Hellman
gives:

    session key    HKDF-Extract(salt = index UUID (16), input = X25519(e, X) (32) ‖ E (32) ‖ X (32))
    for a column   HKDF-Expand(session key, label) (32), without the 64 sub-keys

This is the key encapsulation of RFC 9180, section 4.1, with this service's labels. Every value
names its session by E (`aead`), and whoever holds x computes X25519(x, E). The writer forgets e as
soon as the session key is there; when it forgets the session key too, it can no longer open what it
sealed.
"""

from dataclasses import dataclass, field
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from app.crypto import hkdf
from app.errors import DataCorrupted

PUBLIC_BYTES = 32


@dataclass(frozen=True, slots=True)
class Session:
    """The key of a session, and E, its name."""

    name: bytes
    _key: bytes = field(repr=False)

    def key(self, label: str) -> bytes:
        """Return the key for a column (32 bytes)."""
        return hkdf.expand(self._key, label)


def public_bytes(private_key: bytes) -> bytes:
    """Return X (32) for x (32)."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def begin(public: bytes, index_id: UUID) -> Session:
    """Begin a session that seals to `public`, the X of an index."""
    ephemeral = X25519PrivateKey.generate()
    name = ephemeral.public_key().public_bytes_raw()
    return _session(ephemeral, public, name, public, index_id)


def enter(private_key: bytes, name: bytes, index_id: UUID) -> Session:
    """Return the session called `name`, for the holder of x.

    Raises `DataCorrupted` for a name that is no key.
    """
    own = X25519PrivateKey.from_private_bytes(private_key)
    return _session(own, name, name, own.public_key().public_bytes_raw(), index_id)


def _session(
    own: X25519PrivateKey, other: bytes, name: bytes, public: bytes, index_id: UUID
) -> Session:
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError as error:  # the all-zero secret of a point of small order
        raise DataCorrupted("a stored value names a session that cannot be") from error
    return Session(name, hkdf.extract(index_id.bytes, shared + name + public))
