"""What goes on while an index is trained: writes, searches, other trainings, deletion."""

import asyncio
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app import store
from app.domain import Caller, IndexAccess, Item, Query
from app.engine.sketches import ivf_statements, samples
from app.engine.sketches.ivf import IvfSketches
from app.services.context import ServiceContext
from app.settings import Settings
from app.training.calibration import Calibrator
from tests.integration.an_index import (
    ACCESS,
    KEY,
    THRESHOLD,
    D,
    N,
    assert_clean,
    clustered,
    create,
    filled,
    items,
    row,
    scalar,
    settled,
    trained,
    until,
)
from tests.integration.moments import hold

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(database_dsn: str) -> Settings:
    return Settings(database_url=database_dsn, workers=1, retrain_threshold=THRESHOLD)


async def test_nothing_written_during_a_training_is_lost_or_missed(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    vectors = clustered(N, D, seed=1)
    model = {str(row): vector for row, vector in enumerate(vectors)}
    await create(services)
    await services.vectors.upsert(ACCESS, items(vectors[:THRESHOLD]))
    await services.vectors.upsert(ACCESS, items(vectors[THRESHOLD:], THRESHOLD))
    is_over = asyncio.Event()

    async def writer(number: int) -> None:
        rng = np.random.default_rng(number)
        own = [item_id for item_id in model if int(item_id) % 4 == number]
        while not is_over.is_set():
            chosen = [str(one) for one in rng.choice(own, 30, replace=False)] + [
                f"{9_000 + 4 * rng.integers(99) + number}"
            ]
            fresh = clustered(len(chosen), D, seed=int(rng.integers(2**31)))
            await services.vectors.upsert(
                ACCESS, [Item(*one) for one in zip(chosen, fresh, strict=True)]
            )
            model.update(zip(chosen, fresh, strict=True))
            doomed = [str(one) for one in rng.choice(own, 10, replace=False)]
            await services.vectors.delete(ACCESS, doomed)
            for item_id in doomed:
                model.pop(item_id, None)

    async def reader() -> None:
        query = Query(vectors=clustered(1, D, seed=4), top_k=10)
        while not is_over.is_set():
            assert [len(matches) for matches in await services.vectors.query(ACCESS, query)] == [10]

    async def training() -> None:
        try:
            # The first was triggered by the upserts and fits the encoder, this one trains again.
            assert await services.training.train(ACCESS, 32) is None
        finally:
            is_over.set()

    await asyncio.gather(training(), reader(), *(writer(number) for number in range(4)))
    assert (await row(engine)).encoder_version == 1
    await settled(services)
    await assert_clean(engine)
    assert set(await services.vectors.ids(ACCESS)) == set(model)
    assert await services.vectors.count(ACCESS) == len(model)
    # Every item is its own nearest neighbour: what the new index lacks would not be found.
    names = list(model)
    everything = await services.vectors.query(
        ACCESS,
        Query(
            vectors=np.stack(list(model.values())),
            top_k=1,
            target_recall=1.0,
            include=frozenset({"distance"}),
        ),
    )
    lost = [
        name for name, matches in zip(names, everything, strict=True) if matches[0].distance != 0
    ]
    assert not lost


async def test_every_sketch_of_the_next_encoder_is_that_of_its_vector(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    vectors = clustered(N, D, seed=1)
    await trained(services, vectors)
    written = await scalar(engine, "SELECT count(sketch_1) FROM items")
    assert written == N
    before = await scalar(
        engine, "SELECT md5(string_agg(sketch_1::text, '' ORDER BY item_key)) FROM items"
    )
    # Stored again, the same items have the same sketches, now written by the upsert instead of the
    # training.
    await services.vectors.upsert(ACCESS, items(vectors))
    assert await scalar(engine, "SELECT count(sketch_0) FROM items") == 0
    assert (
        await scalar(
            engine, "SELECT md5(string_agg(sketch_1::text, '' ORDER BY item_key)) FROM items"
        )
        == before
    )


async def test_sketches_are_written_in_the_order_of_the_item_keys(
    settings: Settings, engine: AsyncEngine
) -> None:
    async with ServiceContext.open(replace(settings, auto_train_disabled=True)) as services:
        await filled(services, clustered(N, D, seed=1))
        index = await row(engine)
        async with engine.connect() as connection:
            # A hash join keeps the order of its outer side, and both sides are in that of the keys.
            for n_keys in (10, N):
                rows = await samples.vectors_after(connection, index, b"", n_keys)
                plan = await samples.explain_write_sketches(
                    connection, index, [item_key for item_key, _ in rows]
                )
                assert "Hash Join" in plan
                assert f"Index Scan using {store.tables.partition_name(index.id)}_pkey on" in plan
                assert "Nested Loop" not in plan
                assert "Sort" not in plan
                assert "Seq Scan" not in plan


async def test_two_workers_never_train_one_index_at_once(
    services: ServiceContext, settings: Settings, engine: AsyncEngine
) -> None:
    await filled(services, clustered(N, D, seed=1))
    async with ServiceContext.open(settings) as other:
        # Each waits for the others, then trains itself; the upsert's training makes four.
        outcomes = await asyncio.gather(
            *(
                one.training.train(ACCESS, n_lists)
                for one, n_lists in ((services, 8), (other, 9), (other, 10))
            )
        )
        assert outcomes == [None, None, None]
    spans = (
        "SELECT count(*) FROM trainings a JOIN trainings b"
        " ON a.id < b.id AND b.started_at < a.finished_at"
    )
    assert await scalar(engine, spans) == 0
    assert await scalar(engine, "SELECT count(*) FROM trainings WHERE outcome = 'succeeded'") == 4
    await assert_clean(engine)


async def test_trainings_beyond_the_limit_wait_in_the_queue(
    services: ServiceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = clustered(N, D, seed=1)
    building = hold(monkeypatch, IvfSketches, "build")
    start = store.training.start
    generations: list[int | None] = []

    async def noted(*arguments: Any, **named: Any) -> int | None:
        generations.append(await start(*arguments, **named))
        return generations[-1]

    monkeypatch.setattr(store.training, "start", noted)
    for name in ("one", "two"):
        await create(services, name=name)
        await services.vectors.upsert(IndexAccess(name, KEY, Caller()), items(vectors))
    await building.reached()

    async def has_asked_twice() -> bool:
        return generations.count(None) >= 2

    await until(has_asked_twice, "the second training asks for its turn, in vain")
    status = await services.training.status(Caller())
    assert (status.running, status.queued) == (["one"], ["two"])
    building.let_go()
    await settled(services)
    for name in ("one", "two"):
        assert (await services.indexes.describe(IndexAccess(name, KEY, Caller()))).is_trained


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (ivf_statements, "announce"),
        (samples, "write_sketches"),
        (IvfSketches, "build"),
        (Calibrator, "profile"),
        (IvfSketches, "swap"),
        (IvfSketches, "tidy"),
    ],
)
async def test_an_index_can_be_deleted_in_any_phase_of_its_training(
    services: ServiceContext,
    engine: AsyncEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: Any,
    name: str,
) -> None:
    caplog.set_level(logging.INFO)
    with monkeypatch.context() as patch:
        moment = hold(patch, owner, name)
        await filled(services, clustered(N, D, seed=1))
        training = asyncio.create_task(services.training.train(ACCESS, 16))
        await moment.reached()
        await services.indexes.delete(ACCESS)
        await until(lambda: is_partition_gone(engine), "the partition is dropped")
        moment.let_go()
        failure = await training
    assert failure is not None
    assert "deleted" in failure

    # That is no fault of anybody's, and the log says so.
    async def is_given_up() -> bool:
        return "was given up: its claim is lost" in caplog.text

    await until(is_given_up, "the training is given up")
    assert "failed" not in caplog.text
    assert not any(record.exc_info for record in caplog.records)
    await create(services)
    await services.vectors.upsert(ACCESS, items(clustered(10, D, seed=2)))
    await assert_clean(engine)


async def is_partition_gone(engine: AsyncEngine) -> bool:
    statement = "SELECT count(*) = 0 FROM pg_class WHERE relname ~ '^items_[0-9a-f]{32}$'"
    return bool(await scalar(engine, statement))


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_an_index_is_trained_whatever_isolation_the_database_defaults_to(
    settings: Settings, engine: AsyncEngine, database_dsn: str, level: str
) -> None:
    with psycopg.connect(database_dsn, autocommit=True) as admin:
        name = admin.info.dbname
        admin.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = '{level}'")
    async with ServiceContext.open(settings) as services:
        await trained(services, clustered(N, D, seed=1))
        assert await services.training.train(ACCESS, 16) is None
    assert (await row(engine)).n_lists == 16
    await assert_clean(engine)
