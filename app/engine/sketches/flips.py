"""The noise of stored sketches: which bits of an item's sketch are flipped.

    seed    first 12 bytes of AES-256(seed key, item key (16))
    coins   AES-256-CTR keystream under the coin key, counter blocks seed (12) ‖ counter (4,
            big-endian, from 0), read as 2 m little-endian words of 16 bits
    flip    bit i of value b is flipped if and only if word b · m + i < round(noise · 65,536)

So a coin belongs to an item, to a bit of its sketch and to the value of this bit, and is tossed
once for all time: permanent randomised response (Erlingsson, Pihur & Korolova, *RAPPOR*, CCS 2014).
A vector that is stored again after a small change keeps the coins of all bits that stay as they
are. Whoever collects old versions of a row has nothing to average away. Another id has other coins.
Vector, version and parameters of the encoder are deliberately not in the seed: an encoder that is
fitted again must not toss new coins.

Encoders of format 1 toss a coin for each bit by item key and vector (`VectorFlips`), which a change
of the vector's last bit tosses again. They are read until they are replaced.
"""

from collections.abc import Sequence

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


class BitFlips:
    """Flips each bit of a sketch of `bits` bits with probability `noise`, by item key and value."""

    def __init__(self, sketch_key: bytes, bits: int, noise: float) -> None:
        self._seed_key = hkdf.expand(sketch_key, "sketch/bit-seed")
        self._coin_key = hkdf.expand(sketch_key, "sketch/bit-coins")
        self._bits = bits
        self._threshold = round(noise * COIN_RANGE)

    def flip(self, sketches: Sketches, _: Matrix, item_keys: Sequence[bytes]) -> Sketches:
        """Return what to store for the sketches (n, bits / 8) of items, whatever their vectors."""
        if not self._threshold:
            return sketches
        is_flipped = coins(self._coin_key, self.seeds(item_keys), 2 * self._bits) < self._threshold
        masks = np.packbits(is_flipped, axis=1)
        of_zeros, of_ones = masks[:, : self._bits // 8], masks[:, self._bits // 8 :]
        return sketches ^ of_zeros ^ (sketches & (of_zeros ^ of_ones))

    def seeds(self, item_keys: Sequence[bytes]) -> NDArray[np.uint8]:
        """Seed of each item: shape (n, 12)."""
        blocks = np.frombuffer(_encrypted(self._seed_key, b"".join(item_keys)), np.uint8)
        return np.ascontiguousarray(blocks.reshape(-1, _BLOCK_BYTES)[:, :SEED_BYTES])


class VectorFlips:
    """Flips by item key and vector, as encoders of format 1 have them.

    The seed is the first 12 bytes of HMAC-SHA256(seed key, item key (16) ‖ vector (d little-endian
    float32)); word i of the coins is that of bit i.
    """

    def __init__(self, sketch_key: bytes, bits: int, noise: float) -> None:
        self._seeds = Prf(hkdf.expand(sketch_key, "sketch/flip-seed"))
        self._coin_key = hkdf.expand(sketch_key, "sketch/flip-coins")
        self._bits = bits
        self._threshold = round(noise * COIN_RANGE)

    def flip(self, sketches: Sketches, vectors: Matrix, item_keys: Sequence[bytes]) -> Sketches:
        """Return what to store for the sketches (n, bits / 8) of items with these `vectors`."""
        if not self._threshold:
            return sketches
        tossed = coins(self._coin_key, self.seeds(vectors, item_keys), self._bits)
        return sketches ^ np.packbits(tossed < self._threshold, axis=1)

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


def coins(key: bytes, seeds: NDArray[np.uint8], n_coins: int) -> NDArray[np.uint16]:
    """Coins of each seed (n, 12): shape (n, n_coins), from one call to AES.

    Counter mode is AES-ECB of the counter blocks; writing these out, a 32-bit word at a time, lets
    one call serve all items.
    """
    n_blocks = n_coins // _COINS_A_BLOCK
    blocks = np.empty((len(seeds), n_blocks, _BLOCK_BYTES // 4), np.uint32)
    blocks[:, :, :3] = seeds.view(np.uint32)[:, None]
    blocks[:, :, 3] = np.arange(n_blocks, dtype=">u4").view(np.uint32)
    encrypted = _encrypted(key, blocks.reshape(-1).view(np.uint8).data)
    return np.frombuffer(encrypted, "<u2").reshape(len(seeds), -1)


def _encrypted(key: bytes, blocks: bytes | memoryview) -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 (no data)
    return encryptor.update(blocks)
