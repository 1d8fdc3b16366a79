"""Bytes in, bytes out: keys, sealed values, blinded ids and the keyed sketch. `README.md` here is the specification."""

from app.crypto import aead, keys, sketch, tokens

__all__ = ["aead", "keys", "sketch", "tokens"]
