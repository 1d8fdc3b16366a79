"""What a training makes, against a real PostgreSQL."""

from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app import errors, store
from app.domain import Caller, Precision, Query
from app.engine.sketches import ivf, samples
from app.services.context import ServiceContext
from app.settings import Settings
from app.store.pg.pool import Pool
from tests.integration.an_index import (
    ACCESS,
    KEY,
    THRESHOLD,
    D,
    N,
    assert_clean,
    clustered,
    create,
    items,
    recall,
    row,
    scalar,
    settled,
    trained,
)
from tests.plans import plan_by_lists

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(database_dsn: str) -> Settings:
    return Settings(database_url=database_dsn, workers=1, retrain_threshold=THRESHOLD)


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
    await trained(services, vectors)
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
    await trained(services, clustered(N, D, seed=1))
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
    await trained(services, vectors)
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
    await trained(services, clustered(N, D, seed=1), n_lists=10)
    assert (await row(engine)).n_lists == 10


async def test_more_lists_than_the_memory_allows_are_refused_or_halved(
    services: ServiceContext, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await trained(services, clustered(N, D, seed=1))
    monkeypatch.setattr(ivf, "build_memory_mb", lambda _n, _bits, n_lists: 64 * n_lists)
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
    await trained(services, clustered(N, D, seed=1), n_lists=2)
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


async def test_nothing_that_training_stores_holds_the_key_or_a_vector(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    await trained(services, clustered(N, D, seed=1))
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
    await trained(services, vectors)
    recalls = [
        await recall(services, "euclidean", queries, vectors, target_recall=t)
        for t in (0.5, 0.8, 0.95, 1.0)
    ]
    assert recalls == sorted(recalls)
    assert recalls[0] < recalls[-1]
    for bad in (0.49, 1.01, -1.0, float("inf")):
        with pytest.raises(errors.InvalidInput, match="target_recall"):
            await services.vectors.query(ACCESS, Query(vectors=queries, target_recall=bad))
