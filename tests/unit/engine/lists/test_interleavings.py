"""Writers, merges and trainings in any order of their statements, killed at any of them."""

from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar
from uuid import UUID

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.crypto.keys import IndexKeys, WriterKeys
from app.domain import Matrix, Metric
from app.engine.lists.building import Build, Plan
from app.engine.lists.entries import Entries, fields, keys
from app.engine.lists.layout import Encoding, Geometry, first, read
from app.engine.lists.merging import Limits, Merger
from app.engine.lists.placing import listed, records_of, unlisted
from app.engine.lists.sealing import Sealing
from app.engine.lists.space import Space
from app.store.chunks import Known, LayoutRow
from app.store.indexes import StaleIndex
from tests.unit.engine.lists.model import Conflict, Database

Answer = TypeVar("Answer")
D, MAX_LISTS = 3, 5
KEYS = [bytes([number]) * 16 for number in range(10)]
INDEX_KEYS = IndexKeys.derive(bytes(32), UUID(int=3))
WRITER_KEYS = WriterKeys(INDEX_KEYS.write_key(), UUID(int=3))
SPACE = Space(Metric.EUCLIDEAN, np.zeros(D, np.float32), 1.0)
ENCODING = Encoding(SPACE, INDEX_KEYS.sketch_key, 64)

some_keys = st.sets(st.sampled_from(KEYS), min_size=1, max_size=4)


async def at_once(work: Callable[[], Answer]) -> Answer:
    return work()


class Interleavings(RuleBasedStateMachine):
    """The database, and those who are at work on it."""

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.database = Database()
        self.points: dict[int, Matrix | None] = {1: None}
        self.tasks: dict[str, Coroutine[Any, Any, Any]] = {}
        self.n_tasks = 0
        row = LayoutRow(1, 1, 0, 1, 1, (), b"")
        made = first(self.sealing(1), row, [[]], None)
        self.database.state.layouts[1] = made.row
        self.database.state.chunks |= {page.name: (page, None) for page in made.pages}
        self.n_generations = 1

    def sealing(self, generation: int) -> Sealing:
        return Sealing(INDEX_KEYS, generation, 0)

    def geometry(self, generation: int) -> Geometry:
        return ENCODING.geometry(self.points[generation])

    @property
    def generation(self) -> int:
        return self.database.state.newest.generation

    def start(self, kind: str, task: Coroutine[Any, Any, Any]) -> None:
        self.n_tasks += 1
        self.tasks[f"{kind} {self.n_tasks}"] = task

    @precondition(lambda self: len(self.tasks) < 5)
    @rule(
        some=some_keys,
        is_exact=st.booleans(),
        is_reader=st.booleans(),
        remembered=st.integers(0, 3),
    )
    def upsert(self, some: set[bytes], is_exact: bool, is_reader: bool, remembered: int) -> None:
        names = sorted(some)
        tags = self.random.integers(-(2**62), 2**62, len(names))
        vectors = self.random.standard_normal((len(names), D)).astype(np.float32)
        geometry = self.geometry(self.generation)
        place = listed if is_reader else unlisted
        entries = place(geometry, records_of(names, tags), vectors, is_exact=is_exact)
        sealing = self.sealing(self.generation)
        if not is_reader:
            sealing = replace(sealing, keys=WRITER_KEYS)
        items = dict(zip(names, zip(tags.tolist(), vectors, strict=True), strict=True))
        epoch = self.database.state.newest.open_epoch - remembered
        write = self.database.upsert(items, list(sealing.fresh(entries)), epoch)
        self.start("upsert", write)

    @precondition(lambda self: len(self.tasks) < 5)
    @rule(some=some_keys)
    def delete(self, some: set[bytes]) -> None:
        self.start("delete", self.database.delete(some))

    @precondition(lambda self: len(self.tasks) < 5)
    @rule(
        min_entries=st.sampled_from([0, 3, 1_000]),
        small_bytes=st.sampled_from([0, 200, 1_000]),
        min_lists=st.sampled_from([1, 3, 32]),
        worn=st.sets(st.integers(0, MAX_LISTS - 1), max_size=2),
        is_known=st.booleans(),
    )
    def merge(
        self, min_entries: int, small_bytes: int, min_lists: int, worn: set[int], is_known: bool
    ) -> None:
        limits = Limits(
            min_entries=min_entries, small_bytes=small_bytes, min_lists=min_lists, share=0
        )
        sealing = self.sealing(self.generation)
        merger = Merger(sealing, ENCODING, at_once, limits)
        known = None
        if is_known:
            known = read(sealing, ENCODING, self.database.state.news(Known()), None)
        worn = {number % len(self.geometry(self.generation).centroids) for number in worn}
        self.start("merge", merger.merge(self.database, known=known, worn=worn))

    @precondition(lambda self: not any(name.startswith("training") for name in self.tasks))
    @rule(n_lists=st.integers(0, MAX_LISTS), is_exact=st.booleans())
    def train(self, n_lists: int, is_exact: bool) -> None:
        self.n_generations += 1
        generation = self.n_generations
        points = self.random.standard_normal((n_lists, D)).astype(np.float32) if n_lists else None
        self.points[generation] = points
        plan = Plan(
            self.sealing(self.generation),
            ENCODING,
            self.sealing(generation),
            self.geometry(generation),
            points,
            is_exact,
        )
        self.start("training", self.training(Build(plan, at_once)))

    async def training(self, build: Build) -> None:
        await build.build(self.database)
        await build.swap(self.database)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), n_steps=st.one_of(st.integers(1, 9), st.just(1_000)))
    def go_on(self, data: st.DataObject, n_steps: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.tasks)))
        for _ in range(n_steps):
            if not self.step(name):
                break

    def step(self, name: str) -> bool:
        try:
            self.tasks[name].send(None)
        except (StopIteration, StaleIndex, Conflict):
            del self.tasks[name]
            return False
        return True

    @rule(some=some_keys, is_reader=st.booleans())
    def upsert_at_once(self, some: set[bytes], is_reader: bool) -> None:
        self.upsert(some, is_exact=False, is_reader=is_reader, remembered=0)
        self.finish_last()

    @rule(min_entries=st.sampled_from([0, 1_000]))
    def merge_at_once(self, min_entries: int) -> None:
        self.merge(min_entries, 200, 1, set(), is_known=False)
        self.finish_last()

    def finish_last(self) -> None:
        """Let the one that began last go on to its end, unless it has to wait for others."""
        name = list(self.tasks)[-1]
        n_steps = 0
        while n_steps < 100 and self.step(name):
            n_steps += 1

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        self.tasks.pop(data.draw(st.sampled_from(sorted(self.tasks)))).close()

    @rule()
    def sweep(self) -> None:
        self.database.sweep()

    def entries(self) -> tuple[list[Entries], list[Entries]]:
        """What a search would read: entries of lists, and fresh ones."""
        state = self.database.state
        sealing = self.sealing(self.generation)
        news = state.news(Known())
        layout = read(sealing, ENCODING, news, None)
        of_lists = []
        for number in range(layout.n_lists):
            for chunk in layout.chunks_of(number):
                entries = sealing.open_listed(state.chunks[chunk.name][0])
                assert len(entries) == chunk.n_entries
                assert set(entries.lists.tolist()) == {number}
                of_lists.append(entries)
        return of_lists, [sealing.open_fresh(row) for row in news.chunks]

    @invariant()
    def every_item_has_one_entry(self) -> None:
        listed_entries, fresh = self.entries()
        found: Counter[tuple[bytes, int]] = Counter()
        for part in (*listed_entries, *fresh):
            found.update(zip(keys(part), fields(part.records)["tag"].tolist(), strict=True))
        items = self.database.state.items
        assert {pair: found[pair] for pair in ((key, tag) for key, (tag, _) in items.items())} == {
            (key, tag): 1 for key, (tag, _) in items.items()
        }

    @invariant()
    def no_fresh_chunk_is_left_behind(self) -> None:
        newest = self.database.state.newest
        for row, epoch in self.database.state.chunks.values():
            if epoch is not None:
                assert epoch >= newest.first_epoch
                assert row.generation == newest.generation

    @invariant()
    def every_entry_says_where_its_item_is(self) -> None:
        items = self.database.state.items
        geometry = self.geometry(self.generation)
        listed_entries, _ = self.entries()
        for part in listed_entries:
            tags = fields(part.records)["tag"].tolist()
            for row, (key, tag) in enumerate(zip(keys(part), tags, strict=True)):
                if key in items and items[key][0] == tag:
                    vector = items[key][1][None]
                    made = listed(
                        geometry, records_of([key], np.array([tag])), vector, is_exact=part.is_exact
                    )
                    assert made.lists[0] == part.lists[row]
                    assert made.codes.tobytes() == part.codes[row].tobytes()

    def teardown(self) -> None:
        for task in self.tasks.values():
            task.close()


Interleavings.TestCase.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
TestInterleavings = Interleavings.TestCase
