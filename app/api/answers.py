"""Long answers: encoded in a thread and in slices, and never longer than the settings allow.

The encoder holds the interpreter's lock for as long as one call takes, so a thread alone would not
let anybody else go on.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec

from app.errors import TooLarge
from app.observe.stages import timed

# Encoding so many short elements takes a millisecond, for which the event loop may stand still.
FEW = 1_000
_SLICE = 250


class Encoding:
    """Encodes the lists of one answer, which have at most `limit` bytes together."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._n_bytes = 0

    @timed("encode")
    def of(self, elements: Iterable[Any]) -> msgspec.Raw:
        """Return `elements` as a JSON list. Raises `TooLarge` as soon as there are too many."""
        parts = [self._slice(some) for some in _sliced(elements)]
        return msgspec.Raw(b"[" + b",".join(parts) + b"]")

    def _slice(self, elements: Sequence[Any]) -> bytes:
        part = msgspec.json.encode(elements)[1:-1]
        self.count(len(part))
        return part

    def count(self, n_bytes: int) -> None:
        """Count what is in the answer. Raises `TooLarge`."""
        self._n_bytes += n_bytes
        check_length(self._n_bytes, self._limit)


def check_length(n_bytes: int, limit: int) -> None:
    """Raise `TooLarge` for an answer of more than `limit` bytes."""
    if n_bytes > limit:
        raise TooLarge(
            f"the answer would have more than {limit} bytes: ask for less at a time, or raise "
            "SEALDEX_MAX_ANSWER_BYTES"
        )


def _sliced(elements: Iterable[Any]) -> Iterator[Sequence[Any]]:
    left = iter(elements)
    while some := list(islice(left, _SLICE)):
        yield some
