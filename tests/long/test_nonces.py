"""Nonces never repeat: ten million seals of one column, by `make test-long ARGS='-k nonces'`."""

import os
import uuid

import numpy as np

from app.crypto import aead, keys
from app.domain import ITEM_KEY_BYTES

N_SEALS = int(os.environ.get("SEALDEX_TEST_SEALS", "10_000_000"))
_BATCH = 10_000
ITEM_KEY = bytes(ITEM_KEY_BYTES)


def nonce_of(sealed: bytes) -> bytes:
    return sealed[1 : 1 + aead.NONCE_BYTES]


def test_nonces_never_repeat() -> None:
    """Half of the values sealed one by one, half in batches, by one sealer and under one sub-
    key."""
    sealer = keys.IndexKeys.derive(bytes(32), uuid.UUID(int=1)).vectors
    rows = np.zeros((_BATCH, 1), np.float32)
    nonces = bytearray()
    for _ in range(N_SEALS // _BATCH // 2):
        nonces += b"".join(map(nonce_of, sealer.seal_rows([ITEM_KEY] * _BATCH, rows)))
        nonces += b"".join(nonce_of(sealer.seal(ITEM_KEY, b"")) for _ in range(_BATCH))
    n_nonces = len(nonces) // aead.NONCE_BYTES
    different = np.unique(np.frombuffer(nonces, f"V{aead.NONCE_BYTES}"))
    print(f"{n_nonces:,} seals, {n_nonces - len(different):,} nonces repeated")
    assert n_nonces == N_SEALS
    assert len(different) == n_nonces
