"""What a merge reads, rewrites and leaves alone."""

from collections.abc import Collection, Coroutine, Mapping
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from app.crypto.keys import IndexKeys
from app.domain import Matrix, Metric
from app.engine.lists import tiers
from app.engine.lists.entries import fields, keys
from app.engine.lists.layout import Encoding, Layout, first, read
from app.engine.lists.layout_format import Reference
from app.engine.lists.merging import LIMITS, Limits, Merger
from app.engine.lists.pairs import Pairs
from app.engine.lists.placing import listed, records_of
from app.engine.lists.sealing import Sealing
from app.engine.lists.space import Space
from app.errors import DataCorrupted
from app.store.chunks import Known, LayoutRow
from app.store.indexes import StaleIndex
from tests.unit.engine.lists.model import Conflict, Database, Transaction
from tests.unit.engine.lists.test_interleavings import at_once

D, N_LISTS = 4, 40
INDEX_KEYS = IndexKeys.derive(bytes(32), UUID(int=3))
SEALING = Sealing(INDEX_KEYS, 1, 0)
ENCODING = Encoding(
    Space(Metric.EUCLIDEAN, np.zeros(D, np.float32), 1.0), INDEX_KEYS.sketch_key, 64
)
# Far apart: which list an item is in is plain to see.
POINTS = (100 * np.arange(N_LISTS)[:, None] * np.ones(D)).astype(np.float32)
GEOMETRY = ENCODING.geometry(POINTS)
ALL_AT_ONCE = Limits(min_entries=0, share=0)


def done(task: Coroutine[Any, Any, Any]) -> Any:
    """What a task returns that nobody holds up."""
    try:
        while True:
            task.send(None)
    except StopIteration as end:
        return end.value


class Index:
    """An index with 40 lists, and what its merges look at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.database = Database()
        self.asked: list[set[bytes]] = []
        made = first(SEALING, LayoutRow(1, 1, 0, 1, 1, (), b""), [[]] * N_LISTS, POINTS)
        self.database.state.layouts[1] = made.row
        self.database.state.chunks |= {page.name: (page, None) for page in made.pages}
        tags = Transaction.tags

        async def asked(own: Transaction, wanted: Collection[bytes]) -> Mapping[bytes, int | None]:
            self.asked.append(set(wanted))
            return await tags(own, wanted)

        monkeypatch.setattr(Transaction, "tags", asked)

    def write(self, *numbers: int, seed: int = 0) -> list[bytes]:
        """Store an item in each of these lists; return their keys."""
        random = np.random.default_rng([seed, len(self.database.state.items)])
        names = [random.bytes(16) for _ in numbers]
        vectors = POINTS[list(numbers)] + random.standard_normal((len(numbers), D)).astype("f4")
        self.replace(dict(zip(names, vectors, strict=True)))
        return names

    def replace(self, vectors: Mapping[bytes, Matrix]) -> None:
        names = list(vectors)
        tags = np.random.default_rng().integers(-(2**62), 2**62, len(names))
        rows = np.array(list(vectors.values()))
        entries = listed(GEOMETRY, records_of(names, tags), rows, is_exact=False)
        items = dict(zip(names, zip(tags.tolist(), rows, strict=True), strict=True))
        epoch = self.database.state.newest.open_epoch
        done(self.database.upsert(items, list(SEALING.fresh(entries)), epoch))

    def merge(self, limits: Limits = ALL_AT_ONCE, worn: Collection[int] = ()) -> bool:
        self.asked.clear()
        return bool(
            done(Merger(SEALING, ENCODING, at_once, limits).merge(self.database, worn=worn))
        )

    @property
    def layout(self) -> Layout:
        return read(SEALING, ENCODING, self.database.state.news(Known()), None)

    def fresh_sizes(self) -> list[int]:
        news = self.database.state.news(Known())
        return sorted(len(SEALING.open_fresh(row)) for row in news.chunks)

    def members(self, number: int) -> list[bytes]:
        chunks = self.layout.chunks_of(number)
        rows = [self.database.state.chunks[chunk.name][0] for chunk in chunks]
        return [key for row in rows for key in keys(SEALING.open_listed(row))]


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Index:
    return Index(monkeypatch)


def references(*sizes: int) -> list[Reference]:
    return [Reference(bytes([number]) * 16, size) for number, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("n_new", "sizes", "taken"),
    [
        (10, [], []),
        (10, [100], []),
        (10, [15], [15]),
        (10, [100, 15], [15]),
        (10, [60, 15, 25], [15, 25, 60]),
        (1_000, [501, 400], [400]),
    ],
)
def test_chunks_of_like_size_are_joined(n_new: int, sizes: list[int], taken: list[int]) -> None:
    found = tiers.joined_with(n_new, references(*sizes), 1_000)
    assert [chunk.n_entries for chunk in found] == taken


def test_a_list_has_few_chunks_and_an_entry_is_rewritten_seldom() -> None:
    sizes: list[int] = []
    n_rewritten = 0
    for _ in range(5_000):
        taken = [chunk.n_entries for chunk in tiers.joined_with(1, references(*sizes), 10**9)]
        for size in taken:
            sizes.remove(size)
        sizes.append(1 + sum(taken))
        n_rewritten += sum(taken)
        assert len(sizes) <= 13
    assert n_rewritten <= 13 * 5_000


def test_entries_go_to_their_lists(index: Index) -> None:
    names = index.write(3, 3, 7)
    assert index.merge()
    assert sorted(index.members(3)) == sorted(names[:2])
    assert index.members(7) == names[2:]
    assert index.fresh_sizes() == []


def test_nothing_fresh_is_nothing_to_do(index: Index) -> None:
    assert not index.merge()
    index.write(1)
    assert not index.merge(LIMITS)
    assert index.database.state.newest.version == 1


def test_small_fresh_chunks_are_put_together_without_a_look_at_rows(index: Index) -> None:
    for number in range(5):
        index.write(number)
    index.write(*range(40), *range(40))
    assert index.merge(Limits(small_bytes=1_000))
    assert index.fresh_sizes() == [5, 80]
    assert index.asked == []
    index.merge(Limits(small_bytes=1_000))
    assert index.fresh_sizes() == [5, 80]
    # The large one has come along into the epoch that is open.
    assert index.database.state.newest.first_epoch == 1
    for _ in range(2):
        index.write(1)
        index.write(1)
        index.merge(Limits(small_bytes=1_000))
    assert index.database.state.newest.first_epoch > 1
    assert index.fresh_sizes()[-1] == 80


def test_enough_entries_are_distributed(index: Index) -> None:
    index.write(*[5] * 20)
    assert not index.merge(Limits(min_entries=21, share=0))
    assert index.merge(Limits(min_entries=20, share=0))
    index.write(*[5] * 9)
    assert not index.merge(Limits(min_entries=0, share=0.5))
    assert index.merge(Limits(min_entries=0, share=0.4))
    index.write(*[5] * 9)
    assert index.merge(Limits(min_entries=100, max_entries=9))


def test_the_rows_of_one_list_are_never_looked_up(index: Index) -> None:
    index.write(*range(N_LISTS))
    index.merge()
    names = index.write(6)
    assert index.merge()
    assert len(index.layout.chunks_of(6)) == 1
    assert index.asked == [set(names)]


def test_dead_entries_are_left_out_when_many_lists_are_read(index: Index) -> None:
    old = index.write(*range(N_LISTS))
    index.merge()
    done(index.database.delete(old[:10]))
    new = index.write(*range(N_LISTS))
    assert index.merge()
    assert index.asked == [set(new), set(old)]
    assert index.members(3) == [new[3]]
    assert sorted(index.members(30)) == sorted([old[30], new[30]])


def test_a_replaced_item_keeps_the_entry_of_its_row_alone(index: Index) -> None:
    (name,) = index.write(2)
    index.merge()
    index.replace({name: POINTS[9]})
    index.replace({name: POINTS[4]})
    index.merge()
    assert (index.members(4), index.members(9)) == ([name], [])
    assert index.members(2) == [name]
    index.merge(worn=[2])
    assert index.members(2) == []


def test_worn_lists_are_rewritten_in_company(index: Index) -> None:
    old = index.write(*range(N_LISTS))
    index.merge()
    done(index.database.delete(old[:1]))
    assert index.merge(worn=[0])
    assert index.members(0) == []
    _, looked_up = index.asked
    assert len(looked_up) == LIMITS.min_lists
    assert old[0] in looked_up
    rewritten = [number for number in range(N_LISTS) if old[number] in looked_up]
    assert all(index.members(number) == [old[number]] for number in rewritten[1:])


def test_chunks_that_are_replaced_are_retired_and_stay(index: Index) -> None:
    index.write(*range(N_LISTS))
    index.merge()
    before = index.layout
    index.write(1)
    index.merge()
    after = index.layout
    retired = set(index.database.state.retired[after.row.version])
    gone = {chunk.name for chunk in before.chunks()} - {chunk.name for chunk in after.chunks()}
    pages = set(before.page_names()) - set(after.page_names())
    assert retired == gone | pages
    assert len(gone) == len(pages) == 1
    assert retired <= set(index.database.state.chunks)


def test_a_list_chunk_that_is_missing_is_an_error(index: Index) -> None:
    index.write(1)
    index.merge()
    del index.database.state.chunks[index.layout.chunks_of(1)[0].name]
    index.write(1)
    with pytest.raises(DataCorrupted):
        index.merge()


def test_a_merge_leaves_other_generations_alone(index: Index) -> None:
    index.write(1)
    merger = Merger(Sealing(INDEX_KEYS, 2, 0), ENCODING, at_once, ALL_AT_ONCE)
    with pytest.raises(StaleIndex):
        done(merger.merge(index.database))


def test_of_two_merges_one_gives_way(index: Index) -> None:
    index.write(1)
    first_merge = Merger(SEALING, ENCODING, at_once, ALL_AT_ONCE).merge(index.database)
    for _ in range(4):
        first_merge.send(None)
    assert not index.merge()
    done(first_merge)
    assert len(index.members(1)) == 1


def test_two_merges_that_saw_the_same_conflict(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def own_layout(_: Transaction) -> bool:
        return True

    monkeypatch.setattr(Transaction, "own_layout", own_layout)
    index.write(1)
    first_merge = Merger(SEALING, ENCODING, at_once, ALL_AT_ONCE).merge(index.database)
    for _ in range(4):
        first_merge.send(None)
    assert index.merge()
    with pytest.raises(Conflict):
        done(first_merge)


def test_pairs_know_what_they_hold() -> None:
    random = np.random.default_rng(0)
    names = [random.bytes(16) for _ in range(1_000)]
    tags = random.integers(-(2**63), 2**63 - 1, 1_000)
    records = records_of(names, tags)
    pairs = Pairs()
    assert pairs.lacks(records).all()
    pairs.add([records[:300], records[300:600]])
    pairs.add([])
    assert len(pairs) == 600
    assert pairs.lacks(records).tolist() == [False] * 600 + [True] * 400
    others = records_of(names[:300], tags[:300] + 1)
    assert pairs.lacks(others).all()
    assert len(fields(records)) == 1_000
