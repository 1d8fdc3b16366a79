"""The exact check of a filter: an item is in an answer only if its opened metadata matches."""

import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from functools import partial

from app import errors, filters
from app.domain import Candidates, Matrix
from app.engine import costs
from app.engine.keyed import KeyedIndex
from app.engine.kind import FilteredScan, Row
from app.engine.opening import open_metadata
from app.engine.rank import Winner
from app.engine.threads import computed
from app.observe.stages import timed
from app.store.pg import packed_rows


class Matches:
    """Opens the metadata of items and checks it; queries of a batch share what it finds.

    `timeout_ms` bounds the time that the checks of one search may take; 0 is no bound.
    """

    def __init__(self, keyed: KeyedIndex, where: filters.nodes.Node, timeout_ms: int) -> None:
        self._metadata = keyed.keys.metadata
        self._is_match: Callable[..., bool] = filters.matching.matcher(where)
        self._deadline = time.monotonic() + timeout_ms / 1_000 if timeout_ms else float("inf")
        self._verdicts: dict[bytes, tuple[bytes | None, bool]] = {}

    @timed("open")
    def among(self, rows: Sequence[Row]) -> list[bytes]:
        """Return the keys of the items that match, and remember which do."""
        return [row.item_key for row in rows if self._verdict(row)]

    @timed("open")
    def among_many(self, rows: Sequence[Row]) -> list[bytes]:
        """Return the keys of the items that match; remember nothing, as there may be millions."""
        return [row.item_key for row in rows if self._check(row)]

    def of_each(self, peeked: Sequence[Sequence[Row]]) -> list[list[bytes]]:
        """Return for each query the keys of the items that match."""
        return [self.among(rows) for rows in peeked]

    def are_all(self, ranked: Sequence[Sequence[Winner]]) -> bool:
        """Whether all winners match, whose metadata has come with them."""
        rows = [Row(one.item_key, one.sealed_metadata) for winners in ranked for one in winners]
        return len(self.among(rows)) == len(rows)

    def kept(self, read: Candidates) -> Candidates:
        """Return the candidates that match. What was replaced meanwhile is checked again."""
        return _chosen(read, self.among(_rows(read)))

    def kept_of_many(self, read: Candidates) -> Candidates:
        """Return the candidates that match; remember nothing, as there may be millions."""
        return _chosen(read, self.among_many(_rows(read)))

    def _verdict(self, row: Row) -> bool:
        known = self._verdicts.get(row.item_key)
        if known is None or known[0] != row.sealed_metadata:
            known = self._verdicts[row.item_key] = (row.sealed_metadata, self._check(row))
        return known[1]

    def _check(self, row: Row) -> bool:
        if time.monotonic() > self._deadline:
            raise errors.Unavailable(
                "The filter takes too long to check; make it simpler or more selective"
            )
        return self._is_match(open_metadata(self._metadata, row.item_key, row.sealed_metadata))


async def all_matching(scan: FilteredScan, matches: Matches) -> list[bytes]:
    """Return the keys of all items that match, opening the metadata of all that may."""
    found: list[bytes] = []
    # If a check fails, the cursor must be closed before its connection goes back.
    async with aclosing(scan.everything()) as chunks:
        async for rows in chunks:
            matching = partial(matches.among_many, rows)
            found += await computed(len(rows) * costs.METADATA_US, matching)
    return found


class MatchingScan:
    """Candidates that match, by way of a scan that cannot tell: it looks until enough of them do.

    If few match, all that may match are opened, and the nearest are chosen among those that do.
    """

    def __init__(self, scan: FilteredScan, matches: Matches, pool: int) -> None:
        self._scan, self._matches, self._pool = scan, matches, pool
        self._n_to_open: int | None = None
        self._n_to_look = 0
        # The queries for which enough was found, and the keys of all that match once all are known.
        self._is_done: set[int] = set()
        self._all: list[bytes] | None = None

    async def look(self, positions: Sequence[int]) -> list[Candidates]:
        """Return for each query candidates that match; none for one that has to look further."""
        keys = await self._keys(positions)
        different = list(dict.fromkeys(key for some in keys for key in some))
        read = await self._scan.read(different)
        cost_us = len(different) * costs.METADATA_US
        kept = await computed(cost_us, lambda: self._matches.kept(read))
        if len(positions) == 1:
            return [kept]
        places = {key: place for place, key in enumerate(kept.item_keys)}
        return [
            packed_rows.chosen(kept, [places[key] for key in some if key in places])
            for some in keys
        ]

    def n_wanted(self, position: int) -> int:
        """Return how many candidates of a query are opened at most."""
        del position
        return costs.FEW_MULT * self._pool

    async def is_enough(self, position: int, winners: Matrix, worst: float) -> bool:
        """Whether enough candidates of a query match."""
        del winners, worst
        return position in self._is_done

    async def _keys(self, positions: Sequence[int]) -> list[list[bytes]]:
        if self._n_to_open is None:
            is_few = await self._scan.share() < costs.FEW_SHARE
            self._n_to_open = int((costs.FEW_MULT if is_few else costs.MANY_MULT) * self._pool)
        if self._all is None:
            n_to_look = max(self._n_to_look, costs.FIRST_LOOK_MULT * self._n_to_open)
            peeked = await self._scan.peek(positions, n_to_look)
            if peeked is not None:
                return await self._enough_of(positions, peeked, n_to_look, self._n_to_open)
            self._all = await all_matching(self._scan, self._matches)
        self._is_done.update(positions)
        n_wanted = costs.FEW_MULT * self._pool
        if len(self._all) <= max(n_wanted, costs.MAX_EXACT):
            return [self._all] * len(positions)
        return await self._scan.among(positions, self._all, n_wanted)

    async def _enough_of(
        self,
        positions: Sequence[int],
        peeked: Sequence[Sequence[Row]],
        n_looked: int,
        n_wanted: int,
    ) -> list[list[bytes]]:
        """Return the keys of what matches where there is enough, and plan how far to look on."""
        cost_us = sum(map(len, peeked)) * costs.METADATA_US
        matching = await computed(cost_us, lambda: self._matches.of_each(peeked))
        fewest = n_wanted
        for place, position in enumerate(positions):
            n_matching = len(matching[place])
            if len(peeked[place]) < n_looked or n_matching >= n_wanted:
                self._is_done.add(position)
                matching[place] = matching[place][: costs.FEW_MULT * n_wanted]
            else:
                fewest, matching[place] = min(fewest, n_matching), []
        expected = costs.LOOK_MARGIN * n_looked * n_wanted / max(1, fewest)
        self._n_to_look = max(costs.FURTHER_LOOK_MULT * n_looked, int(expected))
        return matching


def _rows(read: Candidates) -> list[Row]:
    metadata = read.sealed_metadata or ()
    return [Row(*row) for row in zip(read.item_keys, map(_or_none, metadata), strict=True)]


def _chosen(read: Candidates, item_keys: Sequence[bytes]) -> Candidates:
    chosen = set(item_keys)
    places = [place for place, key in enumerate(read.item_keys) if key in chosen]
    return read if len(places) == len(read.item_keys) else packed_rows.chosen(read, places)


def _or_none(sealed: bytes) -> bytes | None:
    return sealed or None
