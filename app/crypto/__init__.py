"""Bytes in, bytes out: keys, sealed values, blinded ids, the keyed sketch. `README.md` is the specification."""

from app.crypto import aead, keys, sessions, sketch, tokens, user_keys

__all__ = ["aead", "keys", "sessions", "sketch", "tokens", "user_keys"]
