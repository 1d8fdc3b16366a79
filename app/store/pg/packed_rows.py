"""Candidates as one row: a row for each would be a message, an allocation and a tuple for each.

For a thousand candidates that takes as long as scanning for them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.domain import INT32, ITEM_KEY_BYTES, Candidates, Joined
from app.store.pg.adapters import PLACE_BYTES

# PostgreSQL makes no value larger than 1 GB, so that very many candidates come as several rows.
_VALUE_BYTES = 64 * 1024 * 1024


def _lengths_and_values(column: str) -> str:
    # A sealed value is never empty, so an empty one tells NULL.
    return (
        f"string_agg(int4send(coalesce(octet_length({column}), 0)), ''), string_agg({column}, '')"
    )


KEYS = "string_agg(item_key, '')"
CANDIDATES = f"{KEYS}, {_lengths_and_values('sealed_id')}, {_lengths_and_values('sealed_vector')}"
CANDIDATES_AND_METADATA = f"{CANDIDATES}, {_lengths_and_values('sealed_metadata')}"


def n_together(dimension: int | None) -> int:
    """Return how many candidates with vectors of `dimension` numbers may come as one row."""
    return max(1, _VALUE_BYTES // (8 * (dimension or 1)))


def in_parts(dimension: int | None, limit: int) -> tuple[str, str]:
    """Return a column and a clause that make several rows of `limit` candidates where they are too much for one."""
    most = n_together(dimension)
    return (
        ("", "")
        if limit <= most
        else (f", (row_number() OVER () - 1) / {most} AS part", "GROUP BY part")
    )


def unpacked(item_keys: bytes | None, *columns: bytes | None) -> Candidates:
    """Return the candidates of a row of `CANDIDATES` or `CANDIDATES_AND_METADATA`; of none, all is NULL."""
    lengths, values = columns[::2], columns[1::2]
    joined = [
        Joined(value or b"", length or b"") for length, value in zip(lengths, values, strict=True)
    ]
    return Candidates(keys(item_keys), *joined)


def keys(joined: bytes | None) -> list[bytes]:
    """Return the item keys of a value of `KEYS`."""
    return _cut(joined or b"", ITEM_KEY_BYTES)


def places(joined: bytes | None) -> list[bytes]:
    """Return the places of rows that `tidsend` has written one after the other."""
    return _cut(joined or b"", PLACE_BYTES)


def _cut(joined: bytes, width: int) -> list[bytes]:
    cut: list[bytes] = np.frombuffer(joined, f"V{width}").tolist()
    return cut


def numbers(data: bytes | None) -> NDArray[np.int32]:
    """Return the numbers that `int4send` has written one after the other."""
    return np.frombuffer(data or b"", INT32)


def together(parts: Sequence[Candidates]) -> Candidates:
    """Return the candidates of all `parts`."""
    if len(parts) == 1:
        return parts[0]
    metadata = [part.sealed_metadata for part in parts if part.sealed_metadata is not None]
    return Candidates(
        [item_key for part in parts for item_key in part.item_keys],
        [sealed for part in parts for sealed in part.sealed_ids],
        [sealed for part in parts for sealed in part.sealed_vectors],
        [sealed for part in metadata for sealed in part] if metadata else None,
    )
