"""Merging: what writers have added becomes part of lists, while searches and writers go on.

A merge reads everything in one snapshot (REPEATABLE READ) and changes everything in the same
transaction. It leaves an entry out only if the row that it has seen is gone or has another tag.
Small fresh chunks are put together at first. Once there are enough entries, all are distributed to
their lists, whose chunks are joined in tiers (`tiers`).

Whoever reads statements learns which rows a merge looks at: those of all fresh entries, or of many
lists together, and never those of one list.
"""

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.domain import Vector
from app.engine.lists import chunk_format, tiers
from app.engine.lists.entries import Entries, by_codes, by_lists, fields, keys
from app.engine.lists.layout import Encoding, Layout, read, rewritten
from app.engine.lists.layout_format import Reference
from app.engine.lists.placing import with_lists
from app.engine.lists.sealing import Sealing
from app.engine.lists.sketching import NO_LIST
from app.errors import DataCorrupted
from app.store.chunks import Change, ChunkRow, Known, LayoutRow, News

Answer = TypeVar("Answer")


_RANDOM = random.SystemRandom()

# The chunks of lists that a merge reads, and which it replaces.
Taken: TypeAlias = dict[int, Sequence[Reference]]


class Run(Protocol):
    """Runs arithmetic: in a thread, or at once."""

    async def __call__(self, work: Callable[[], Answer], /) -> Answer:
        """Return what `work` returns."""


class Tagged(NamedTuple):
    """What the row of an item says of it."""

    tag: int | None
    vector: Vector


class Snapshot(Protocol):
    """An index as one transaction sees it, and the change that the transaction makes."""

    async def own_layout(self) -> bool:
        """Keep others from changing the layout; false when somebody is at it."""

    async def news(self, known: Known) -> News:
        """Return the layout, and what of it and of the fresh chunks is not known."""

    async def by_names(self, names: Sequence[bytes]) -> Sequence[ChunkRow]:
        """Return the chunks called `names`."""

    async def tags(self, item_keys: Collection[bytes]) -> Mapping[bytes, int | None]:
        """Return the tag of each item among `item_keys` that is stored."""

    async def vectors(self, item_keys: Collection[bytes]) -> Mapping[bytes, Tagged]:
        """Return tag and vector of each item among `item_keys` that is stored."""

    async def change(self, change: Change) -> None:
        """Write the change of the layout."""


class Chunks(Protocol):
    """The chunks of one index."""

    async def first_epoch_in_use(self) -> int:
        """Return the first epoch to which somebody may still add chunks."""

    def snapshot(self) -> AbstractAsyncContextManager[Snapshot]:
        """Begin a transaction, to be committed at the end of the block unless the block raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a merge does what.

    Fresh chunks up to `small_bytes` are put together. Fresh entries are distributed once there are
    `share` of all entries, but not fewer than `min_entries` nor more than `max_entries`. Rows are
    looked up for the entries of `min_lists` lists together, or of all.
    """

    small_bytes: int = 64 * 1024
    share: float = 0.05
    min_entries: int = 2_000
    max_entries: int = 50_000
    min_lists: int = 32


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Merger:
    """Merges the fresh entries of one index, for one generation of its lists."""

    sealing: Sealing
    encoding: Encoding
    run: Run
    limits: Limits = LIMITS

    async def merge(
        self, chunks: Chunks, *, known: Layout | None = None, worn: Collection[int] = ()
    ) -> bool:
        """Merge what is fresh, if that pays, and rewrite lists that are `worn` by dead entries.

        Returns false when there was nothing to do, or somebody else is at it. Raises `StaleIndex`
        for lists of another generation.
        """
        first_epoch = await chunks.first_epoch_in_use()
        async with chunks.snapshot() as snapshot:
            if not await snapshot.own_layout():
                return False
            news = await snapshot.news(_as_known(known))
            layout = await self.run(lambda: read(self.sealing, self.encoding, news, known))
            merge = _Merge(self, snapshot, layout, _next_row(layout.row, first_epoch))
            change = await merge.change(news.chunks, worn)
            if change is not None:
                await snapshot.change(change)
            return change is not None


@dataclass(frozen=True, slots=True)
class _Merge:
    """One merge on its way: what it sees, and the row of the layout that it makes."""

    merger: Merger
    snapshot: Snapshot
    layout: Layout
    row: LayoutRow

    async def change(self, fresh: Sequence[ChunkRow], worn: Collection[int]) -> Change | None:
        """Return what to change, None for nothing."""
        sealing = self.merger.sealing
        opened = await self.merger.run(lambda: [sealing.open_fresh(row) for row in fresh])
        if worn or sum(map(len, opened)) >= self._enough():
            return await self._distribute([row.name for row in fresh], opened, worn)
        return await self.merger.run(lambda: self._put_together(fresh, opened))

    def _put_together(self, fresh: Sequence[ChunkRow], opened: Sequence[Entries]) -> Change | None:
        """Make few chunks of many small ones, without a look at rows."""
        small = [
            (row.name, entries)
            for row, entries in zip(fresh, opened, strict=True)
            if len(row.sealed_entries) <= self.merger.limits.small_bytes
        ]
        if len(small) <= 1:
            return None
        sealing = self.merger.sealing
        together = by_codes([entries for _, entries in small])
        merged = [name for name, _ in small]
        made = rewritten(sealing, self.layout, self.row, {})
        return Change(
            made.row,
            fresh=[row for entries in together for row in sealing.fresh(entries)],
            merged=merged,
            carried=[row.name for row in fresh if row.name not in set(merged)],
        )

    async def _distribute(
        self, names: Sequence[bytes], fresh: Sequence[Entries], worn: Collection[int]
    ) -> Change:
        """Put all fresh entries that count into their lists."""
        counting = by_codes(await self._counting(fresh))
        additions = [await self._listed(entries) for entries in counting]
        taken = self._taken(additions, worn)
        old = await self._opened(taken)
        if self._are_many(taken):
            old = await self._counting(old)
        return await self.merger.run(lambda: self._rewrite(names, [*additions, *old], taken))

    async def _counting(self, parts: Sequence[Entries]) -> list[Entries]:
        """Return those of the entries whose tag is that of their row."""
        tags = await self.snapshot.tags({key for part in parts for key in keys(part)})
        return [part[_are_live(part, tags)] for part in parts]

    async def _listed(self, entries: Entries) -> Entries:
        """Return the entries, each in a list."""
        rows = np.flatnonzero(entries.lists == NO_LIST)
        if not len(rows):
            return entries
        vectors = entries.codes[rows]
        if not entries.is_exact:
            found = await self.snapshot.vectors(keys(entries[rows]))
            vectors = np.array([found[key].vector for key in keys(entries[rows])])
        geometry = self.layout.geometry
        return await self.merger.run(lambda: with_lists(geometry, entries, rows, vectors))

    def _taken(self, additions: Sequence[Entries], worn: Collection[int]) -> Taken:
        """Return the chunks that are read of each list that is rewritten: of a worn list all."""
        taken: Taken = {number: self.layout.chunks_of(number) for number in self._in_company(worn)}
        for entries in additions:
            capacity = chunk_format.capacity(entries.codes.shape[1] * entries.codes.itemsize)
            numbers, sizes = np.unique(entries.lists, return_counts=True)
            for number, size in zip(numbers.tolist(), sizes.tolist(), strict=True):
                chunks = self.layout.chunks_of(number)
                taken.setdefault(number, tiers.joined_with(size, chunks, capacity))
        return taken

    async def _opened(self, taken: Taken) -> list[Entries]:
        """Return the entries of the chunks that are read."""
        names = [chunk.name for chunks in taken.values() for chunk in chunks]
        rows = await self.snapshot.by_names(names) if names else []
        if len(rows) != len(names):
            raise DataCorrupted("a chunk of the index is missing")
        sealing = self.merger.sealing
        return await self.merger.run(lambda: [sealing.open_listed(row) for row in rows])

    def _rewrite(self, fresh: Sequence[bytes], entries: Sequence[Entries], taken: Taken) -> Change:
        """Return the change that makes chunks of lists of `entries`, instead of those `taken`."""
        sealing, layout = self.merger.sealing, self.layout
        gone = {chunk.name for chunks in taken.values() for chunk in chunks}
        lists = {
            number: [chunk for chunk in layout.chunks_of(number) if chunk.name not in gone]
            for number in taken
        }
        rows = []
        for number, chunk, row in sealed_lists(sealing, entries):
            lists[number].append(chunk)
            rows.append(row)
        made = rewritten(sealing, layout, self.row, lists)
        return Change(
            made.row,
            chunks=[*rows, *made.pages],
            merged=fresh,
            retired=[*gone, *made.retired],
        )

    def _enough(self) -> int:
        """Return how many fresh entries are worth distributing."""
        limits = self.merger.limits
        n_listed = sum(chunk.n_entries for chunk in self.layout.chunks())
        wanted = min(limits.max_entries, max(limits.min_entries, limits.share * n_listed))
        return max(1, int(wanted))

    def _are_many(self, taken: Taken) -> bool:
        """Whether a look at the rows of all that is read does not tell the members of one list."""
        n_taken = sum(bool(chunks) for chunks in taken.values())
        return n_taken >= min(self.merger.limits.min_lists, len(self._used_lists()))

    def _in_company(self, lists: Collection[int]) -> set[int]:
        """Return `lists`, if there are any, with others beside them until there are many."""
        wanted = set(lists)
        others = self._used_lists() - wanted
        n_missing = self.merger.limits.min_lists - len(wanted) if wanted else 0
        n_more = max(0, min(n_missing, len(others)))
        return wanted.union(_RANDOM.sample(sorted(others), n_more))

    def _used_lists(self) -> set[int]:
        """Return the lists that have chunks."""
        return {number for number in range(self.layout.n_lists) if self.layout.chunks_of(number)}


def sealed_lists(
    sealing: Sealing, entries: Sequence[Entries]
) -> Iterator[tuple[int, Reference, ChunkRow]]:
    """Seal `entries` as chunks of one list each; yield the list with its chunk."""
    for together in by_codes(entries):
        for number, part in by_lists(together):
            for piece in chunk_format.parts(part):
                (row,) = sealing.listed(piece)
                yield number, Reference(row.name, len(piece)), row


def _as_known(layout: Layout | None) -> Known:
    if layout is None:
        return Known()
    return Known(layout.row.version, layout.page_names())


def _next_row(row: LayoutRow, first_epoch: int) -> LayoutRow:
    """Return the numbers of the layout that follows."""
    return row._replace(
        version=row.version + 1,
        open_epoch=row.open_epoch + 1,
        first_epoch=max(row.first_epoch, first_epoch),
    )


def _are_live(entries: Entries, tags: Mapping[bytes, int | None]) -> NDArray[np.bool_]:
    own = fields(entries.records)["tag"].tolist()
    return np.array(
        [tags.get(key) == tag for key, tag in zip(keys(entries), own, strict=True)], np.bool_
    )
