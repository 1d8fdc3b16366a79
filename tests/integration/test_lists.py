"""A sealed index against PostgreSQL: written, merged, searched, built anew, and raced for."""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app import errors, store
from app.crypto import keys
from app.domain import Index, Matrix
from app.engine.keyed import KeyedIndex, Shape, first_shape
from app.engine.lists import layout as layouts
from app.engine.lists.building import Build, Plan
from app.engine.lists.clustering import fit
from app.engine.lists.database import Database, Transaction, in_thread
from app.engine.lists.entries import fields
from app.engine.lists.layout import Encoding
from app.engine.lists.memory import IndexMemory, ListMemory
from app.engine.lists.merging import Limits, Merger
from app.engine.lists.placing import listed, records_of
from app.engine.lists.probe import Cuts, Probe
from app.engine.lists.sealing import Sealing
from app.engine.lists.space import Space, distances_to
from app.engine.sketches.parameters import EncoderParameters
from app.store import chunks
from app.store.chunks import Change, LayoutRow
from app.store.indexes import StaleIndex
from app.store.pg.engine import driver
from app.store.pg.pool import Pool
from app.store.pg.round_trip import RoundTrip
from app.store.tables import partition_name

D, N = 8, 600
ALL_AT_ONCE = Limits(min_entries=0, share=0)
_UPSERT = """
    INSERT INTO {} AS stored (index_id, item_key, sealed_id, sealed_vector, tag)
    VALUES (%s, %s, %s, %s, %s)
    ON CONFLICT (index_id, item_key) DO UPDATE
    SET sealed_vector = excluded.sealed_vector, tag = excluded.tag
    """


class Sealed:
    """A sealed index, and a worker that knows its key."""

    def __init__(self, engine: AsyncEngine, pool: Pool, index: Index) -> None:
        self.engine, self.pool = engine, pool
        index_keys = keys.IndexKeys.derive(secrets.token_bytes(32), index.id)
        keyed = KeyedIndex(index, index_keys, None)
        parameters = EncoderParameters(0, np.zeros(D, np.float32), 1.0)
        self.shape: Shape = first_shape(keyed, parameters)
        self.keyed = replace(keyed, shape=self.shape)
        self.database = Database(engine, self.keyed, self.shape)
        space = Space(index.metric, parameters.mean, parameters.scale)
        self.encoding = Encoding(space, index_keys.sketch_key, self.shape.sketch_bits)
        self.lists = ListMemory(1 << 20)
        self.vectors: dict[bytes, Matrix] = {}
        self.use_generation(1, None)

    def use_generation(self, generation: int, points: Matrix | None) -> None:
        """What a worker does that sees a new revision."""
        self.sealing = Sealing(self.keyed.keys, generation, 0)
        self.geometry = self.encoding.geometry(points)
        self.memory = IndexMemory(self.lists, self.sealing, self.encoding)

    @property
    def index(self) -> Index:
        return self.keyed.index

    async def begin(self) -> None:
        """What is stored of an index without items."""
        row = LayoutRow(1, 1, 0, 1, 1, (), b"")
        made = layouts.first(self.sealing, row, [[]], None)
        async with self.database._transaction("READ COMMITTED") as transaction:
            await transaction.change(Change(made.row, chunks=made.pages))

    async def write(
        self, items: Mapping[bytes, Matrix], *, hold: asyncio.Event | None = None
    ) -> None:
        """Store items as an upsert does; wait in the middle for `hold`."""
        async with self.engine.begin() as connection, driver(connection) as raw:
            await store.indexes.share_encoder(connection, self.index)
            names = sorted(items)
            vectors = np.array([items[name] for name in names])
            tags = np.frombuffer(secrets.token_bytes(8 * len(names)), np.int64)
            await self._write_rows(raw, names, vectors, tags)
            if hold is not None:
                await hold.wait()
            entries = listed(self.geometry, records_of(names, tags), vectors, is_exact=False)
            epoch = await chunks.share_epoch(raw, self.index.id, 1)
            await chunks.add_fresh(raw, self.index.id, epoch, list(self.sealing.fresh(entries)))
        self.vectors |= items

    async def _write_rows(
        self, raw: chunks.Raw, names: Sequence[bytes], vectors: Matrix, tags: Any
    ) -> None:
        sealed = self.keyed.keys.vectors.seal_rows(names, vectors)
        rows = zip(names, sealed, tags.tolist(), strict=True)
        await raw.cursor().executemany(
            _UPSERT.format(partition_name(self.index.id)),
            [(self.index.id, name, b"id", vector, tag) for name, vector, tag in rows],
        )

    async def delete(self, names: Sequence[bytes]) -> None:
        async with self.engine.begin() as connection:
            await store.items.delete(connection, self.index, names)
        for name in names:
            del self.vectors[name]

    async def merge(self, limits: Limits = ALL_AT_ONCE) -> bool:
        return await Merger(self.sealing, self.encoding, in_thread, limits).merge(self.database)

    async def train(self, n_lists: int, generation: int = 2) -> tuple[Build, Matrix]:
        points = self.encoding.space.points(np.array(list(self.vectors.values())))
        random = np.random.default_rng(0)
        centroids = fit(points, n_lists, is_spherical=False, random=random).points
        plan = Plan(
            self.sealing,
            self.encoding,
            replace(self.sealing, generation=generation),
            self.encoding.geometry(centroids),
            centroids,
            is_exact=False,
        )
        build = Build(plan, in_thread)
        await build.build(self.database)
        return build, centroids

    async def nearest(self, query: Matrix, k: int, n_probes: int = 1_000) -> list[bytes]:
        """What a search does: what is known is scanned, and one trip tells what is new."""
        async with self.pool.lend() as raw, RoundTrip(raw) as trip:
            trip.execute(chunks.READ_SETTINGS)
            answer = chunks.ask_news(trip, self.index.id, self.memory.known)
        sight = self.memory.take(answer.read())
        probe = Probe.of(sight, self.encoding.space.points(query[None])[0], n_probes)
        wanted = probe.chunks()
        opened = self.memory.find(wanted)
        missing = [name for name in wanted if name not in opened]
        async with self.pool.lend() as raw, RoundTrip(raw) as trip:
            listed_chunks = chunks.ask_chunks(trip, self.index.id, missing)
        opened |= self.memory.open_lists(listed_chunks.read(), wanted)
        ranked = fields(probe.scan(opened, Cuts(N, N)).records)
        async with self.pool.lend() as raw, RoundTrip(raw) as trip:
            rows = chunks.ask_rows(trip, self.index.id, ranked["item_key"].tolist())
        found = rows.read()
        tags = dict(zip(found.candidates.item_keys, found.tags.tolist(), strict=True))
        pairs = zip(ranked["item_key"].tolist(), ranked["tag"].tolist(), strict=True)
        live = [key for key, tag in pairs if tags.get(key) == tag]
        assert len(live) == len(set(live))
        return sorted(live, key=lambda key: float(distances_to(query, self.vectors[key][None])[0]))[
            :k
        ]

    async def check(self) -> None:
        """Every item is found, and no other."""
        found = await self.nearest(np.zeros(D, np.float32), N)
        assert sorted(found) == sorted(self.vectors)

    async def n_chunks(self) -> dict[str, int]:
        async with self.engine.begin() as connection, driver(connection) as raw:
            news = await chunks.news(raw, self.index.id, chunks.Known())
            layout = layouts.read(self.sealing, self.encoding, news, None)
            return {"fresh": len(news.fresh), "listed": len(layout.chunks())}


def some(n: int, seed: int) -> dict[bytes, Matrix]:
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((n, D)).astype(np.float32)
    return {random.bytes(16): vector for vector in vectors}


@pytest.fixture
async def sealed(engine: AsyncEngine, pool: Pool) -> Sealed:
    index_id = uuid4()
    values = {
        "id": index_id,
        "name": "sealed",
        "metric": "euclidean",
        "storage_precision": "float32",
        "sketch_noise": 0,
        "dimension": D,
        "wrapped_dek": b"wrapped",
        "kind": "sealed",
    }
    async with engine.begin() as connection:
        await store.indexes.create(connection, values)
        await store.partitions.create_items(connection, index_id)
        await store.partitions.create_chunks(connection, index_id)
        index = await store.indexes.by_id(connection, index_id)
    assert index is not None
    made = Sealed(engine, pool, index)
    await made.begin()
    return made


async def test_what_was_written_is_found_fresh_and_merged(sealed: Sealed) -> None:
    for seed in range(6):
        await sealed.write(some(20, seed))
    await sealed.check()
    assert (await sealed.n_chunks())["fresh"] == 6
    assert await sealed.merge(Limits())
    assert (await sealed.n_chunks())["fresh"] == 1
    await sealed.check()
    assert await sealed.merge()
    assert await sealed.n_chunks() == {"fresh": 0, "listed": 1}
    await sealed.check()
    assert not await sealed.merge()


async def test_replaced_and_deleted_items_are_found_no_longer(sealed: Sealed) -> None:
    items = some(50, 1)
    await sealed.write(items)
    await sealed.merge()
    names = list(items)
    await sealed.write({name: -10 * items[name] for name in names[:10]})
    await sealed.delete(names[10:20])
    await sealed.check()
    assert (await sealed.nearest(-10 * items[names[0]], 1)) == [names[0]]
    await sealed.merge()
    await sealed.check()


async def test_trained_lists_answer_as_the_untrained_index_did(sealed: Sealed) -> None:
    await sealed.write(some(N, 2))
    await sealed.merge()
    query = np.full(D, 0.5, np.float32)
    before = await sealed.nearest(query, 10)
    build, centroids = await sealed.train(20)
    await build.swap(sealed.database)
    with pytest.raises(StaleIndex):
        await sealed.nearest(query, 10)
    sealed.use_generation(2, centroids)
    assert await sealed.nearest(query, 10) == before
    assert len(set(await sealed.nearest(query, 10, n_probes=8)) & set(before)) >= 8
    assert (await sealed.n_chunks())["listed"] == 20
    await sealed.check()


async def test_writes_and_merges_during_a_training_are_in_the_new_lists(sealed: Sealed) -> None:
    items = some(100, 3)
    await sealed.write(items)
    await sealed.merge()
    build, centroids = await sealed.train(10)
    names = list(items)
    await sealed.write({name: items[name] + 1 for name in names[:30]})
    await sealed.delete(names[30:40])
    await sealed.write(some(40, 4))
    await sealed.merge()
    await sealed.write(some(5, 5))
    await build.swap(sealed.database)
    sealed.use_generation(2, centroids)
    await sealed.check()
    assert (await sealed.n_chunks())["fresh"] == 0


async def test_a_swap_waits_for_the_writer_that_began_before_it(sealed: Sealed) -> None:
    await sealed.write(some(50, 6))
    build, centroids = await sealed.train(5)
    go_on = asyncio.Event()
    writer = asyncio.create_task(sealed.write(some(5, 7), hold=go_on))
    await until_locked(sealed, "ShareLock")
    swap = asyncio.create_task(build.swap(sealed.database))
    await until_locked(sealed, "ExclusiveLock", is_granted=False)
    assert not swap.done()
    go_on.set()
    await asyncio.gather(writer, swap)
    sealed.use_generation(2, centroids)
    await sealed.check()


async def until_locked(sealed: Sealed, mode: str, *, is_granted: bool = True) -> None:
    """Wait until somebody holds, or waits for, an advisory lock."""
    statement = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = %s AND granted = %s"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    async with (
        asyncio.timeout(30),
        sealed.engine.connect() as connection,
        driver(connection) as raw,
    ):
        while True:
            cursor = await raw.execute(statement, (mode, is_granted))
            if (await cursor.fetchall())[0][0]:
                return
            await raw.rollback()
            await asyncio.sleep(0.01)


async def test_two_upserts_of_one_id_that_commit_in_the_other_order(sealed: Sealed) -> None:
    (name,) = some(1, 8)
    first, second = np.ones(D, np.float32), np.full(D, 5, np.float32)
    await sealed.write({name: np.zeros(D, np.float32)})
    go_on = asyncio.Event()
    # Its row is written first, its entry and its COMMIT come last; the other one waits for the row.
    early = asyncio.create_task(sealed.write({name: first}, hold=go_on))
    await until_locked(sealed, "ShareLock")
    late = asyncio.create_task(sealed.write({name: second}))
    go_on.set()
    await early
    await late
    sealed.vectors[name] = second
    await sealed.check()
    await sealed.merge()
    await sealed.check()
    assert await sealed.nearest(second, 1) == [name]


async def test_a_write_that_ends_after_a_merge_began_is_merged_by_the_next(sealed: Sealed) -> None:
    await sealed.write(some(10, 9))
    go_on = asyncio.Event()
    late = asyncio.create_task(sealed.write(some(3, 10), hold=go_on))
    await until_locked(sealed, "ShareLock")
    await sealed.merge()
    go_on.set()
    await late
    assert (await sealed.n_chunks())["fresh"] == 1
    await sealed.check()
    await sealed.merge()
    await sealed.merge()
    assert (await sealed.n_chunks())["fresh"] == 0
    await sealed.check()


async def test_a_delete_in_the_middle_of_a_merge(
    sealed: Sealed, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = some(10, 11)
    await sealed.write(items)
    tags = Transaction.tags

    async def then_deleted(own: Transaction, wanted: Any) -> Any:
        found = await tags(own, wanted)
        if len(sealed.vectors) == 10:
            await sealed.delete(list(items)[:3])
        return found

    monkeypatch.setattr(Transaction, "tags", then_deleted)
    assert await sealed.merge()
    await sealed.check()
    assert len(sealed.vectors) == 7


async def test_of_two_workers_one_merges(sealed: Sealed) -> None:
    await sealed.write(some(10, 12))
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(sealed.database.snapshot())
        assert await other.own_layout()
        assert not await sealed.merge()
    assert await sealed.merge()
    await sealed.check()


async def test_a_layout_that_was_changed_in_the_database_is_an_error(sealed: Sealed) -> None:
    await sealed.write(some(10, 13))
    async with sealed.engine.begin() as connection, driver(connection) as raw:
        await raw.execute("UPDATE layouts SET first_epoch = first_epoch + 1")
    with pytest.raises(errors.DataCorrupted):
        await sealed.nearest(np.zeros(D, np.float32), 1)


async def test_an_older_chunk_in_the_place_of_a_newer_one_is_an_error(sealed: Sealed) -> None:
    await sealed.write(some(10, 14))
    await sealed.merge()
    async with sealed.engine.begin() as connection, driver(connection) as raw:
        cursor = await raw.execute("SELECT sealed_entries FROM chunks WHERE epoch IS NULL")
        old = {value for (value,) in await cursor.fetchall()}
    await sealed.write(some(10, 15))
    await sealed.merge()
    async with sealed.engine.begin() as connection, driver(connection) as raw:
        layout = await chunks.newest(raw, sealed.index.id)
        for value in old:
            async with raw.transaction(force_rollback=True):
                await raw.execute(
                    "UPDATE chunks SET sealed_entries = %b WHERE name = %s",
                    (value, layout.pages[0]),
                )
                news = await chunks.news(raw, sealed.index.id, chunks.Known())
                with pytest.raises(errors.DataCorrupted):
                    layouts.read(sealed.sealing, sealed.encoding, news, None)


async def test_what_a_killed_training_has_left_can_be_dropped(sealed: Sealed) -> None:
    await sealed.write(some(50, 16))
    await sealed.merge()
    await sealed.train(5)
    async with sealed.engine.begin() as connection, driver(connection) as raw:
        layout = await chunks.newest(raw, sealed.index.id)
        n_before = await n_rows(raw)
        await chunks.drop_unused(raw, sealed.index.id, layout)
        assert n_before - await n_rows(raw) == 5
    await sealed.check()


async def n_rows(raw: chunks.Raw) -> int:
    cursor = await raw.execute("SELECT count(*) FROM chunks")
    return int((await cursor.fetchall())[0][0])


async def test_rows_without_entries_get_them_by_a_training(sealed: Sealed) -> None:
    await sealed.write(some(30, 17))
    async with sealed.engine.begin() as connection, driver(connection) as raw:
        await raw.execute("DELETE FROM chunks WHERE epoch IS NOT NULL")
    with pytest.raises(AssertionError):
        await sealed.check()
    build, centroids = await sealed.train(4)
    await build.swap(sealed.database)
    sealed.use_generation(2, centroids)
    await sealed.check()
