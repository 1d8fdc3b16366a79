"""Which entries there are, as pairs of item key and tag: sets that are compared with each other."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from app.engine.lists.entries import RECORD, Records

# A pair is the first three words of a record.
_N_WORDS = 3
# Of the 64-bit finalizer of MurmurHash3; keys and tags are random already.
_FACTOR = np.uint64(0xFF51AFD7ED558CCD)
_SHIFT = np.uint64(33)

_Words = NDArray[np.uint64]


class Pairs:
    """A set of pairs that grows."""

    def __init__(self) -> None:
        self._words: _Words = np.empty((0, _N_WORDS), np.uint64)
        self._hashes: _Words = np.empty(0, np.uint64)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self._words)

    def add(self, parts: Iterable[Records]) -> None:
        """Add the pairs of records."""
        words = np.concatenate([self._words, *map(_pairs, parts)])
        hashes = _hashes(words)
        order = np.argsort(hashes, kind="stable")
        self._words, self._hashes = words[order], hashes[order]

    def lacks(self, records: Records) -> NDArray[np.bool_]:
        """Return for each record whether its pair is not in the set.

        Of two pairs with one hash the second may seem not to be: to add such a pair again does no
        harm.
        """
        words = _pairs(records)
        if not len(self):
            return np.ones(len(words), np.bool_)
        places = np.searchsorted(self._hashes, _hashes(words)).clip(max=len(self) - 1)
        lacking: NDArray[np.bool_] = (self._words[places] != words).any(axis=1)
        return lacking


def _pairs(records: Records) -> _Words:
    return records.view(np.uint64).reshape(-1, RECORD.itemsize // 8)[:, :_N_WORDS]


def _hashes(words: _Words) -> _Words:
    hashes: _Words = words[:, 0] ^ (words[:, 1] * _FACTOR) ^ (words[:, 2] >> _SHIFT) ^ words[:, 2]
    return hashes * _FACTOR
