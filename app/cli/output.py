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
    ProgressColumn,
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
    values = list(zip(*rows, strict=True)) or [()] * len(headings)
    columns = [_column(heading, column) for heading, column in zip(headings, values, strict=True)]
    for cells in zip(*columns, strict=True):
        print("  ".join(cells).rstrip())


def _column(heading: str, values: Sequence[object]) -> list[str]:
    """Return the texts of a column, all as wide as the longest of them."""
    texts = [heading, *("" if value is None else str(value) for value in values)]
    width = max(map(len, texts))
    are_numbers = any(isinstance(value, int | float) for value in values) and not any(
        isinstance(value, str) for value in values
    )
    return [text.rjust(width) if are_numbers else text.ljust(width) for text in texts]


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
    """Show a bar on stderr while the block runs, and give a function that moves the bar on."""
    is_shown = show and sys.stderr.isatty()
    console = Console(stderr=True)
    with Progress(*_columns(), console=console, disable=not is_shown, transient=True) as bar:
        task = bar.add_task(what, total=total, completed=start)
        yield lambda steps: bar.advance(task, steps)


def _columns() -> Iterator[ProgressColumn]:
    """Yield the parts of a bar: how far, how fast, how long still."""
    yield SpinnerColumn()
    yield TextColumn("{task.description}")
    yield BarColumn()
    yield MofNCompleteColumn()
    yield Rate(show_speed=True)
    yield TimeRemainingColumn()
