"""HKDF-SHA256 (RFC 5869) with this service's labels: a key from a key and a label.

A label says what the derived key is for. Every label has one purpose and every purpose one label;
the prefix carries the version, so a later format derives other keys from the same data key.
"""

import hmac

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

LABEL_PREFIX = b"sealdex/v1/"


def extract(salt: bytes, key_material: bytes) -> bytes:
    """Pseudorandom key of 32 bytes, RFC 5869 section 2.2."""
    return hmac.digest(salt, key_material, "sha256")


def expand(key: bytes, label: str, n_bytes: int = 32) -> bytes:
    """First `n_bytes` of the output for `label`, RFC 5869 section 2.3; `key` is uniform."""
    return HKDFExpand(hashes.SHA256(), n_bytes, LABEL_PREFIX + label.encode("ascii")).derive(key)
