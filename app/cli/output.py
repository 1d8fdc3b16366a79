"""What the commands print: tables for people, JSON for scripts, progress on stderr."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import TaskProgressColumn as Rate


def print_json(document: Any) -> None:
    """Print one JSON document, indented."""
    print(msgspec.json.format(msgspec.json.encode(document)).decode())


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print columns as wide as their longest text; numbers to the right."""
    texts = [
        list(headings),
        *[["" if value is None else str(value) for value in row] for row in rows],
    ]
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


@contextmanager
def progress(
    what: str, total: int | None, *, show: bool, start: int = 0
) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr with rate and time left while the block runs, and give what moves it on."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(show_speed=True),
        TimeRemainingColumn(),
    )
    is_terminal = sys.stderr.isatty()
    with Progress(
        *columns, console=Console(stderr=True), disable=not (show and is_terminal), transient=True
    ) as bar:
        task = bar.add_task(what, total=total, completed=start)
        yield lambda steps: bar.advance(task, steps)
