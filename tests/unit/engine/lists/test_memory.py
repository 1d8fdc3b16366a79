"""What a worker keeps of sealed indexes, and what searches find in it."""

import gc
import threading

import numpy as np
import pytest

from app.engine.lists import wiping
from app.engine.lists.entries import fields
from app.engine.lists.memory import IndexMemory, ListMemory
from app.engine.lists.probe import Cuts, Probe
from app.engine.lists.sketching import NO_LIST
from app.engine.lists.space import distances_to
from app.engine.lists.wiping import wiped_copies
from app.errors import DataCorrupted
from app.store.chunks import Known
from tests.unit.engine.lists.conftest import N_LISTS, Stored

MB = 1 << 20
CUTS = Cuts(200, 50)


def opened(stored: Stored, lists: ListMemory | None = None) -> IndexMemory:
    index = IndexMemory(lists or ListMemory(MB), stored.sealing, stored.encoding)
    index.take(stored.news(index.known))
    return index


def found(
    index: IndexMemory, stored: Stored, number: int, n_probes: int = 10, cuts: Cuts = CUTS
) -> list[int]:
    """Numbers of the items nearest to the item called so."""
    assert index.sight is not None
    point = stored.geometry.space.points(stored.vectors[number][None])[0]
    probe = Probe.of(index.sight, point, n_probes)
    wanted = probe.chunks()
    chunks = index.find(wanted)
    missing = [stored.listed[name] for name in wanted if name not in chunks]
    chunks |= index.open_lists(missing, wanted)
    records = probe.scan(chunks, cuts).records
    return list(fields(records)["tag"].tolist())


def true_nearest(stored: Stored, number: int, k: int = 10) -> list[int]:
    distances = distances_to(stored.vectors[number], stored.vectors)
    return list(np.argsort(distances, kind="stable")[:k].tolist())


def share_found(index: IndexMemory, stored: Stored, n_probes: int) -> float:
    numbers = range(0, 2_000, 40)
    hits = [
        len(set(found(index, stored, number, n_probes)) & set(true_nearest(stored, number)))
        for number in numbers
    ]
    return sum(hits) / (10 * len(numbers))


def test_a_query_finds_the_nearest_in_lists(stored: Stored) -> None:
    index = opened(stored)
    assert found(index, stored, 5)[0] == 5
    assert share_found(index, stored, N_LISTS) > 0.97
    assert share_found(index, stored, 20) > 0.8


def test_fresh_entries_are_found_as_if_they_were_in_their_lists(stored: Stored) -> None:
    stored.lay_out(stored.entries(range(1_000)), stored.geometry.centroids.points)
    for start in range(1_000, 2_000, 50):
        stored.add_fresh(stored.entries(range(start, start + 50)))
    index = opened(stored)
    assert share_found(index, stored, N_LISTS) > 0.97


def test_fresh_entries_of_lists_that_are_not_read_are_not_looked_at(stored: Stored) -> None:
    entries = stored.entries(range(2_000))
    stored.lay_out(entries[:1_000], stored.geometry.centroids.points)
    stored.add_fresh(entries[1_000:])
    own = entries.lists[5]
    numbers = found(opened(stored), stored, 5, n_probes=1, cuts=Cuts(2_000, 2_000))
    assert sorted(numbers) == np.flatnonzero(entries.lists == own).tolist()


def test_fresh_entries_without_a_list_are_always_looked_at(stored: Stored) -> None:
    stored.lay_out(stored.entries(range(1_990)), stored.geometry.centroids.points)
    nowhere = np.full(10, NO_LIST, np.int32)
    stored.add_fresh(stored.entries(range(1_990, 2_000), nowhere))
    index = opened(stored)
    for number in range(1_990, 2_000):
        assert found(index, stored, number, n_probes=1)[0] == number


def test_an_index_without_lists_is_scanned_whole_and_exactly(stored: Stored) -> None:
    stored.lay_out(stored.exact(range(500)), None)
    stored.add_fresh(stored.exact(range(500, 2_000)))
    index = opened(stored)
    for number in (3, 700, 1_999):
        assert found(index, stored, number, 1, Cuts(1, 10)) == true_nearest(stored, number)


def test_sketches_go_on_where_vectors_became_too_many(stored: Stored) -> None:
    stored.lay_out(stored.exact(range(1_000)), None)
    stored.geometry = stored.encoding.geometry(None)
    stored.add_fresh(stored.entries(range(1_000, 2_000)))
    index = opened(stored)
    assert share_found(index, stored, 1) > 0.95


def test_only_what_is_new_is_opened(stored: Stored) -> None:
    stored.add_fresh(stored.entries(range(10)))
    index = opened(stored)
    assert index.known.version == stored.row.version
    assert set(index.known.fresh) == set(stored.fresh)
    assert set(index.known.pages) == set(stored.pages)
    before = index.sight
    assert before is not None
    news = stored.news(index.known)
    assert (news.chunks, news.pages) == ([], [])
    after = index.take(news)
    assert after.layout is before.layout
    stored.add_fresh(stored.entries(range(10, 20)))
    assert len(index.take(stored.news(index.known)).fresh.chunks) == 2


def test_pages_that_a_later_layout_still_has_are_not_read_again(stored: Stored) -> None:
    index = opened(stored)
    before = index.sight
    assert before is not None
    row = stored.row._replace(version=stored.row.version + 1)
    stored.row = row._replace(sealed_root=stored.sealing.root(row, before.layout.root))
    news = stored.news(index.known)
    assert news.pages == []
    after = index.take(news)
    assert after.layout.row == stored.row
    assert after.layout.geometry is before.layout.geometry


def test_a_search_goes_on_with_what_it_saw_at_first(stored: Stored) -> None:
    stored.add_fresh(stored.entries(range(5)))
    index = opened(stored)
    sight = index.sight
    assert sight is not None
    stored.fresh.clear()
    stored.lay_out(stored.entries(range(2_000)), stored.geometry.centroids.points)
    after = index.take(stored.news(index.known))
    assert len(sight.fresh.chunks) == 1
    assert len(after.fresh.chunks) == 0
    assert after.layout.row.version == sight.layout.row.version + 1
    # Centroids are what they were, but were written again.
    assert after.layout.geometry is not sight.layout.geometry


def test_lists_that_a_merge_replaced_are_let_go(stored: Stored) -> None:
    lists = ListMemory(MB)
    index = opened(stored, lists)
    found(index, stored, 5, N_LISTS)
    assert lists.n_bytes > 0
    stored.lay_out(stored.entries(range(2_000)), stored.geometry.centroids.points)
    index.take(stored.news(index.known))
    assert lists.n_bytes == 0


def test_a_page_that_is_missing_is_an_error(stored: Stored) -> None:
    for name in list(stored.pages):
        row = stored.pages.pop(name)
        with pytest.raises(DataCorrupted):
            opened(stored)
        stored.pages[name] = row


def test_a_chunk_in_the_place_of_another_list_is_an_error(stored: Stored) -> None:
    index = opened(stored)
    assert index.sight is not None
    (first, *_), (second, *_) = (index.sight.layout.chunks_of(number) for number in (0, 1))
    with pytest.raises(DataCorrupted):
        index.open_lists([stored.listed[first.name]], {first.name: 1})
    swapped = stored.listed[first.name]._replace(name=second.name)
    with pytest.raises(DataCorrupted):
        index.open_lists([swapped], {second.name: 1})


def test_all_indexes_together_stay_within_the_bound(stored: Stored) -> None:
    lists = ListMemory(100_000)
    indexes = [opened(stored, lists) for _ in range(3)]
    for number in range(0, 2_000, 100):
        for index in indexes:
            assert found(index, stored, number)[0] == number
            assert lists.n_bytes <= 100_000
    assert lists.n_bytes > 50_000


def test_what_was_not_used_for_longest_is_let_go_first(stored: Stored) -> None:
    lists = ListMemory(MB)
    index = opened(stored, lists)
    assert index.sight is not None
    names = [index.sight.layout.chunks_of(number)[0].name for number in range(3)]
    sizes = []
    for number, name in enumerate(names):
        before = lists.n_bytes
        index.open_lists([stored.listed[name]], {name: number})
        sizes.append(lists.n_bytes - before)
    small = ListMemory(sum(sizes) - 1)
    index = opened(stored, small)
    index.open_lists([stored.listed[names[0]]], {names[0]: 0})
    index.open_lists([stored.listed[names[1]]], {names[1]: 1})
    assert set(index.find(names[:1])) == {names[0]}
    index.open_lists([stored.listed[names[2]]], {names[2]: 2})
    assert set(index.find(names)) == {names[0], names[2]}


def test_without_memory_everything_is_found_and_nothing_kept(stored: Stored) -> None:
    lists = ListMemory(0)
    index = opened(stored, lists)
    assert found(index, stored, 5)[0] == 5
    assert lists.n_bytes == 0


def test_what_is_forgotten_is_gone_and_can_be_learned_again(stored: Stored) -> None:
    lists = ListMemory(MB)
    index, other = opened(stored, lists), opened(stored, lists)
    found(index, stored, 5)
    found(other, stored, 5)
    kept = lists.n_bytes
    index.forget()
    assert index.sight is None
    assert index.known == Known()
    assert lists.n_bytes == kept // 2
    index.take(stored.news(index.known))
    assert found(index, stored, 5)[0] == 5


def test_what_nobody_holds_any_more_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bytes, bytes]] = []
    wipe = wiping._Wiped.__del__

    def watched(self: wiping._Wiped) -> None:
        before = bytes(self)
        wipe(self)
        seen.append((before, bytes(self)))

    monkeypatch.setattr(wiping._Wiped, "__del__", watched)
    (secret, other) = wiped_copies([np.arange(1, 5), np.arange(3, dtype=np.uint8)])
    part = secret[1:3].view(np.uint8)
    assert secret.tolist() == [1, 2, 3, 4]
    del secret, other
    assert seen == []
    assert part[0] == 2
    del part
    ((before, after),) = seen
    assert before.startswith(b"\x01")
    assert after == bytes(len(before))


def test_what_is_kept_cannot_be_written_to() -> None:
    (copy,) = wiped_copies([np.arange(5)])
    with pytest.raises(ValueError, match="read-only"):
        copy[0] = 1


def test_a_search_ends_well_when_the_keys_expire_meanwhile(stored: Stored) -> None:
    lists = ListMemory(MB)
    index = opened(stored, lists)
    expected = found(index, stored, 5, N_LISTS)
    assert index.sight is not None
    point = stored.geometry.space.points(stored.vectors[5][None])[0]
    probe = Probe.of(index.sight, point, N_LISTS)
    chunks = index.find(probe.chunks())
    assert len(chunks) == len(stored.listed)
    answers: list[list[int]] = []
    may_begin = threading.Event()

    def search() -> None:
        may_begin.wait()
        records = probe.scan(chunks, Cuts(200, 50)).records
        answers.append(fields(records)["tag"].tolist())

    thread = threading.Thread(target=search)
    thread.start()
    index.forget()
    gc.collect()
    may_begin.set()
    thread.join()
    assert answers == [expected]
    assert lists.n_bytes == 0
