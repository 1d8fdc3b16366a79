"""Entries: what a sealed index tells of its items without their rows.

An entry counts only if its tag is that of the item's row. It says where the item's point lies: by a
sketch (`sketching`), or exactly where there is room for the point itself.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.domain import ITEM_KEY_BYTES

# Item key and tag, which name the item; length and offset of the sketch, zero where there is none.
FIELDS = np.dtype(
    [
        ("item_key", f"V{ITEM_KEY_BYTES}"),
        ("tag", "<i8"),
        ("length", "<f4"),
        ("offset", "<f4"),
    ]
)

# Records are kept as bytes: numpy joins arrays with fields twenty times as slowly.
RECORD = np.dtype(f"V{FIELDS.itemsize}")

Records = NDArray[np.void]
Lists = NDArray[np.int32]
Words = NDArray[np.uint64]
Rows = NDArray[np.intp] | NDArray[np.bool_] | slice


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """Entries of n items: records and lists (n,), codes: sketches (n, m / 64) or points (n, d)."""

    records: Records
    lists: Lists
    codes: NDArray[Any]

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self.records)

    def __getitem__(self, rows: Rows) -> "Entries":
        """Return the entries at `rows`."""
        return Entries(self.records[rows], self.lists[rows], self.codes[rows])

    @property
    def is_exact(self) -> bool:
        """Whether the entries hold points instead of sketches."""
        return self.codes.dtype.kind == "f"


def fields(records: Records) -> NDArray[np.void]:
    """Return `records` with their `FIELDS`."""
    return records.view(FIELDS)


def joined(parts: Sequence[Entries]) -> Entries:
    """Return the entries of all `parts`: at least one, and all with the same codes."""
    return Entries(
        np.concatenate([part.records for part in parts]),
        np.concatenate([part.lists for part in parts]),
        np.concatenate([part.codes for part in parts]),
    )


def by_codes(parts: Iterable[Entries]) -> list[Entries]:
    """Return the entries of all `parts`, together as far as they have the same kind of codes."""
    kinds: dict[np.dtype[Any], list[Entries]] = {}
    for part in parts:
        if len(part):
            kinds.setdefault(part.codes.dtype, []).append(part)
    return [joined(kind) for kind in kinds.values()]


def by_lists(entries: Entries) -> Iterator[tuple[int, Entries]]:
    """Yield each list that `entries` are in, with its entries."""
    order = np.argsort(entries.lists, kind="stable")
    numbers, starts = np.unique(entries.lists[order], return_index=True)
    for number, rows in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
        yield number, entries[rows]


def keys(entries: Entries) -> list[bytes]:
    """Return the item key of each entry."""
    found: list[bytes] = fields(entries.records)["item_key"].tolist()
    return found
