"""Training against a real PostgreSQL: what it makes, what goes on meanwhile, and what is left when it is stopped."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from app import errors, store
from app.domain import (
    Caller,
    Index,
    IndexAccess,
    Item,
    Matrix,
    NewIndex,
    Precision,
    Query,
    TrainingResult,
    TrainingStatus,
)
from app.engine.sketches import samples
from app.services.context import ServiceContext
from app.settings import Settings
from app.store.pg.pool import Pool
from app.store.presence import Presence
from app.store.training import Claim, ClaimLost
from app.training import trainer as trainers
from tests.plans import plan_by_lists

pytestmark = pytest.mark.anyio

KEY = secrets.token_hex(32)
ACCESS = IndexAccess("test", KEY, Caller())
THRESHOLD = 1_500
N, D = 3_000, 48
PHASES = ["fitting", "encoding", "building", "calibrating", "swapping", "cleaning"]


@pytest.fixture
def settings(database_dsn: str) -> Settings:
    return Settings(database_url=database_dsn, workers=1, retrain_threshold=THRESHOLD)


@pytest.fixture
async def services(settings: Settings) -> AsyncIterator[ServiceContext]:
    async with ServiceContext.open(settings) as context:
        yield context


def clustered(n: int, d: int, seed: int) -> Matrix:
    """Vectors around 60 centres, the same for every seed, all a way off from zero."""
    centres = np.random.default_rng(0).standard_normal((60, d)) + 1
    rng = np.random.default_rng(seed)
    return (centres[rng.integers(60, size=n)] + 0.6 * rng.standard_normal((n, d))).astype(
        np.float32
    )


def items(vectors: Matrix, start: int = 0) -> list[Item]:
    return [Item(str(start + row), vector) for row, vector in enumerate(vectors)]


async def create(services: ServiceContext, **fields: Any) -> None:
    await services.indexes.create(NewIndex(name="test", index_key=KEY, **fields))


async def filled(services: ServiceContext, vectors: Matrix, **fields: Any) -> None:
    """Create an index with `vectors`, and no training triggered by them."""
    await create(services, **fields)
    half = len(vectors) // 2
    assert (await services.vectors.upsert(ACCESS, items(vectors[:half]))).training_message is None
    await services.vectors.upsert(ACCESS, items(vectors[half:], half))


async def settled(services: ServiceContext) -> None:
    """Wait until no training is at work."""
    for _ in range(600):
        status = await services.training.status(Caller())
        if not (status.running or status.queued):
            return
        await asyncio.sleep(0.05)
    pytest.fail("a training does not end")


async def row(engine: AsyncEngine) -> Index:
    async with engine.connect() as connection:
        index = await store.indexes.by_name(connection, "test")
    assert index is not None
    return index


async def relations(engine: AsyncEngine) -> list[tuple[str, bool]]:
    """Name every ivfflat index, and whether it is valid."""
    statement = sa.text(
        "SELECT relname, indisvalid FROM pg_class JOIN pg_index ON indexrelid = pg_class.oid WHERE relname ~ '^ivf_'"
    )
    async with engine.connect() as connection:
        return [(name, is_valid) for name, is_valid in await connection.execute(statement)]


async def scalar(engine: AsyncEngine, statement: str) -> Any:
    async with engine.begin() as connection:
        return (await connection.execute(sa.text(statement))).scalar_one_or_none()


async def assert_clean(engine: AsyncEngine) -> None:
    index = await row(engine)
    assert await relations(engine) == [(store.tables.ivf_name(index.id, index.generation), True)]


def exact(metric: str, queries: Matrix, vectors: Matrix, k: int) -> list[set[str]]:
    if metric == "cosine":
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    squared = (vectors**2).sum(axis=1) - 2 * queries.astype(np.float64) @ vectors.T
    return [{str(one) for one in order} for order in np.argsort(squared, axis=1)[:, :k]]


async def recall(
    services: ServiceContext, metric: str, queries: Matrix, vectors: Matrix, **query: Any
) -> float:
    top_k = query.get("top_k", 10)
    found = await services.vectors.query(
        ACCESS, Query(vectors=queries, **{"top_k": top_k, **query})
    )
    truth = exact(metric, queries, vectors, top_k)
    shares = [
        len({m.id for m in matches} & true) / top_k
        for matches, true in zip(found, truth, strict=True)
    ]
    return float(np.mean(shares))


# ---------------------------------------------------------------- what it makes


@pytest.mark.parametrize(
    ("metric", "precision", "d"),
    [
        ("cosine", "float32", D),
        ("euclidean", "float32", D),
        ("squared_euclidean", "float16", D),
        ("euclidean", "float32", 3),
    ],
)
async def test_upserts_alone_train_an_index_that_keeps_its_promise(
    services: ServiceContext, engine: AsyncEngine, metric: str, precision: str, d: int
) -> None:
    vectors, queries = clustered(N, d, seed=1), clustered(100, d, seed=2)
    # Norms that vary, as no embedding model's do.
    vectors *= np.random.default_rng(3).uniform(0.5, 2, (N, 1)).astype(np.float32)
    await create(services, metric=metric, storage_precision=Precision(precision))
    assert (
        await services.vectors.upsert(ACCESS, items(vectors[:THRESHOLD]))
    ).training_message is None
    outcome = await services.vectors.upsert(ACCESS, items(vectors[THRESHOLD:], THRESHOLD))
    assert outcome.training_message == (
        f"Index training has been triggered (vectors: {N}, threshold: {THRESHOLD})"
    )
    status = await services.training.status(Caller())
    assert [*status.running, *status.queued] == ["test"]
    await settled(services)
    index = await row(engine)
    assert (index.n_lists, index.encoder_version, index.sealed_next_encoder) == (64, 1, None)
    assert (await services.indexes.describe(ACCESS)).is_trained
    await assert_clean(engine)
    assert await recall(services, metric, queries, vectors) >= 0.93
    assert await recall(services, metric, queries, vectors, top_k=100) >= 0.9
    assert await recall(services, metric, queries, vectors, target_recall=0.99) >= 0.97


async def test_queries_use_the_new_ivfflat_index_and_fewer_probes_find_less(
    services: ServiceContext, engine: AsyncEngine, pool: Pool
) -> None:
    # No clusters: neighbours lie in many lists.
    rng = np.random.default_rng(1)
    vectors, queries = (rng.standard_normal((n, D)).astype(np.float32) for n in (N, 60))
    await filled(services, vectors)
    await settled(services)
    index = await row(engine)
    assert (
        f"Index Scan using {store.tables.ivf_name(index.id, index.generation)}"
        in await plan_by_lists(pool, index)
    )
    by_probes = [
        await recall(services, "euclidean", queries, vectors, n_probes=n_probes, rerank_mult=4)
        for n_probes in (1, 8, index.n_lists)
    ]
    assert by_probes == sorted(by_probes)
    assert by_probes[0] < 0.8
    assert by_probes[2] > by_probes[0] + 0.2
    all_lists = await recall(services, "euclidean", queries, vectors, n_probes=10_000)
    assert all_lists >= by_probes[2] - 0.02
    # The winners of ten candidates tell that ten are not enough.
    assert await recall(services, "euclidean", queries, vectors, rerank_mult=0) >= 0.9


async def test_a_new_generation_is_measured_and_not_used_before_the_swap(
    services: ServiceContext, engine: AsyncEngine, pool: Pool
) -> None:
    await filled(services, clustered(N, D, seed=1))
    await settled(services)
    index = await row(engine)
    bits = index.sketch_bits or 0
    new = replace(index, generation=index.generation + 1)
    async with engine.begin() as connection:
        await connection.exec_driver_sql(
            f"CREATE INDEX {store.tables.ivf_name(index.id, new.generation)} ON "
            f"{store.tables.partition_name(index.id)} "
            f"{store.partitions.ivf_definition(index.encoder_version, bits, 8, new.generation)}"
        )
    before = await plan_by_lists(pool, index)
    async with engine.begin() as connection:
        measured = await samples.explain_candidate_keys(connection, new, bytes(bits // 8))
    assert store.tables.ivf_name(index.id, index.generation) in before
    assert store.tables.ivf_name(index.id, new.generation) in measured
    assert "Seq Scan" not in measured


async def test_too_few_items_stay_exact(services: ServiceContext, engine: AsyncEngine) -> None:
    await create(services)
    assert await services.training.train(ACCESS, None) is None
    await services.vectors.upsert(ACCESS, items(clustered(500, D, seed=1)))
    for n_lists in (None, 2, 300):
        assert await services.training.train(ACCESS, n_lists) is None
    index = await row(engine)
    assert not index.is_trained
    assert not index.is_training_due
    assert index.n_lists == 1


async def test_training_again_may_raise_or_lower_the_lists(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    vectors = clustered(N, D, seed=1)
    await filled(services, vectors)
    await settled(services)
    for n_lists, expected in ((100, 100), (None, 64), (5, 5), (0, 64), (1_501, 64)):
        assert await services.training.train(ACCESS, n_lists) is None
        index = await row(engine)
        assert index.n_lists == expected
        assert index.encoder_version == 1
        await assert_clean(engine)
    with pytest.raises(errors.InvalidInput):
        await services.training.train(ACCESS, -1)


async def test_the_lists_an_older_client_asked_for_at_creation_are_made(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    await filled(services, clustered(N, D, seed=1), n_lists=10)
    await settled(services)
    assert (await row(engine)).n_lists == 10


async def test_more_lists_than_the_memory_allows_are_refused_or_halved(
    services: ServiceContext, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(services, clustered(N, D, seed=1))
    await settled(services)
    monkeypatch.setattr(trainers, "build_memory_mb", lambda _n, _bits, n_lists: 64 * n_lists)
    failure = await services.training.train(ACCESS, 17)
    assert (
        failure
        == "17 lists need 1088 MB of memory in the database, SEALDEX_TRAINING_MEMORY_MB is 1024"
    )
    # Asking again would change nothing, so nobody does.
    assert not (await row(engine)).is_training_due
    assert await services.training.train(ACCESS, None) is None
    assert (await row(engine)).n_lists == 16


async def test_automatic_training_can_be_switched_off(
    settings: Settings, engine: AsyncEngine
) -> None:
    async with ServiceContext.open(replace(settings, auto_train_disabled=True)) as services:
        await create(services)
        outcome = await services.vectors.upsert(ACCESS, items(clustered(N, D, seed=1)))
        assert outcome.training_message is None
        assert not (await row(engine)).is_trained
        assert await services.training.train(ACCESS, None) is None
        assert (await row(engine)).is_trained


async def test_a_trained_index_is_trained_again_above_its_lists_times_the_threshold(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    await filled(services, clustered(N, D, seed=1), n_lists=2)
    await settled(services)
    assert (await row(engine)).n_lists == 2
    outcome = await services.vectors.upsert(ACCESS, items(clustered(1, D, seed=9), N))
    assert (
        outcome.training_message
        == f"Index training has been triggered (vectors: {N + 1}, threshold: {2 * THRESHOLD})"
    )
    await settled(services)
    assert (await row(engine)).n_lists == 64
    # From here on more lists would not help, however low the threshold.
    outcome = await services.vectors.upsert(ACCESS, items(clustered(1, D, seed=10), N + 1))
    assert outcome.training_message is None


# ---------------------------------------------------------------- what goes on meanwhile


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
    await filled(services, vectors)
    await settled(services)
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
    spans = "SELECT count(*) FROM trainings a JOIN trainings b ON a.id < b.id AND b.started_at < a.finished_at"
    assert await scalar(engine, spans) == 0
    assert await scalar(engine, "SELECT count(*) FROM trainings WHERE outcome = 'succeeded'") == 4
    await assert_clean(engine)


def hold_builds(monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """Make trainings wait before they build; the events tell that one does, and let them go on."""
    reached, let_go, build = asyncio.Event(), asyncio.Event(), trainers.Trainer._build

    async def held(self: trainers.Trainer, *arguments: Any, **named: Any) -> None:
        reached.set()
        await let_go.wait()
        await build(self, *arguments, **named)

    monkeypatch.setattr(trainers.Trainer, "_build", held)
    return reached, let_go


async def test_trainings_beyond_the_limit_wait_in_the_queue(
    services: ServiceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = clustered(N, D, seed=1)
    reached, let_go = hold_builds(monkeypatch)
    for name in ("one", "two"):
        await services.indexes.create(NewIndex(name=name, index_key=KEY))
        await services.vectors.upsert(IndexAccess(name, KEY, Caller()), items(vectors))
    await asyncio.wait_for(reached.wait(), 20)
    await asyncio.sleep(0.5)
    status = await services.training.status(Caller())
    assert (status.running, status.queued) == (["one"], ["two"])
    let_go.set()
    await settled(services)
    for name in ("one", "two"):
        assert (await services.indexes.describe(IndexAccess(name, KEY, Caller()))).is_trained


async def test_an_index_can_be_deleted_while_it_is_trained(
    services: ServiceContext, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, let_go = hold_builds(monkeypatch)
    await filled(services, clustered(N, D, seed=1))
    training = asyncio.create_task(services.training.train(ACCESS, 16))
    await asyncio.wait_for(reached.wait(), 20)
    await services.indexes.delete(ACCESS)
    let_go.set()
    failure = await training
    assert failure is not None
    assert "deleted" in failure
    await settled(services)
    await create(services)
    await services.vectors.upsert(ACCESS, items(clustered(10, D, seed=2)))
    for _ in range(100):
        if len(await relations(engine)) == 1:
            return
        await asyncio.sleep(0.1)
    pytest.fail(f"left behind: {await relations(engine)}")


async def test_a_write_without_key_builds_and_the_next_keyed_request_completes(
    settings: Settings, engine: AsyncEngine
) -> None:
    vectors, queries = clustered(N, D, seed=1), clustered(50, D, seed=2)
    async with ServiceContext.open(replace(settings, auto_train_disabled=True)) as services:
        await filled(services, vectors)
        # As an upsert by a user who may write and not read.
        assert await services.training._begin(
            await row(engine), trainers.Wanted(None, None), is_patient=True
        )
        await settled(services)
        index = await row(engine)
        assert (index.n_lists, index.encoder_version, index.profile) == (64, 0, None)
        # Without a profile all lists are read.
        assert await recall(services, "euclidean", queries, vectors) >= 0.95
        await asyncio.sleep(0.3)
        await settled(services)
        index = await row(engine)
        assert index.encoder_version == 1
        assert index.profile is not None
        await assert_clean(engine)


# ---------------------------------------------------------------- crashes, failures


@pytest.mark.parametrize("phase", PHASES)
async def test_a_training_stopped_in_any_phase_leaves_nothing_and_is_taken_up_again(
    settings: Settings, engine: AsyncEngine, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, queries = clustered(N, D, seed=1), clustered(50, D, seed=2)
    reached = halt_at(phase, monkeypatch)
    async with ServiceContext.open(settings) as services:
        await filled(services, vectors)
        await asyncio.wait_for(reached.wait(), 20)
        assert await recall(services, "euclidean", queries, vectors) >= 0.9
    monkeypatch.undo()
    await assert_clean(engine)
    assert await scalar(engine, "SELECT state FROM training_jobs") == "interrupted"
    async with ServiceContext.open(settings) as services:
        assert await recall(services, "euclidean", queries, vectors) >= 0.9
        await asyncio.sleep(0.3)
        await settled(services)
        index = await row(engine)
        assert (index.n_lists, index.encoder_version, index.is_training_due) == (64, 1, False)
        await assert_clean(engine)
        assert await recall(services, "euclidean", queries, vectors) >= 0.9
        assert await services.vectors.count(ACCESS) == N


def halt_at(phase: str, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Make the first training that enters `phase` stand still after it; the event tells when it has."""
    reached = asyncio.Event()
    steps = {
        "fitting": "_announce",
        "encoding": "_write_sketches",
        "building": "_build",
        "calibrating": "_calibrate",
        "swapping": "_swap",
        "cleaning": "drop_leftovers",
    }
    original: Callable[..., Any] = getattr(trainers.Trainer, steps[phase])

    async def halt(self: trainers.Trainer, *arguments: Any, **named: Any) -> Any:
        is_first_drop = phase == "cleaning" and not await _is_swapped(self)
        if phase in {"fitting", "swapping"}:
            reached.set()
            await asyncio.sleep(60)
        answer = await original(self, *arguments, **named)
        if not is_first_drop and not reached.is_set():
            reached.set()
            await asyncio.sleep(60)
        return answer

    monkeypatch.setattr(trainers.Trainer, steps[phase], halt)
    return reached


async def _is_swapped(trainer: trainers.Trainer) -> bool:
    async with trainer._engine.connect() as connection:
        index = await store.indexes.by_name(connection, "test")
    return index is not None and index.is_trained


async def test_what_a_killed_trainer_left_is_cleared_away_and_taken_up_once_its_claim_expires(
    settings: Settings, engine: AsyncEngine
) -> None:
    vectors = clustered(N, D, seed=1)
    async with ServiceContext.open(replace(settings, auto_train_disabled=True)) as services:
        await filled(services, vectors)
    index = await row(engine)
    presence = Presence(settings, settings.database_url or "")
    claim = Claim(index.id, presence.new_claim())
    async with engine.begin() as connection:
        assert await store.training.enqueue(connection, claim, n_lists=32, is_patient=True)
        assert await store.training.start(connection, claim, 1, is_due=True) == 2
    # Killed in CREATE INDEX CONCURRENTLY: an invalid index stays.
    name = store.tables.ivf_name(index.id, 2)
    definition = store.partitions.ivf_definition(0, index.sketch_bits or 0, 32, 2)
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.exec_driver_sql(
            f"CREATE INDEX {name} ON {store.tables.partition_name(index.id)} {definition}"
        )
        invalidate = sa.text(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = CAST(:name AS regclass)"
        )
        await connection.execute(invalidate, {"name": name})
    async with presence.held(), ServiceContext.open(settings) as services:
        await services.vectors.query(ACCESS, Query(vectors=vectors[:1]))
        await asyncio.sleep(0.3)
        # Somebody may still be at it.
        assert (name, False) in await relations(engine)
        assert (await services.indexes.stats(ACCESS))["training"]["state"] == "running"
        async with engine.begin() as connection:
            await connection.exec_driver_sql(
                "UPDATE training_jobs SET heartbeat_at = now() - interval '31 seconds'"
            )
        assert (await services.indexes.stats(ACCESS))["training"]["state"] == "interrupted"
        with pytest.raises(ClaimLost):
            async with engine.begin() as connection:
                await store.training.beat(connection, claim, "building", 50)
    async with ServiceContext.open(settings) as services:
        await services.vectors.query(ACCESS, Query(vectors=vectors[:1]))
        await asyncio.sleep(0.3)
        await settled(services)
    index = await row(engine)
    # As many lists as the killed one was asked for, under a number of its own.
    assert (index.n_lists, index.generation) == (32, 3)
    await assert_clean(engine)


async def test_a_trainer_whose_claim_was_taken_over_cannot_swap(
    services: ServiceContext, settings: Settings, engine: AsyncEngine
) -> None:
    await filled(services, clustered(N, D, seed=1))
    await settled(services)
    index = await row(engine)
    presence = Presence(settings, settings.database_url or "")
    stopped, successor = Claim(index.id, presence.new_claim()), Claim(index.id, uuid4())
    async with presence.held(), engine.begin() as connection:
        assert await store.training.enqueue(connection, stopped, n_lists=None, is_patient=False)
        assert not await store.training.enqueue(
            connection, successor, n_lists=None, is_patient=False
        )
        await connection.exec_driver_sql(
            "UPDATE training_jobs SET heartbeat_at = now() - interval '31 seconds'"
        )
        assert await store.training.enqueue(connection, successor, n_lists=None, is_patient=False)
    result = TrainingResult(9, 7, 1, N, N)
    with pytest.raises(ClaimLost):
        async with engine.begin() as connection:
            await store.training.swap(connection, stopped, index, result)
    assert (await row(engine)).generation == index.generation


async def test_the_job_of_a_worker_that_died_is_free_at_once(
    services: ServiceContext, settings: Settings, engine: AsyncEngine
) -> None:
    await filled(services, clustered(N, D, seed=1))
    await settled(services)
    index = await row(engine)
    presence = Presence(settings, settings.database_url or "")
    claim, successor = Claim(index.id, presence.new_claim()), Claim(index.id, uuid4())
    cut = sa.text(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory' AND granted"
    )
    async with presence.held():
        async with engine.begin() as connection:
            assert await store.training.enqueue(connection, claim, n_lists=None, is_patient=False)
        async with engine.begin() as connection:
            assert not await store.training.enqueue(
                connection, successor, n_lists=None, is_patient=False
            )
            # A lost connection is not the worker's death: it has a second to say so.
            await connection.execute(cut)
            assert await store.training.status(connection) == TrainingStatus([], [])
            await presence.confirm()
            assert await store.training.status(connection) == TrainingStatus([], ["test"])
    async with engine.begin() as connection:
        assert await store.training.enqueue(connection, successor, n_lists=None, is_patient=False)


async def test_the_sign_of_life_holds_up_nobody(settings: Settings, engine: AsyncEngine) -> None:
    presence = Presence(settings, settings.database_url or "")
    snapshots = (
        "SELECT count(backend_xmin) FROM pg_stat_activity WHERE state = 'idle in transaction'"
    )
    async with presence.held(), presence.held():
        assert (
            await scalar(engine, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 1
        )
        assert await scalar(engine, snapshots) == 0
        await presence.confirm()
        assert await scalar(engine, snapshots) == 0
    assert await scalar(engine, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


async def test_a_failed_training_backs_off(
    services: ServiceContext, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any) -> None:
        raise errors.TrainingFailed("no room")

    monkeypatch.setattr(trainers.Trainer, "_build", refuse)
    await create(services)
    outcome = await services.vectors.upsert(ACCESS, items(clustered(N, D, seed=1)))
    assert outcome.training_message is not None
    await settled(services)
    for n in range(3):
        outcome = await services.vectors.upsert(ACCESS, items(clustered(1, D, seed=n), N))
        assert outcome.training_message is None
    stats = await services.indexes.stats(ACCESS)
    assert stats["training"]["state"] == "failed"
    assert stats["training"]["failure"] == "no room"
    pause = "SELECT extract(epoch FROM next_attempt_at - now()) FROM training_jobs"
    assert 50 < await scalar(engine, pause) <= 60
    # On request it is tried at once, and the next pause is twice as long.
    assert await services.training.train(ACCESS, None) == "no room"
    assert 110 < await scalar(engine, pause) <= 120
    assert await scalar(engine, "SELECT count(*) FROM trainings WHERE outcome = 'failed'") == 2
    monkeypatch.undo()
    assert await services.training.train(ACCESS, None) is None
    assert await scalar(engine, "SELECT n_failures FROM training_jobs") == 0
    await assert_clean(engine)


async def test_a_bug_is_told_by_the_log_alone(
    services: ServiceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def burst(*_: Any) -> None:
        raise ValueError(KEY)

    await filled(services, clustered(N, D, seed=1))
    await settled(services)
    monkeypatch.setattr(trainers.Trainer, "_calibrate", burst)
    assert (
        await services.training.train(ACCESS, None)
        == "an internal error, see the log of the service"
    )


# ---------------------------------------------------------------- drift, statistics, storage


async def test_stats_and_view_tell_that_an_index_has_drifted_and_training_repairs_it(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    vectors = clustered(N, D, seed=1)
    await filled(services, vectors)
    await settled(services)
    stats = await services.indexes.stats(ACCESS)
    assert (stats["is_drifted"], stats["drift_reasons"], stats["n_changes_since_training"]) == (
        False,
        [],
        0,
    )
    assert stats["profile"]["recall"] >= 0.9
    assert stats["n_lists"] == 64
    # Two thirds of the items go to one place: with a third, 3 to 4 times the average list was near
    # the bound of 3.
    n_moved = 2_000
    await services.vectors.upsert(
        ACCESS, items(np.ones((n_moved, D), np.float32) + vectors[:n_moved] * 1e-3)
    )
    stats = await services.indexes.stats(ACCESS)
    assert stats["is_drifted"]
    assert stats["n_changes_since_training"] == n_moved
    assert stats["drift_reasons"][0] == f"{n_moved} items have changed since it was trained on {N}"
    assert any("uneven" in reason for reason in stats["drift_reasons"])
    assert await scalar(engine, "SELECT is_drifted FROM index_overview")
    assert await services.training.train(ACCESS, None) is None
    assert (await services.indexes.stats(ACCESS))["n_changes_since_training"] == 0
    assert not await scalar(engine, "SELECT is_drifted FROM index_overview")


async def test_an_index_that_grows_has_its_recall_measured_again(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    vectors, queries = clustered(4 * N, D, seed=1), clustered(300, D, seed=2)
    await filled(services, vectors[:N])
    await settled(services)
    before = await row(engine)
    for start in range(N, 4 * N, N):
        outcome = await services.vectors.upsert(ACCESS, items(vectors[start : start + N], start))
        assert outcome.training_message is None
        await asyncio.sleep(0.2)
        await settled(services)
    index = await row(engine)
    assert (index.generation, index.n_lists, index.trained_at) == (
        before.generation,
        before.n_lists,
        before.trained_at,
    )
    assert index.profile is not None
    assert index.profile["n_items"] == 4 * N
    assert not index.is_training_due
    assert await recall(services, "euclidean", queries, vectors) >= 0.9


async def test_the_view_shows_each_index_without_a_key(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    await services.indexes.create(NewIndex(name="empty", index_key=KEY))
    await filled(services, clustered(N, D, seed=1))
    await settled(services)
    async with engine.connect() as connection:
        rows = {
            row.name: row
            for row in await connection.execute(sa.text("SELECT * FROM index_overview"))
        }
    assert (rows["empty"].n_items, rows["empty"].training_state, rows["empty"].is_drifted) == (
        0,
        "never trained",
        False,
    )
    assert (rows["test"].n_items, rows["test"].n_lists, rows["test"].training_state) == (
        N,
        64,
        "succeeded",
    )
    assert rows["test"].recall >= 0.9
    assert rows["test"].ivf_size_bytes > 0


async def test_nothing_that_training_stores_holds_the_key_or_a_vector(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    await filled(services, clustered(N, D, seed=1))
    await settled(services)
    for rows in (
        "SELECT t::text FROM training_jobs t",
        "SELECT t::text FROM trainings t",
        "SELECT t::text FROM indexes t",
    ):
        assert KEY not in await scalar(engine, rows)
    keys = await scalar(
        engine,
        "SELECT string_agg(key, ' ' ORDER BY key) FROM indexes, jsonb_object_keys(profile) AS key",
    )
    assert keys == "imbalance n_items points recall target"


async def test_target_recall_picks_other_settings(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    vectors, queries = clustered(N, D, seed=1), clustered(100, D, seed=2)
    await filled(services, vectors)
    await settled(services)
    recalls = [
        await recall(services, "euclidean", queries, vectors, target_recall=t)
        for t in (0.5, 0.8, 0.95, 1.0)
    ]
    assert recalls == sorted(recalls)
    assert recalls[0] < recalls[-1]
    for bad in (0.49, 1.01, -1.0, float("inf")):
        with pytest.raises(errors.InvalidInput, match="target_recall"):
            await services.vectors.query(ACCESS, Query(vectors=queries, target_recall=bad))


async def test_a_service_behind_a_pooler_builds_on_the_maintenance_address(
    settings: Settings, engine: AsyncEngine
) -> None:
    elsewhere = "postgresql://127.0.0.1:1/nowhere"
    async with ServiceContext.open(
        replace(settings, maintenance_database_url=elsewhere)
    ) as services:
        await filled(services, clustered(N, D, seed=1))
        await settled(services)
        failure = await services.training.train(ACCESS, None)
        assert failure == "The database does not answer"
    assert not (await row(engine)).is_trained


async def test_a_lost_claim_stops_the_training(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    await filled(services, clustered(N, D, seed=1))
    await settled(services)
    before = await row(engine)
    training = asyncio.create_task(services.training.train(ACCESS, 20))
    await asyncio.sleep(0.2)
    async with engine.begin() as connection:
        await connection.execute(sa.text("UPDATE training_jobs SET claim = gen_random_uuid()"))
    failure = await asyncio.wait_for(training, 20)
    if failure is None:
        pytest.skip("the training was over before its claim was taken")
    assert "another worker" in failure
    assert (await row(engine)).generation == before.generation
