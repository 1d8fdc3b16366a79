"""What a worker keeps of sealed indexes in memory: the lists of all of them within one bound.

Layouts and fresh entries are small beside lists. They stay for as long as the keys of their index
are remembered. Of the lists, those that were not used for longest are let go first. Nothing here
waits or reads. The event loop alone calls it; what it hands out may be scanned in threads, and
stays as it is for as long as they hold it (`wiping`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import TypeAlias

import numpy as np
from cachetools import LRUCache

from app.engine.lists.entries import Entries, Lists, joined
from app.engine.lists.layout import Encoding, Layout, read
from app.engine.lists.layout_format import Reference
from app.engine.lists.sealing import Sealing
from app.engine.lists.wiping import wiped_copies
from app.errors import DataCorrupted
from app.store.chunks import ChunkRow, Known, News

# Of a chunk's arrays and names, beside what the arrays hold.
_CHUNK_OVERHEAD_BYTES = 700

Opened: TypeAlias = Mapping[bytes, Entries]


@dataclass(frozen=True, eq=False)
class Fresh:
    """The fresh entries of an index, by the name of their chunk."""

    chunks: Opened = field(default_factory=dict)

    @cached_property
    def together(self) -> Sequence[Entries]:
        """All entries as few as can be: those with sketches, and those with points."""
        kinds = (
            [each for each in self.chunks.values() if each.is_exact == is_exact]
            for is_exact in (False, True)
        )
        return [joined(kind) for kind in kinds if kind]

    def following(self, names: Iterable[bytes], added: Opened) -> "Fresh":
        """Return the fresh entries of the chunks `names`, some of which are `added`."""
        return Fresh({name: added.get(name) or self.chunks[name] for name in names})


@dataclass(frozen=True, slots=True, eq=False)
class Sight:
    """An index as a search sees it: one layout, and what was fresh at the same moment."""

    layout: Layout
    fresh: Fresh


class ListMemory:
    """Entries of list chunks of all indexes, `max_bytes` of them."""

    def __init__(self, max_bytes: int) -> None:
        self._chunks: LRUCache[tuple[int, bytes], Entries] = LRUCache(max_bytes, _n_bytes)
        self._owners = count()

    def new_owner(self) -> int:
        """Return a number for an index to keep its chunks under."""
        return next(self._owners)

    def find(self, owner: int, names: Iterable[bytes]) -> dict[bytes, Entries]:
        """Return those of the chunks `names` that are kept; they count as used."""
        found = {name: self._chunks.get((owner, name)) for name in names}
        return {name: entries for name, entries in found.items() if entries is not None}

    def keep(self, owner: int, chunks: Opened) -> None:
        """Keep `chunks`, as far as there is room when others are let go."""
        for name, entries in chunks.items():
            if _n_bytes(entries) <= self._chunks.maxsize:
                self._chunks[owner, name] = entries

    def drop(self, owner: int, names: Iterable[bytes] | None = None) -> None:
        """Let go of the chunks `names` of an owner, or of all."""
        if names is None:
            names = [name for each, name in self._chunks if each == owner]
        for name in names:
            self._chunks.pop((owner, name), None)

    @property
    def n_bytes(self) -> int:
        """How much is kept."""
        return int(self._chunks.currsize)


class IndexMemory:
    """What is known of one index under one data key."""

    def __init__(self, memory: ListMemory, sealing: Sealing, encoding: Encoding) -> None:
        self._memory = memory
        self._sealing = sealing
        self._encoding = encoding
        self._owner = memory.new_owner()
        self.sight: Sight | None = None

    @property
    def known(self) -> Known:
        """What news need not tell."""
        if self.sight is None:
            return Known()
        layout, fresh = self.sight.layout, self.sight.fresh
        return Known(layout.row.version, layout.page_names(), list(fresh.chunks))

    def take(self, news: News) -> Sight:
        """Learn `news`. Raises `DataCorrupted`, and `StaleIndex` for news of another generation."""
        before = self.sight
        added = {row.name: self._scannable(self._sealing.open_fresh(row)) for row in news.chunks}
        layout = read(self._sealing, self._encoding, news, before.layout if before else None)
        fresh = (before.fresh if before else Fresh()).following(news.fresh, added)
        self.sight = Sight(layout, fresh)
        if before is not None and before.layout.pages != layout.pages:
            gone = _names(before.layout.chunks()) - _names(layout.chunks())
            self._memory.drop(self._owner, gone)
        return self.sight

    def find(self, names: Iterable[bytes]) -> dict[bytes, Entries]:
        """Return those of the list chunks `names` that are in memory."""
        return self._memory.find(self._owner, names)

    def open_lists(self, rows: Sequence[ChunkRow], lists: Mapping[bytes, int]) -> Opened:
        """Open and keep chunks, each of the list that `lists` says. Raises `DataCorrupted`."""
        opened = {row.name: self._of_list(row, lists[row.name]) for row in rows}
        self._memory.keep(self._owner, opened)
        return opened

    def forget(self) -> None:
        """Let go of everything: what no search holds any more is wiped at once."""
        self.sight = None
        self._memory.drop(self._owner)

    def _of_list(self, row: ChunkRow, number: int) -> Entries:
        entries = self._sealing.open_listed(row)
        if (entries.lists != number).any():
            raise DataCorrupted("a chunk of the index belongs to another list")
        scannable = self._scannable(entries)
        # All the same, so there is no need to keep them.
        return Entries(scannable.records, _constant(number, len(entries)), scannable.codes)

    def _scannable(self, entries: Entries) -> Entries:
        codes = entries.codes
        if entries.is_exact:
            codes = self._encoding.space.points(codes)
        records, lists, codes = wiped_copies([entries.records, entries.lists, codes])
        return Entries(records, lists, codes)


def _constant(number: int, n_entries: int) -> Lists:
    return np.broadcast_to(np.int32(number), n_entries)


def _names(references: Iterable[Reference]) -> set[bytes]:
    return {reference.name for reference in references}


def _n_bytes(entries: Entries) -> int:
    return entries.records.nbytes + entries.codes.nbytes + _CHUNK_OVERHEAD_BYTES
