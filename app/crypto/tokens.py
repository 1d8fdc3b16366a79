"""Blinded ids: what the database sees of an item's id.

An item key is deterministic, so that the same id finds the same row, and keyed, so that nobody without the index
key can test a guessed id. It is a PRF output cut to 16 bytes: among 2^32 ids of one index two collide with
probability 2^-65.
"""

import hmac
from collections.abc import Iterable

ITEM_KEY_BYTES = 16


def item_key(blind_key: bytes, item_id: str) -> bytes:
    """First 16 bytes of HMAC-SHA256 (RFC 2104) of the id in UTF-8: primary key and lookup key of its row."""
    return hmac.digest(blind_key, item_id.encode(), "sha256")[:ITEM_KEY_BYTES]


def item_keys(blind_key: bytes, ids: Iterable[str]) -> list[bytes]:
    """Item key of each id, in the same order."""
    return [item_key(blind_key, item_id) for item_id in ids]
