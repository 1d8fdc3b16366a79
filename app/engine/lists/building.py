"""Building lists anew from the rows, beside those in use, and the swap.

The rows are read in one snapshot, so that whatever entries were lost are made again. Writers and
merges go on with the old lists meanwhile. In rounds, each pair of key and tag that the old lists or
fresh chunks have is looked for in the new lists; where it is missing and the row still has this
tag, the entry is made from the row. The last round is made while nobody can write or merge, so when
it ends, every entry that counts is in the new lists, or the swap does not happen.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from itertools import compress
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from app.domain import Matrix, Vector
from app.engine.lists.entries import Entries, keys
from app.engine.lists.layout import Encoding, Geometry, Layout, first, read
from app.engine.lists.layout_format import Reference
from app.engine.lists.merging import Chunks, Run, Snapshot, sealed_lists
from app.engine.lists.pairs import Pairs
from app.engine.lists.placing import listed, records_of
from app.engine.lists.sealing import Sealing
from app.errors import DataCorrupted
from app.store.chunks import Change, ChunkRow, Known, LayoutRow

# Old chunks that are looked at together: some megabytes.
_CHUNKS_AT_A_TIME = 64
_MAX_ROUNDS = 5
# What the last round may have to place, while writers wait.
_FEW_ENTRIES = 1_000


class Rows(NamedTuple):
    """Items as their rows say: keys, tags (n,), vectors (n, d)."""

    item_keys: Sequence[bytes]
    tags: NDArray[np.int64]
    vectors: Matrix


class Buildable(Chunks, Protocol):
    """The chunks of an index whose lists can be built anew."""

    def rows(self) -> AsyncIterator[Rows]:
        """Yield all items, some thousands at a time, as of one moment."""

    async def add(self, rows: Sequence[ChunkRow]) -> None:
        """Add chunks that no layout uses yet."""

    def alone(self) -> AbstractAsyncContextManager[Snapshot]:
        """Begin a transaction while which nobody writes items or changes the layout."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is built: from lists that are read with `old` those of `geometry`, sealed with `new`.

    `points` are the new centroids (k, d), None for one list at the origin. Entries are exact when
    they hold the vectors themselves.
    """

    old: Sealing
    encoding: Encoding
    new: Sealing
    geometry: Geometry
    points: Matrix | None
    is_exact: bool


@dataclass(slots=True)
class Build:
    """Lists on their way: what is in them already, and what of the old ones was looked at.

    One whose swap has failed is not used again.
    """

    plan: Plan
    run: Run
    _lists: dict[int, list[Reference]] = field(default_factory=dict)
    _pairs: Pairs = field(default_factory=Pairs)
    _layout: Layout | None = None
    _fresh: Sequence[bytes] = ()
    _seen: set[bytes] = field(default_factory=set)

    async def build(self, chunks: Buildable) -> None:
        """Make the new lists of all rows, and catch up with what was written meanwhile."""
        parts = [await self._entries(rows) async for rows in chunks.rows()]
        await chunks.add(await self._sealed(parts))
        for _ in range(_MAX_ROUNDS):
            async with chunks.snapshot() as snapshot:
                missing = await self._missing(snapshot)
            await chunks.add(await self._sealed([missing]))
            if len(missing) <= _FEW_ENTRIES:
                break

    async def swap(
        self, chunks: Buildable, also: Callable[[Snapshot], Awaitable[None]] | None = None
    ) -> None:
        """Put the new lists in the place of the old ones, and do `also` in the same transaction."""
        async with chunks.alone() as snapshot:
            rows = await self._sealed([await self._missing(snapshot)])
            await snapshot.change(await self.run(lambda: self._change(rows)))
            if also is not None:
                await also(snapshot)

    async def _missing(self, snapshot: Snapshot) -> Entries:
        """Return entries for what counts of the old lists, and is not in the new ones."""
        wanted: set[bytes] = set()
        async for entries in self._unseen(snapshot):
            wanted.update(keys(entries[self._pairs.lacks(entries.records)]))
        tags = await snapshot.tags(wanted)
        current = {key: tag for key, tag in tags.items() if tag is not None}
        records = records_of(list(current), np.array(list(current.values()), np.int64))
        lacking = self._pairs.lacks(records).tolist()
        found = await snapshot.vectors(list(compress(current, lacking)))
        rows = [(key, row.tag, row.vector) for key, row in found.items() if row.tag is not None]
        return await self._entries(_columns(rows, self.plan.encoding.space.dimension))

    async def _unseen(self, snapshot: Snapshot) -> AsyncIterator[Entries]:
        """Yield what the old lists and fresh chunks hold that was not looked at before."""
        before, old = self._layout, self.plan.old
        known = Known(fresh=self._fresh)
        if before is not None:
            known = Known(before.row.version, before.page_names(), self._fresh)
        news = await snapshot.news(known)
        layout = await self.run(lambda: read(old, self.plan.encoding, news, before))
        self._layout, self._fresh = layout, news.fresh
        for row in news.chunks:
            yield old.open_fresh(row)
        names = [chunk.name for chunk in layout.chunks() if chunk.name not in self._seen]
        for start in range(0, len(names), _CHUNKS_AT_A_TIME):
            part = names[start : start + _CHUNKS_AT_A_TIME]
            rows = await snapshot.by_names(part)
            if len(rows) != len(part):
                raise DataCorrupted("a chunk of the index is missing")
            for row in rows:
                yield old.open_listed(row)
        self._seen.update(names)

    async def _entries(self, rows: Rows) -> Entries:
        plan = self.plan

        def made() -> Entries:
            records = records_of(rows.item_keys, rows.tags)
            return listed(plan.geometry, records, rows.vectors, is_exact=plan.is_exact)

        return await self.run(made)

    async def _sealed(self, parts: Sequence[Entries]) -> list[ChunkRow]:
        """Return the chunks of new lists that hold the entries of `parts`."""

        def sealed() -> list[ChunkRow]:
            self._pairs.add(part.records for part in parts)
            rows = []
            for number, chunk, row in sealed_lists(self.plan.new, parts):
                self._lists.setdefault(number, []).append(chunk)
                rows.append(row)
            return rows

        return await self.run(sealed)

    def _change(self, rows: Sequence[ChunkRow]) -> Change:
        """Return the change from the old lists to the new ones, to which `rows` came last."""
        old, new, points = self._layout, self.plan.new, self.plan.points
        assert old is not None  # noqa: S101 - the last round has read it
        n_lists = 1 if points is None else len(points)
        lists = [self._lists.get(number, []) for number in range(n_lists)]
        epoch = old.row.open_epoch + 1
        numbers = LayoutRow(
            old.row.version + 1, new.generation, new.encoder_version, epoch, epoch, (), b""
        )
        made = first(new, numbers, lists, points)
        return Change(
            made.row,
            chunks=[*rows, *made.pages],
            merged=self._fresh,
            retired=[*(chunk.name for chunk in old.chunks()), *old.page_names()],
        )


def _columns(rows: Sequence[tuple[bytes, int, Vector]], dimension: int) -> Rows:
    item_keys = [key for key, _, _ in rows]
    tags = np.array([tag for _, tag, _ in rows], np.int64)
    vectors = [vector for _, _, vector in rows]
    return Rows(item_keys, tags, np.array(vectors).reshape(-1, dimension))
