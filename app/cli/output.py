"""What the commands print: tables for people, JSON for scripts, progress on stderr."""

from collections.abc import Sequence
from typing import Any

import msgspec


def print_json(document: Any) -> None:
    """Print one JSON document, indented."""
    print(msgspec.json.format(msgspec.json.encode(document)).decode())


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print columns as wide as their longest text; numbers to the right."""
    texts = [list(headings), *[["" if value is None else str(value) for value in row] for row in rows]]
    widths = [max(len(row[column]) for row in texts) for column in range(len(headings))]
    is_number = [
        any(isinstance(row[column], int | float) for row in rows)
        and not any(isinstance(row[column], str) for row in rows)
        for column in range(len(headings))
    ]
    for row in texts:
        cells = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, is_number, strict=True)
        ]
        print("  ".join(cells).rstrip())


def size(n_bytes: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1024:  # noqa: PLR2004  # a kilobyte
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TB"
