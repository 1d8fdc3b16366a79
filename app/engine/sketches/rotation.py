"""A secret rotation that is fast to apply: keyed signs, permutations and Walsh-Hadamard transforms.

Ailon & Chazelle, *Approximate Nearest Neighbors and the Fast Johnson-Lindenstrauss Transform*, STOC
2006: their D is our `signs`, their H our `hadamard`, their d our `size`. Instead of their sparse
projection P come further rounds, as in the pseudo-random rotations of Andoni, Indyk, Laarhoven,
Razenshteyn & Schmidt, *Practical and Optimal LSH for Angular Distance*, NIPS 2015: x → H D_3 H D_2
H D_1 x. Ours has a keyed permutation before D_2 and D_3. Theirs is public; the signs and
permutations here are secret.

One block maps `size` numbers to `size` numbers. A sketch with more bits than `size` takes several
blocks, each with its own signs and permutations. Their bytes are one AES-256-CTR keystream (NIST SP
800-38A, all-zero first counter block), block after block, so that more blocks leave the first ones
as they were:

    block   signs of rounds 1, 2, 3 (3 · size/8)     a bit each, most significant first;
                                                     1 flips the sign
            words of rounds 2, 3    (2 · 8 · size)   64 bits each, little-endian; the
                                                     permutation sorts them, stably
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from app.domain import Matrix

N_ROUNDS = 3
# Vectors are padded to at least this. Blocks of 2 or 4 reach a handful of directions only, whatever
# their signs: measured on random unit vectors with d = 2, 512 bits, the true 10 nearest are in a
# pool of 200 for 8 % (size 2) and 100 % (size 256).
MIN_SIZE = 256


def keystream(key: bytes, n_bytes: int) -> NDArray[np.uint8]:
    """`n_bytes` of AES-256 in counter mode from an all-zero counter block. One key, one stream."""
    encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(encryptor.update(bytes(n_bytes)), np.uint8)


@lru_cache
def hadamard(order: int) -> Matrix:
    """Sylvester's Hadamard matrix, not scaled: entry (i, j) is -1 to the ones in i & j."""
    numbers = np.arange(order)
    parity = np.bitwise_count(numbers[:, None] & numbers) & 1
    matrix: Matrix = (1 - 2 * parity.astype(np.int8)).astype(np.float32)
    matrix.flags.writeable = False
    return matrix


@dataclass(frozen=True, slots=True)
class Rotation:
    """Signs (3, blocks, size, 1) and permutations (2, blocks · size), into all blocks at once."""

    size: int
    signs: NDArray[np.float32] = field(repr=False)
    permutations: NDArray[np.intp] = field(repr=False)

    @classmethod
    def derive(cls, key: bytes, dimension: int, n_outputs: int) -> Self:
        """Derive the rotation of vectors of `dimension` to at least `n_outputs` numbers."""
        size = max(MIN_SIZE, 1 << (dimension - 1).bit_length())
        n_blocks = -(-n_outputs // size)
        sign_bytes = N_ROUNDS * size // 8
        word_bytes = (N_ROUNDS - 1) * size * 8
        stream = keystream(key, n_blocks * (sign_bytes + word_bytes)).reshape(n_blocks, -1)
        bits = np.unpackbits(stream[:, :sign_bytes].reshape(n_blocks, N_ROUNDS, -1), axis=2)
        signs = (1 - 2 * bits.astype(np.int8)).astype(np.float32)
        words = (
            np.ascontiguousarray(stream[:, sign_bytes:])
            .view("<u8")
            .reshape(n_blocks, N_ROUNDS - 1, size)
        )
        orders = (
            np.argsort(words, axis=2, kind="stable") + size * np.arange(n_blocks)[:, None, None]
        )
        return cls(
            size,
            np.ascontiguousarray(signs.swapaxes(0, 1))[..., None],
            np.ascontiguousarray(orders.swapaxes(0, 1)).reshape(N_ROUNDS - 1, -1),
        )

    @property
    def n_outputs(self) -> int:
        """Numbers that come out for each vector."""
        return len(self.permutations[0])

    def rotate(self, columns: Matrix) -> Matrix:
        """Rotate the columns of (size, n): (blocks · size, n), size^1.5 times too long.

        Vectors are columns, so that each Hadamard factor is one wide matrix product and a
        permutation moves whole rows. Nothing is scaled: only signs are read from the result, and
        size^1.5 is far from overflow.
        """
        current: NDArray[np.float32] = self.signs[0] * columns
        spare = np.empty_like(current)
        current, spare = _transformed(current, spare)
        flat = (self.n_outputs, columns.shape[1])
        for signs, permutation in zip(self.signs[1:], self.permutations, strict=True):
            # "clip" because with "raise" numpy gathers into a buffer first; every number is in
            # range.
            np.take(
                current.reshape(flat), permutation, axis=0, out=spare.reshape(flat), mode="clip"
            )
            spare *= signs
            current, spare = _transformed(spare, current)
        return current.reshape(flat)


@lru_cache
def factors(size: int) -> tuple[int, ...]:
    """Powers of two, of at most 16 and as even as can be, whose product is `size`."""
    exponent = size.bit_length() - 1
    n_factors = -(-exponent // 4)
    return tuple(1 << (exponent + number) // n_factors for number in range(n_factors))


def _transformed(current: NDArray[np.float32], spare: NDArray[np.float32]) -> tuple[Matrix, Matrix]:
    """Walsh-Hadamard transform of `current` (blocks, size, n), and an array to reuse.

    It overwrites both arguments.

    H_ab is the Kronecker product of H_a and H_b, so that a vector written as X (a, b) is
    transformed by H_a X H_b: two small matrix products. Factors of 8 and 16 make the products small
    enough to save work over H_64 and still large enough for BLAS: at size 4,096 half the time of 64
    · 64 (measured).
    """
    shape = current.shape
    outer, inner = shape[0], shape[1]
    for factor in factors(shape[1]):
        inner //= factor
        if (
            inner * shape[2] == 1
        ):  # a single vector's last factor: one product, not `outer` of a matrix and a vector
            flat = (outer, factor)
            np.matmul(current.reshape(flat), hadamard(factor), out=spare.reshape(flat))
        else:
            stack = (outer, factor, inner * shape[2])
            np.matmul(hadamard(factor), current.reshape(stack), out=spare.reshape(stack))
        outer *= factor
        current, spare = spare, current
    return current, spare
