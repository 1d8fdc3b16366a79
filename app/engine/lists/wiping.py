"""Arrays that are overwritten with zeros when the last who uses them lets them go.

An array refers to the buffer that it lies in, and so does every part of the array. So a search
leases what it scans by holding it, and nobody has to count leases.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class _Wiped(bytearray):
    """Bytes that are zeros before their memory is given back."""

    def __del__(self) -> None:
        self[:] = bytes(len(self))


def wiped_copies(arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Return read-only copies of `arrays`, in one buffer that is wiped in the end."""
    starts = np.cumsum([0, *(_aligned(array.nbytes) for array in arrays)]).tolist()
    buffer = _Wiped(starts[-1])
    copies = []
    for array, start in zip(arrays, starts, strict=False):
        copy = np.frombuffer(buffer, array.dtype, array.size, start).reshape(array.shape)
        copy[...] = array
        copy.flags.writeable = False
        copies.append(copy)
    return copies


def _aligned(n_bytes: int) -> int:
    """Return where the next array may begin: at a multiple of eight bytes."""
    return -(-n_bytes // 8) * 8
