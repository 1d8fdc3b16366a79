"""Bytes in, bytes out: keys, sealed values, blinded ids. `README.md` is the specification."""

from app.crypto import aead, keys, sessions, tokens, user_keys

__all__ = ["aead", "keys", "sessions", "tokens", "user_keys"]
