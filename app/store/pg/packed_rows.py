"""Candidates as one row: a row for each would be a message, an allocation and a tuple for each.

For a thousand candidates that takes as long as scanning for them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.domain import INT32, ITEM_KEY_BYTES, Candidates, Joined
from app.store.pg.adapters import PLACE_BYTES

# PostgreSQL makes no value larger than 1 GB, so that very many candidates come as several rows.
_VALUE_BYTES = 64 * 1024 * 1024


def _lengths_and_values(column: str, where: str = "") -> str:
    # A sealed value is never empty, so an empty one tells NULL.
    lengths = f"string_agg(int4send(coalesce(octet_length({column}), 0)), '')"
    return f"{lengths}{where}, string_agg({column}, ''){where}"


COLUMNS = "item_key, sealed_id, sealed_vector, sealed_metadata"
KEYS = "string_agg(item_key, '')"
KEYS_AND_METADATA = f"{KEYS}, {_lengths_and_values('sealed_metadata')}"


def candidates(condition: str | None = None, *, with_metadata: bool) -> str:
    """Return the columns that join candidates to one row, of those that meet a condition."""
    where = f" FILTER (WHERE {condition})" if condition else ""
    names = ["sealed_id", "sealed_vector", *(["sealed_metadata"] if with_metadata else [])]
    return ", ".join([KEYS + where, *(_lengths_and_values(name, where) for name in names)])


CANDIDATES_AND_METADATA = candidates(with_metadata=True)


def n_together(dimension: int | None) -> int:
    """Return how many candidates with vectors of `dimension` numbers may come as one row."""
    return max(1, _VALUE_BYTES // (8 * (dimension or 1)))


def in_parts(dimension: int | None, limit: int) -> tuple[str, str]:
    """Return a column and a clause that divide `limit` candidates into rows of a fair size."""
    most = n_together(dimension)
    return (
        ("", "")
        if limit <= most
        else (f", (row_number() OVER () - 1) / {most} AS part", "GROUP BY part")
    )


def unpacked(item_keys: bytes | None, *columns: bytes | None) -> Candidates:
    """Return the candidates of a row of `candidates`; if there are none, all is NULL."""
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


def metadata(item_keys: bytes | None, lengths: bytes | None, values: bytes | None) -> list[Any]:
    """Return keys and sealed metadata, or None, of a row of `KEYS_AND_METADATA`."""
    sealed = Joined(values or b"", lengths or b"")
    return [(key, one or None) for key, one in zip(keys(item_keys), sealed, strict=True)]


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


def chosen(stored: Candidates, places: Sequence[int]) -> Candidates:
    """Return the candidates at some places among others."""
    metadata = stored.sealed_metadata
    return Candidates(
        [stored.item_keys[place] for place in places],
        [stored.sealed_ids[place] for place in places],
        [stored.sealed_vectors[place] for place in places],
        None if metadata is None else [metadata[place] for place in places],
    )
