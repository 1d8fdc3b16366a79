"""Blinded ids and metadata: what the database sees of ids, and of values to search by.

An item key is deterministic, so that the same id finds the same row, and keyed, so that nobody
without the index key can test a guessed id. It is a PRF output cut to 16 bytes: among 2^32 ids of
one index two collide with probability 2^-65.

A token of the blind index is a PRF output cut to 8 bytes. Equal values of a field have equal tokens
within an index, which is what makes them searchable, and what they leak. Two different values
collide seldom (2^-33 among 2^16 values) and at no harm: whatever a token has found is checked on
the opened metadata.
"""

from collections.abc import Callable, Iterable

from app.crypto.prf import Prf
from app.domain import ITEM_KEY_BYTES

TOKEN_BYTES = 8


def item_key(blind_key: bytes, item_id: str) -> bytes:
    """First 16 bytes of HMAC-SHA256 (RFC 2104) of the id in UTF-8: the key of the item's row."""
    return item_keys(blind_key, [item_id])[0]


def item_keys(blind_key: bytes, ids: Iterable[str]) -> list[bytes]:
    """Item key of each id, in the same order."""
    digest = Prf(blind_key).digest
    return [digest(item_id.encode())[:ITEM_KEY_BYTES] for item_id in ids]


def tokenizer(token_key: bytes) -> Callable[[bytes], bytes]:
    """Return a function from a term of metadata to its token: `token` for many terms."""
    digest = Prf(token_key).digest
    return lambda message: digest(message)[:TOKEN_BYTES]


def token(token_key: bytes, message: bytes) -> bytes:
    """First 8 bytes of HMAC-SHA256 of a term of metadata: a bigint of the blind index."""
    return tokenizer(token_key)(message)
