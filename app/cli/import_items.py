"""`sealdex import`: store the items of a file in an index of a running service.

A file beside the imported one, the checkpoint, says how many items are stored, so that an import
that was interrupted goes on where it was.
"""

import argparse
import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from app.cli import private_files, remote, sources
from app.cli.output import print_json, progress
from app.cli.remote import Refused, Remote
from app.configuration import Configuration

# Bodies are JSON: about 12 bytes a number. A batch is far below any limit, and large enough to be
# quick.
_BATCH_NUMBERS = 400_000
_NUMBERS_OF_AN_ITEM = 100
_MAX_BATCH = 2_000
_AT_A_TIME = 2
_CHECKPOINT_SUFFIX = ".sealdex-import"

_Batch = list[dict[str, Any]]


def import_items(options: argparse.Namespace, configuration: Configuration) -> int:
    """Upsert the items of a file. An import that was interrupted goes on where it was."""
    return remote.run(_import, options, configuration)


async def _import(index: Remote, options: argparse.Namespace) -> int:
    source = sources.open_source(Path(options.file), options.ids)
    checkpoint = _Checkpoint(Path(options.file), index)
    n_before = 0 if options.restart else checkpoint.read()
    with progress("importing", source.n_items, show=not options.json, start=n_before) as advance:
        sender = _Sender(index, checkpoint, n_before, advance)
        await sender.send(_batches(source, n_before))
    checkpoint.remove()
    n_items = sender.n_stored - n_before
    if options.json:
        print_json({"index": index.name, "imported": n_items, "resumed_after": n_before})
    else:
        before = f", after {n_before} before" if n_before else ""
        print(f"Imported {n_items} items into '{index.name}'{before}")
    return 0


class _Sender:
    """Sends batches, some at a time, and remembers how many items are stored."""

    def __init__(
        self,
        index: Remote,
        checkpoint: "_Checkpoint",
        n_stored: int,
        advance: Callable[[int], None],
    ) -> None:
        self.n_stored = n_stored
        self._index, self._checkpoint, self._advance = index, checkpoint, advance
        self._running: deque[tuple[int, asyncio.Task[dict[str, Any]]]] = deque()

    async def send(self, batches: Iterator[_Batch]) -> None:
        """Store all items. Raises `Refused`, saying which items are stored."""
        try:
            for batch in batches:
                await self._begin(batch)
            while self._running:
                await self._finish_oldest()
        except Refused as error:
            raise Refused(
                f"{error} (in the batch after item {self.n_stored}; the items before it are stored)"
            ) from error
        finally:
            await self._cancel()

    async def _begin(self, batch: _Batch) -> None:
        sending = asyncio.create_task(self._index.post("vectors/upsert", items=batch))
        self._running.append((len(batch), sending))
        await asyncio.sleep(0)
        if len(self._running) >= _AT_A_TIME:
            await self._finish_oldest()

    async def _finish_oldest(self) -> None:
        # Batches are acknowledged in order, so their number of items is all there is to remember.
        n_items, task = self._running.popleft()
        await task
        self.n_stored += n_items
        self._checkpoint.write(self.n_stored)
        self._advance(n_items)

    async def _cancel(self) -> None:
        tasks = [task for _, task in self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Checkpoint:
    """A file beside the imported one: how many of its items are stored in which index."""

    def __init__(self, path: Path, index: Remote) -> None:
        stat = path.stat()
        self._path = path.with_name(path.name + _CHECKPOINT_SUFFIX)
        self._what = {
            "url": index.url,
            "index": index.name,
            "size": stat.st_size,
            "changed_ns": stat.st_mtime_ns,
        }

    def read(self) -> int:
        """Return how many items are stored: 0 for another index, a changed file or another user."""
        try:
            found = msgspec.json.decode(private_files.own_bytes(self._path) or b"")
        except msgspec.DecodeError:
            return 0
        n_done = found.pop("n_done", 0) if isinstance(found, dict) else 0
        return n_done if found == self._what and isinstance(n_done, int) else 0

    def write(self, n_done: int) -> None:
        """Remember that the first `n_done` items are stored."""
        with private_files.new_file(self._path, "the checkpoint") as stream:
            stream.write(msgspec.json.encode({**self._what, "n_done": n_done}))

    def remove(self) -> None:
        """Forget: everything is stored."""
        self._path.unlink(missing_ok=True)


def _batches(source: sources.Source, start: int) -> Iterator[_Batch]:
    """Yield the items from number `start` on in batches of about the same size."""
    batch: _Batch = []
    n_numbers = 0
    for item in source.items(start):
        batch.append(item)
        n_numbers += len(item.get("vector") or ()) + _NUMBERS_OF_AN_ITEM
        if n_numbers >= _BATCH_NUMBERS or len(batch) >= _MAX_BATCH:
            yield batch
            batch, n_numbers = [], 0
    if batch:
        yield batch
