"""The statements on chunks and layouts, against PostgreSQL."""

import secrets
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from psycopg import errors as pg
from sqlalchemy.ext.asyncio import AsyncEngine

from app import store
from app.domain import Metric
from app.store import chunks
from app.store.chunks import Change, ChunkRow, Known, LayoutRow
from app.store.indexes import StaleIndex
from app.store.pg.engine import driver
from app.store.pg.pool import Pool
from app.store.pg.round_trip import RoundTrip
from app.store.tables import chunk_partition_name, partition_name

NOTHING = Known()
FIRST = LayoutRow(1, 0, 0, 1, 1, (), b"root")


def chunk(size: int = 100) -> ChunkRow:
    return ChunkRow(secrets.token_bytes(16), 0, 0, secrets.token_bytes(size))


def names(some: list[ChunkRow]) -> list[bytes]:
    return [each.name for each in some]


@pytest.fixture
async def index_id(engine: AsyncEngine) -> UUID:
    """A sealed index without items."""
    index_id = uuid.uuid4()
    async with engine.begin() as connection:
        values: dict[str, Any] = {
            "id": index_id,
            "name": "sealed",
            "metric": Metric.COSINE,
            "storage_precision": "float32",
            "sketch_noise": 0,
            "wrapped_dek": b"wrapped",
            "kind": "sealed",
        }
        await store.indexes.create(connection, values)
        await store.partitions.create_items(connection, index_id)
        await store.partitions.create_chunks(connection, index_id)
        async with driver(connection) as raw:
            await chunks.change(raw, index_id, Change(FIRST))
    return index_id


@asynccontextmanager
async def transaction(
    engine: AsyncEngine, level: str = "READ COMMITTED"
) -> AsyncIterator[chunks.Raw]:
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level=level)
        async with connection.begin(), driver(connection) as raw:
            yield raw


async def write(engine: AsyncEngine, index_id: UUID, *some: ChunkRow, remembered: int = 1) -> int:
    async with transaction(engine) as raw:
        epoch = await chunks.share_epoch(raw, index_id, remembered)
        await chunks.add_fresh(raw, index_id, epoch, some)
    return epoch


async def news(pool: Pool, index_id: UUID, known: Known = NOTHING) -> chunks.News:
    async with pool.lend() as raw, RoundTrip(raw) as trip:
        trip.execute(chunks.READ_SETTINGS)
        answer = chunks.ask_news(trip, index_id, known)
    return answer.read()


async def test_news_tell_layout_pages_and_fresh_chunks(
    engine: AsyncEngine, pool: Pool, index_id: UUID
) -> None:
    page, first, second = chunk(5_000), chunk(), chunk(100_000)
    layout = FIRST._replace(version=2, generation=3, encoder_version=4, pages=[page.name])
    async with transaction(engine) as raw:
        await chunks.change(raw, index_id, Change(layout, chunks=[page]))
    await write(engine, index_id, first)
    await write(engine, index_id, second)
    found = await news(pool, index_id)
    assert found.layout == layout
    assert set(found.fresh) == {first.name, second.name}
    assert sorted(found.chunks) == sorted([first, second])
    assert found.pages == [page]


async def test_news_leave_out_what_is_known(
    engine: AsyncEngine, pool: Pool, index_id: UUID
) -> None:
    pages, old, new = [chunk(), chunk()], chunk(), chunk()
    layout = FIRST._replace(version=2, pages=names(pages))
    async with transaction(engine) as raw:
        await chunks.change(raw, index_id, Change(layout, chunks=pages))
    await write(engine, index_id, old)
    await write(engine, index_id, new)
    found = await news(pool, index_id, Known(1, [pages[0].name], [old.name]))
    assert (found.layout, found.pages, found.chunks) == (layout, [pages[1]], [new])
    assert set(found.fresh) == {old.name, new.name}
    found = await news(pool, index_id, Known(2, [], [old.name, new.name]))
    assert (found.layout.pages, found.layout.sealed_root) == ([], b"")
    assert (found.pages, found.chunks) == ([], [])


async def test_an_index_without_layout_is_stale(
    engine: AsyncEngine, pool: Pool, index_id: UUID
) -> None:
    async with transaction(engine) as raw:
        await raw.execute("DELETE FROM layouts")
    with pytest.raises(StaleIndex):
        await news(pool, index_id)
    with pytest.raises(StaleIndex):
        await write(engine, index_id, chunk())


async def merge(
    engine: AsyncEngine, index_id: UUID, carried: ChunkRow | None = None
) -> tuple[LayoutRow, list[ChunkRow]]:
    """Put all fresh chunks but `carried` into a new one; return the layout, and what was merged."""
    async with transaction(engine) as raw:
        layout = await chunks.newest(raw, index_id)
        first = await chunks.first_epoch_in_use(raw, index_id, layout)
    async with transaction(engine, "REPEATABLE READ") as raw:
        assert await chunks.own_layout(raw, index_id)
        seen = [one for one in (await chunks.news(raw, index_id, NOTHING)).chunks if one != carried]
        made = layout._replace(
            version=layout.version + 1, open_epoch=layout.open_epoch + 1, first_epoch=first
        )
        kept = [carried.name] if carried else []
        await chunks.change(
            raw, index_id, Change(made, chunks=[chunk()], merged=names(seen), carried=kept)
        )
    return made, seen


async def test_what_a_merge_has_seen_is_fresh_no_longer(
    engine: AsyncEngine, pool: Pool, index_id: UUID
) -> None:
    old, new = chunk(), chunk()
    assert await write(engine, index_id, old) == 1
    made, seen = await merge(engine, index_id)
    assert (seen, made.open_epoch) == ([old], 2)
    assert await write(engine, index_id, new) == 2
    found = await news(pool, index_id)
    assert (found.layout.version, found.chunks) == (made.version, [new])


async def test_a_layout_passes_over_an_epoch_when_its_writers_have_ended(
    engine: AsyncEngine, pool: Pool, index_id: UUID
) -> None:
    late = chunk()
    async with transaction(engine) as raw:
        epoch = await chunks.share_epoch(raw, index_id, 1)
        # The epoch is open, so a merge does not pass over it, whether somebody writes or not.
        assert (await merge(engine, index_id))[0].first_epoch == 1
        # It is closed now, but somebody writes.
        assert (await merge(engine, index_id))[0].first_epoch == 1
        await chunks.add_fresh(raw, index_id, epoch, [late])
    assert (await news(pool, index_id)).chunks == [late]
    made, seen = await merge(engine, index_id)
    assert (made.first_epoch, seen) == (made.open_epoch - 1, [late])
    assert (await news(pool, index_id)).fresh == []


async def test_a_writer_that_remembers_a_closed_epoch_takes_the_one_that_is_open(
    engine: AsyncEngine, pool: Pool, index_id: UUID
) -> None:
    await merge(engine, index_id)
    await merge(engine, index_id)
    made, _ = await merge(engine, index_id)
    late = chunk()
    assert await write(engine, index_id, late, remembered=1) == made.open_epoch
    assert (await news(pool, index_id)).chunks == [late]


async def test_an_epoch_that_closes_between_lock_and_look_is_not_written_to(
    engine: AsyncEngine, index_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest, n_looks = chunks.newest, 0

    async def look(raw: chunks.Raw, index_id: UUID) -> LayoutRow:
        nonlocal n_looks
        n_looks += 1
        if n_looks == 1:
            async with transaction(engine) as other:
                layout = await newest(other, index_id)
                made = layout._replace(version=2, open_epoch=2)
                await chunks.change(other, index_id, Change(made))
        return await newest(raw, index_id)

    monkeypatch.setattr(chunks, "newest", look)
    assert await write(engine, index_id, chunk()) == 2
    assert n_looks == 2


async def test_a_carried_chunk_stays_fresh_in_the_epoch_that_opens(
    engine: AsyncEngine, pool: Pool, index_id: UUID
) -> None:
    large, small = chunk(70_000), chunk()
    await write(engine, index_id, large, small)
    made, seen = await merge(engine, index_id, carried=large)
    assert seen == [small]
    made, _ = await merge(engine, index_id, carried=large)
    assert made.first_epoch == 2
    assert (await news(pool, index_id)).chunks == [large]


async def test_one_merge_at_a_time(engine: AsyncEngine, index_id: UUID) -> None:
    async with transaction(engine) as first, transaction(engine) as second:
        assert await chunks.own_layout(first, index_id)
        assert not await chunks.own_layout(second, index_id)
        assert await chunks.own_layout(second, uuid.uuid4())


async def test_two_changes_of_one_layout_conflict(engine: AsyncEngine, index_id: UUID) -> None:
    async with transaction(engine, "REPEATABLE READ") as raw:
        layout = await chunks.newest(raw, index_id)
        await merge(engine, index_id)
        with pytest.raises(pg.UniqueViolation):
            await chunks.change(raw, index_id, Change(layout._replace(version=2)))


async def test_retired_chunks_stay_for_a_minute(engine: AsyncEngine, index_id: UUID) -> None:
    old, new, newer = chunk(), chunk(), chunk()
    async with transaction(engine) as raw:
        await chunks.change(raw, index_id, Change(FIRST._replace(version=2), chunks=[old]))
        await chunks.change(
            raw, index_id, Change(FIRST._replace(version=3), chunks=[new], retired=[old.name])
        )
        await chunks.change(
            raw, index_id, Change(FIRST._replace(version=4), chunks=[newer], retired=[new.name])
        )
        await chunks.sweep(raw, index_id)
        wanted = names([old, new, newer])
        assert len(await chunks.by_names(raw, index_id, wanted)) == 3
        await raw.execute(
            "UPDATE layouts SET created_at = created_at - interval '61 s' WHERE version <= 3"
        )
        await chunks.sweep(raw, index_id)
        assert sorted(await chunks.by_names(raw, index_id, wanted)) == sorted([new, newer])
        cursor = await raw.execute("SELECT version FROM layouts")
        assert await cursor.fetchall() == [(4,)]


async def test_what_the_newest_layout_retired_goes_too(engine: AsyncEngine, index_id: UUID) -> None:
    old = chunk()
    async with transaction(engine) as raw:
        await chunks.change(raw, index_id, Change(FIRST._replace(version=2), chunks=[old]))
        await chunks.change(raw, index_id, Change(FIRST._replace(version=3), retired=[old.name]))
        await raw.execute("UPDATE layouts SET created_at = created_at - interval '61 s'")
        await chunks.sweep(raw, index_id)
        assert await chunks.by_names(raw, index_id, [old.name]) == []
        assert (await chunks.newest(raw, index_id)).version == 3


_ITEM = """
    INSERT INTO {} (index_id, item_key, sealed_id, sealed_vector, tag) VALUES (%s, %s, %s, %s, %s)
    """


async def test_tags_are_those_of_the_rows(engine: AsyncEngine, index_id: UUID) -> None:
    keys = [secrets.token_bytes(16) for _ in range(3)]
    async with transaction(engine) as raw:
        for key, tag in zip(keys, (-(2**63), 7, None), strict=True):
            await raw.execute(
                _ITEM.format(partition_name(index_id)), (index_id, key, b"id", b"vector", tag)
            )
        unknown = secrets.token_bytes(16)
        found = await chunks.tags(raw, index_id, [*keys, unknown])
    assert found == dict(zip(keys, (-(2**63), 7, None), strict=True))


async def test_rows_come_with_their_tags(engine: AsyncEngine, pool: Pool, index_id: UUID) -> None:
    key, missing = secrets.token_bytes(16), secrets.token_bytes(16)
    async with transaction(engine) as raw:
        await raw.execute(
            _ITEM.format(partition_name(index_id)), (index_id, key, b"id", b"vector", -5)
        )
    async with pool.lend() as connection, RoundTrip(connection) as trip:
        some = chunks.ask_rows(trip, index_id, [key, missing])
        none = chunks.ask_rows(trip, index_id, [missing])
        also_none = chunks.ask_rows(trip, index_id, [])
    rows = some.read()
    assert (rows.tags.tolist(), rows.candidates.item_keys) == ([-5], [key])
    assert list(rows.candidates.sealed_vectors) == [b"vector"]
    assert [len(answer.read().tags) for answer in (none, also_none)] == [0, 0]


async def test_chunks_that_are_gone_are_left_out(
    engine: AsyncEngine, pool: Pool, index_id: UUID
) -> None:
    there = chunk()
    await write(engine, index_id, there)
    async with pool.lend() as connection, RoundTrip(connection) as trip:
        answer = chunks.ask_chunks(trip, index_id, [there.name, chunk().name])
    assert answer.read() == [there]


async def n_buffers(engine: AsyncEngine, index_id: UUID) -> int:
    """Pages that PostgreSQL looks at to find the fresh chunks."""
    async with transaction(engine) as raw:
        await raw.execute(chunks.READ_SETTINGS)
        first = (await chunks.newest(raw, index_id)).first_epoch
        cursor = await raw.execute(
            "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)"
            f" SELECT name FROM {chunk_partition_name(index_id)}"
            " WHERE index_id = %s AND epoch >= %s",
            (index_id, first),
        )
        (((plan,),),) = await cursor.fetchall()
    return int(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])


async def test_merged_chunks_that_a_snapshot_keeps_are_never_walked_over(
    engine: AsyncEngine, index_id: UUID
) -> None:
    await write(engine, index_id, chunk())
    before = await n_buffers(engine, index_id)
    async with transaction(engine, "REPEATABLE READ") as held:
        await held.execute("SELECT 1")
        for _ in range(10):
            for _ in range(40):
                await write(engine, index_id, chunk())
            await merge(engine, index_id)
        await merge(engine, index_id)
        await write(engine, index_id, chunk())
        async with transaction(engine) as raw:
            cursor = await raw.execute(
                f"SELECT pg_relation_size('{chunk_partition_name(index_id)}')"
            )
            assert (await cursor.fetchall())[0][0] >= 8 * 8192
        assert await n_buffers(engine, index_id) <= before + 1
