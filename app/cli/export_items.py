"""`sealdex export`: write all items of an index of a running service as JSON, one a line."""

import argparse
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any

import msgspec

from app.cli import private_files, remote
from app.cli.output import print_json, progress
from app.cli.remote import Remote
from app.configuration import Configuration

_BATCH = 500
_STDOUT = "-"


def export_items(options: argparse.Namespace, configuration: Configuration) -> int:
    """Write all items as JSON, one a line: id, vector, contents and metadata."""
    return remote.run(_export, options, configuration)


async def _export(index: Remote, options: argparse.Namespace) -> int:
    ids: list[str] = (await index.post("vectors/list_ids"))["ids"]
    n_written = 0
    with (
        _output(options.output) as stream,
        progress("exporting", len(ids), show=not options.json) as advance,
    ):
        async for item in _items(index, ids, advance):
            stream.write(msgspec.json.encode(item) + b"\n")
            n_written += 1
        stream.flush()
    _report(index, options, n_written)
    return 0


async def _items(
    index: Remote, ids: list[str], advance: Callable[[int], None]
) -> AsyncIterator[dict[str, Any]]:
    """Yield the items with these ids that are still there; `advance` is told how many were read."""
    for start in range(0, len(ids), _BATCH):
        part = ids[start : start + _BATCH]
        include = ["vector", "contents", "metadata"]
        found = await index.post("vectors/get", ids=part, include=include)
        for item in found["results"]:
            yield _without_blanks(item)
        advance(len(part))


def _without_blanks(item: dict[str, Any]) -> dict[str, Any]:
    """Return `item` without contents and metadata that it does not have."""
    return {name: value for name, value in item.items() if value not in ("", {}) or name == "id"}


def _output(path: str) -> AbstractContextManager[IO[bytes]]:
    """Return what is written to: stdout, or a file that only this user can read."""
    if path == _STDOUT:
        return nullcontext(sys.stdout.buffer)
    return private_files.new_file(Path(path), "--output")


def _report(index: Remote, options: argparse.Namespace, n_written: int) -> None:
    if options.output == _STDOUT:
        return
    if options.json:
        print_json({"index": index.name, "exported": n_written})
    else:
        print(f"Exported {n_written} items of '{index.name}' to {options.output}")
