"""A database small enough to be looked through: what transactions see of each other, step by step.

Whoever works on it is a coroutine that stops at each statement, so that a test decides who goes on,
and who is killed in the middle.
"""

from collections.abc import AsyncIterator, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from types import coroutine
from typing import Any

import numpy as np

from app.domain import Vector
from app.engine.lists.building import Rows
from app.engine.lists.merging import Tagged
from app.store.chunks import Change, ChunkRow, Known, LayoutRow, News
from app.store.indexes import StaleIndex


class Conflict(Exception):
    """Another transaction changed the same: PostgreSQL would end this one with an error."""


@coroutine
def pause() -> Generator[None, None, None]:
    """Let others go on."""
    yield


@dataclass
class State:
    """What is committed: rows of items, of chunks with their epochs, and of layouts."""

    items: dict[bytes, tuple[int, Vector]] = field(default_factory=dict)
    chunks: dict[bytes, tuple[ChunkRow, int | None]] = field(default_factory=dict)
    layouts: dict[int, LayoutRow] = field(default_factory=dict)
    retired: dict[int, Sequence[bytes]] = field(default_factory=dict)

    def copy(self) -> "State":
        return State(dict(self.items), dict(self.chunks), dict(self.layouts), dict(self.retired))

    @property
    def newest(self) -> LayoutRow:
        return self.layouts[max(self.layouts)]

    def news(self, known: Known) -> News:
        row = self.newest
        is_new = row.version != known.version
        first = row.first_epoch
        fresh = [
            each for each, epoch in self.chunks.values() if epoch is not None and epoch >= first
        ]
        pages = [self.chunks[name][0] for name in row.pages if name in self.chunks]
        return News(
            row if is_new else row._replace(pages=(), sealed_root=b""),
            [each.name for each in fresh],
            [each for each in fresh if each.name not in known.fresh],
            [page for page in pages if is_new and page.name not in known.pages],
        )


class Locks:
    """Advisory locks and locks of rows: held alone, or shared."""

    def __init__(self) -> None:
        self.alone: set[Any] = set()
        self.shared: dict[Any, int] = {}

    def is_free(self, lock: Any, *, for_sharing: bool = False) -> bool:
        return lock not in self.alone and (for_sharing or not self.shared.get(lock))

    async def wait(
        self, lock: Any, held: list[tuple[Any, bool]], *, to_share: bool = False
    ) -> None:
        while not self.is_free(lock, for_sharing=to_share):
            await pause()
        self.take(lock, held, to_share=to_share)

    def take(self, lock: Any, held: list[tuple[Any, bool]], *, to_share: bool = False) -> None:
        held.append((lock, to_share))
        if to_share:
            self.shared[lock] = self.shared.get(lock, 0) + 1
        else:
            self.alone.add(lock)

    def release(self, held: list[tuple[Any, bool]]) -> None:
        for lock, is_shared in held:
            if is_shared:
                self.shared[lock] -= 1
            else:
                self.alone.discard(lock)
        held.clear()


LAYOUT, ENCODER = "layout", "encoder"


class Transaction:
    """A `Snapshot`: with a `seen` state of its own, or what is committed at each statement."""

    def __init__(self, database: "Database", seen: State | None) -> None:
        self._database, self._seen = database, seen
        self.held: list[tuple[Any, bool]] = []
        self.changes: list[Change] = []

    @property
    def state(self) -> State:
        return self._seen or self._database.state

    async def own_layout(self) -> bool:
        await pause()
        if not self._database.locks.is_free(LAYOUT):
            return False
        self._database.locks.take(LAYOUT, self.held)
        return True

    async def news(self, known: Known) -> News:
        await pause()
        return self.state.news(known)

    async def by_names(self, names: Sequence[bytes]) -> Sequence[ChunkRow]:
        await pause()
        return [self.state.chunks[name][0] for name in names if name in self.state.chunks]

    async def tags(self, item_keys: Collection[bytes]) -> Mapping[bytes, int | None]:
        await pause()
        return {key: self.state.items[key][0] for key in item_keys if key in self.state.items}

    async def vectors(self, item_keys: Collection[bytes]) -> Mapping[bytes, Tagged]:
        await pause()
        return {key: Tagged(*self.state.items[key]) for key in item_keys if key in self.state.items}

    async def change(self, change: Change) -> None:
        await pause()
        if change.layout.version in self._database.state.layouts:
            raise Conflict
        self.changes.append(change)

    def commit(self) -> None:
        """Make the changes, all at once. Raises `Conflict`."""
        state = self._database.state
        for change in self.changes:
            gone = set(change.merged) - set(state.chunks)
            if (
                change.layout.version in state.layouts
                or gone
                or set(change.carried) - set(state.chunks)
            ):
                raise Conflict
        for change in self.changes:
            layout = change.layout
            state.layouts[layout.version] = layout
            state.retired[layout.version] = change.retired
            for name in change.merged:
                del state.chunks[name]
            for name in change.carried:
                state.chunks[name] = (state.chunks[name][0], layout.open_epoch)
            for row in change.chunks:
                state.chunks[row.name] = (row, None)
            for row in change.fresh:
                state.chunks[row.name] = (row, layout.open_epoch)


class Database:
    """A `Buildable` index, and what writers do to it."""

    def __init__(self) -> None:
        self.state = State()
        self.locks = Locks()

    async def first_epoch_in_use(self) -> int:
        await pause()
        layout = self.state.newest
        for epoch in range(layout.first_epoch, layout.open_epoch):
            await pause()
            if not self.locks.is_free(epoch):
                return epoch
        return layout.open_epoch

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Transaction]:
        await pause()
        transaction = Transaction(self, self.state.copy())
        try:
            yield transaction
            await pause()
            transaction.commit()
        finally:
            self.locks.release(transaction.held)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[Transaction]:
        transaction = Transaction(self, None)
        try:
            await self.locks.wait(LAYOUT, transaction.held)
            await self.locks.wait(ENCODER, transaction.held)
            yield transaction
            await pause()
            transaction.commit()
        finally:
            self.locks.release(transaction.held)

    async def rows(self) -> AsyncIterator[Rows]:
        items = sorted(self.state.items.items())
        for start in range(0, len(items), 4):
            await pause()
            part = items[start : start + 4]
            tags = np.array([tag for _, (tag, _) in part], np.int64)
            vectors = np.array([vector for _, (_, vector) in part])
            yield Rows([key for key, _ in part], tags, vectors)

    async def add(self, rows: Sequence[ChunkRow]) -> None:
        await pause()
        self.state.chunks |= {row.name: (row, None) for row in rows}

    async def share_epoch(self, held: list[tuple[Any, bool]], remembered: int) -> int:
        """As `store.chunks.share_epoch`."""
        while True:
            await pause()
            is_shared = self.locks.is_free(remembered, for_sharing=True)
            if is_shared:
                self.locks.take(remembered, held, to_share=True)
            await pause()
            epoch = self.state.newest.open_epoch
            if is_shared and epoch == remembered:
                return epoch
            remembered = epoch

    async def upsert(
        self, items: Mapping[bytes, tuple[int, Vector]], chunks: Sequence[ChunkRow], remembered: int
    ) -> None:
        """Write items and their entries. Raises `StaleIndex` for entries of older lists."""
        with self._locking() as held:
            await self.locks.wait(ENCODER, held, to_share=True)
            await pause()
            if any(row.generation != self.state.newest.generation for row in chunks):
                raise StaleIndex
            epoch = await self.share_epoch(held, remembered)
            for key in sorted(items):
                await pause()
                await self.locks.wait(key, held)
            await pause()
            self.state.items |= items
            self.state.chunks |= {row.name: (row, epoch) for row in chunks}

    async def delete(self, keys: Collection[bytes]) -> None:
        """Delete items."""
        with self._locking() as held:
            for key in sorted(keys):
                await pause()
                await self.locks.wait(key, held)
            for key in keys:
                self.state.items.pop(key, None)

    def sweep(self) -> None:
        """Delete what was retired, as after a minute in which nothing was changed."""
        for names in self.state.retired.values():
            for name in names:
                self.state.chunks.pop(name, None)
        self.state.retired.clear()
        self.state.layouts = {self.state.newest.version: self.state.newest}

    @contextmanager
    def _locking(self) -> Iterator[list[tuple[Any, bool]]]:
        held: list[tuple[Any, bool]] = []
        try:
            yield held
        finally:
            self.locks.release(held)
