"""The noise of stored sketches: which bits of an item's sketch are flipped.

    seed    first 12 bytes of HMAC-SHA256(flip-seed key, item key (16) ‖ vector (d float32, little-endian))
    coins   AES-256-CTR keystream under the flip-coins key, counter blocks seed (12) ‖ counter (4, big-endian, from 0),
            read as 16-bit little-endian words, one a bit of the sketch
    flip    bit i is flipped if and only if word i < round(noise · 65,536)

The seed is a function of item key and vector and of nothing else. The same item stored again gets
the same flips: whoever collects old versions of a row has nothing to average away. The same vector
under another id gets others. The version and the parameters of the encoder are deliberately not in
it: re-encoding must not toss new coins either, as two sketches of one vector with independent flips
say more than one.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from app.crypto import hkdf
from app.crypto.prf import Prf
from app.domain import Matrix, Sketches

SEED_BYTES = 12
COIN_RANGE = 1 << 16

_BLOCK_BYTES = 16
_COINS_A_BLOCK = 8


class Flips:
    """Flips each bit of a sketch of `bits` bits with probability `noise`."""

    def __init__(self, seed_key: bytes, coin_key: bytes, bits: int, noise: float) -> None:
        self._seeds = Prf(seed_key)
        self._coin_key = coin_key
        self._threshold = round(noise * COIN_RANGE)
        self._n_blocks = bits // _COINS_A_BLOCK

    @classmethod
    def derive(cls, sketch_key: bytes, bits: int, noise: float) -> Self:
        """Derive the flips of the index whose sketch key is `sketch_key`."""
        seed_key = hkdf.expand(sketch_key, "sketch/flip-seed")
        coin_key = hkdf.expand(sketch_key, "sketch/flip-coins")
        return cls(seed_key, coin_key, bits, noise)

    def mask(self, vectors: Matrix, item_keys: Sequence[bytes]) -> Sketches:
        """One bit a bit of each item's sketch, packed: 1 where it is to be flipped."""
        if not self._threshold:
            return np.zeros((len(item_keys), self._n_blocks), np.uint8)
        return np.packbits(self.coins(self.seeds(vectors, item_keys)) < self._threshold, axis=1)

    def seeds(self, vectors: Matrix, item_keys: Sequence[bytes]) -> NDArray[np.uint8]:
        """Seed of each item: shape (n, 12)."""
        data = np.ascontiguousarray(vectors, "<f4").tobytes()
        width = len(data) // max(1, len(item_keys))
        digest = self._seeds.digest
        seeds = [
            digest(item_key + data[number * width : (number + 1) * width])[:SEED_BYTES]
            for number, item_key in enumerate(item_keys)
        ]
        return np.frombuffer(b"".join(seeds), np.uint8).reshape(-1, SEED_BYTES)

    def coins(self, seeds: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Coins of each seed (n, 12): shape (n, bits), from one call to AES.

        Counter mode is AES-ECB of the counter blocks; writing these out, a 32-bit word at a time,
        lets one call serve all items.
        """
        blocks = np.empty((len(seeds), self._n_blocks, _BLOCK_BYTES // 4), np.uint32)
        blocks[:, :, :3] = seeds.view(np.uint32)[:, None]
        blocks[:, :, 3] = np.arange(self._n_blocks, dtype=">u4").view(np.uint32)
        encryptor = Cipher(algorithms.AES(self._coin_key), modes.ECB()).encryptor()  # noqa: S305 (counters, not data)
        return np.frombuffer(
            encryptor.update(blocks.reshape(-1).view(np.uint8).data), "<u2"
        ).reshape(len(seeds), -1)
