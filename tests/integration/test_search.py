"""Services against a real PostgreSQL: recall, plans, concurrency."""

import asyncio
import secrets

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from app import errors, store
from app.domain import Caller, IndexAccess, Item, Match, Matrix, NewIndex, Query
from app.services.context import ServiceContext
from app.settings import Settings
from app.store.pg import packed_rows
from app.store.pg.pool import Pool
from tests.integration.an_index import KEY, clustered, exact
from tests.plans import plan_by_lists

pytestmark = pytest.mark.anyio

D = 96
N_ITEMS = 2_000


def access(name: str = "test", key: str = KEY) -> IndexAccess:
    return IndexAccess(name, key, Caller())


async def create(services: ServiceContext, name: str = "test", metric: str = "euclidean") -> None:
    await services.indexes.create(NewIndex(name=name, index_key=KEY, metric=metric))


def items(vectors: Matrix, prefix: str = "") -> list[Item]:
    return [Item(f"{prefix}{row}", vector) for row, vector in enumerate(vectors)]


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "squared_euclidean"])
async def test_an_untrained_index_finds_98_of_100_nearest(
    services: ServiceContext, metric: str
) -> None:
    vectors, queries = clustered(N_ITEMS, D, seed=1), clustered(50, D, seed=2)
    await create(services, metric=metric)
    await services.vectors.upsert(access(), items(vectors))
    found = await services.vectors.query(access(), Query(vectors=queries, top_k=10))
    truth = exact(metric, queries, vectors, 10)
    recall = np.mean(
        [
            len({m.id for m in matches} & true) / 10
            for matches, true in zip(found, truth, strict=True)
        ]
    )
    assert recall >= 0.98


async def test_where_sketches_hardly_tell_items_apart_more_of_them_are_opened(
    services: ServiceContext,
) -> None:
    """Of noise, 200 candidates hold half of the nearest: the winners tell that it is not enough."""
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((N_ITEMS, 64)).astype(np.float32)
    queries = rng.standard_normal((30, 64)).astype(np.float32)
    await create(services)
    stored = [Item(str(row), vector, None, {"half": row % 2}) for row, vector in enumerate(vectors)]
    await services.vectors.upsert(access(), stored)
    found = await services.vectors.query(access(), Query(vectors=queries, top_k=10))
    assert recall(found, exact("euclidean", queries, vectors, 10)) >= 0.98
    # The halves have tokens.
    query = Query(vectors=queries, top_k=10, filters={"half": 1})
    expected = exact("euclidean", queries, vectors[1::2], 10)
    true = [{str(2 * int(row) + 1) for row in rows} for rows in expected]
    for _ in range(3):
        assert recall(await services.vectors.query(access(), query), true) >= 0.98


def recall(found: list[list[Match]], true: list[set[str]]) -> float:
    shares = [
        len({match.id for match in matches} & wanted) / len(wanted)
        for matches, wanted in zip(found, true, strict=True)
    ]
    return float(np.mean(shares))


async def test_batch_and_single_queries_agree(services: ServiceContext) -> None:
    vectors, queries = clustered(500, D, seed=3), clustered(7, D, seed=4)
    await create(services)
    await services.vectors.upsert(access(), items(vectors))
    wanted = frozenset({"distance"})
    together = await services.vectors.query(
        access(), Query(vectors=queries, top_k=5, include=wanted)
    )
    alone = [
        (
            await services.vectors.query(
                access(), Query(vectors=query[None], top_k=5, include=wanted)
            )
        )[0]
        for query in queries
    ]
    assert together == alone


async def test_candidates_that_come_as_several_rows_are_the_same(
    services: ServiceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, queries = clustered(500, D, seed=3), clustered(3, D, seed=4)
    await create(services)
    await services.vectors.upsert(access(), items(vectors))
    wanted = Query(vectors=queries, top_k=5, include=frozenset({"distance"}))
    whole = await services.vectors.query(access(), wanted)
    monkeypatch.setattr(packed_rows, "_VALUE_BYTES", 7 * 8 * D)
    assert await services.vectors.query(access(), wanted) == whole


async def test_the_candidate_query_uses_the_ivfflat_index(
    services: ServiceContext, engine: AsyncEngine, pool: Pool
) -> None:
    await create(services)
    await services.vectors.upsert(access(), items(clustered(50, D, seed=5)))
    async with engine.connect() as connection:
        index = await store.indexes.by_name(connection, "test")
        assert index is not None
    for n_queries in (1, 2):
        plan = await plan_by_lists(pool, index, n_queries=n_queries)
        assert f"Index Scan using {store.tables.ivf_name(index.id, 1)}" in plan
        assert "Seq Scan" not in plan


async def test_concurrent_upserts_of_the_same_ids_end_in_one_of_the_states(
    services: ServiceContext,
) -> None:
    await create(services)
    states = [np.full((300, 4), n, np.float32) for n in range(1, 7)]
    batches = [items(state)[:: (-1) ** n] for n, state in enumerate(states)]
    await asyncio.gather(*(services.vectors.upsert(access(), batch) for batch in batches))
    stored = await services.vectors.get(
        access(), [str(row) for row in range(300)], frozenset({"vector"})
    )
    assert len({item.vector.tobytes() for item in stored if item.vector is not None}) == 1
    assert await services.vectors.count(access()) == 300


async def test_items_that_another_writer_stores_meanwhile_are_replaced(
    services: ServiceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(services)
    await services.vectors.upsert(access(), items(np.zeros((30, 4), np.float32)))

    async def not_yet(*_: object) -> bool:
        return False

    monkeypatch.setattr(store.items, "_is_any_stored", not_yet)
    await services.vectors.upsert(access(), items(np.ones((40, 4), np.float32)))
    stored = await services.vectors.get(
        access(), [str(row) for row in range(40)], frozenset({"vector"})
    )
    assert [item.vector.tolist() for item in stored if item.vector is not None] == [[1.0] * 4] * 40
    assert await services.vectors.count(access()) == 40


async def test_concurrent_first_upserts_of_two_dimensions_give_one_400(
    services: ServiceContext,
) -> None:
    await create(services)
    outcomes = await asyncio.gather(
        *(
            services.vectors.upsert(access(), items(clustered(20, d, seed=d), f"{d}-"))
            for d in (8, 16)
        ),
        return_exceptions=True,
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == [
        "InvalidInput",
        "UpsertOutcome",
    ]
    assert await services.vectors.count(access()) == 20


async def test_concurrent_upserts_deletes_and_counts_agree(services: ServiceContext) -> None:
    await create(services)
    vectors = clustered(400, 8, seed=6)
    await services.vectors.upsert(access(), items(vectors))
    await asyncio.gather(
        *(services.vectors.upsert(access(), items(vectors[:200])) for _ in range(4)),
        *(
            services.vectors.delete(access(), [str(row) for row in range(199, 99, -1)])
            for _ in range(4)
        ),
    )
    ids = await services.vectors.ids(access())
    assert await services.vectors.count(access()) == len(ids) == len(set(ids))


async def test_a_failed_upsert_leaves_nothing(services: ServiceContext) -> None:
    await create(services)
    vectors = clustered(10, 8, seed=7)
    bad = vectors.copy()
    bad[9, 3] = np.nan
    with pytest.raises(errors.InvalidInput, match="Item 9"):
        await services.vectors.upsert(access(), items(bad))
    assert (await services.indexes.describe(access())).dimension == 0
    assert await services.vectors.count(access()) == 0


async def test_an_index_is_dropped_while_others_are_read_and_written(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    await create(services)
    await create(services, "other")
    await services.vectors.upsert(access(), items(clustered(10, 8, seed=8)))
    async with engine.connect() as reader:
        # A dump reads the partitioned table for a long time; it holds up neither creation nor
        # upserts nor queries.
        await reader.execute(sa.text("SELECT count(*) FROM items"))
        await asyncio.wait_for(create(services, "third"), 10)
        await asyncio.wait_for(
            services.vectors.upsert(access(), items(clustered(10, 8, seed=9))), 10
        )
        await asyncio.wait_for(services.indexes.delete(access("other")), 10)
        await asyncio.sleep(0.3)
        await asyncio.wait_for(
            services.vectors.upsert(access(), items(clustered(10, 8, seed=9))), 10
        )
        assert await asyncio.wait_for(
            services.vectors.query(access(), Query(vectors=np.ones((1, 8), "f4"))), 10
        )
        assert await services.indexes.names(Caller()) == ["test", "third"]
    assert await n_partitions(engine, 2) == 2


async def n_partitions(engine: AsyncEngine, expected: int) -> int:
    """Count the partitions, giving those of deleted indexes a moment to go."""
    count = -1
    for _ in range(100):
        async with engine.connect() as connection:
            statement = sa.text(
                "SELECT count(*) FROM pg_class WHERE relname ~ '^items_[0-9a-f]{32}$'"
            )
            count = (await connection.execute(statement)).scalar_one()
        if count == expected:
            break
        await asyncio.sleep(0.1)
    return count


async def test_another_worker_sees_a_deleted_and_recreated_index(
    services: ServiceContext, settings: Settings
) -> None:
    await create(services)
    await services.vectors.upsert(access(), items(clustered(10, 8, seed=10)))
    async with ServiceContext.open(settings) as other:
        assert await other.vectors.count(access()) == 10
        await services.indexes.delete(access())
        with pytest.raises(errors.NotFound):
            await other.vectors.query(access(), Query(vectors=np.ones((1, 8), "f4")))
        new_key = secrets.token_hex(32)
        await services.indexes.create(NewIndex(name="test", index_key=new_key))
        assert await other.vectors.count(access(key=new_key)) == 0
        with pytest.raises(errors.KeyRejected):
            await other.vectors.count(access())


async def test_a_changed_value_is_reported_and_never_skipped(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    await create(services)
    await services.vectors.upsert(access(), items(clustered(5, 8, seed=11)))
    async with engine.begin() as connection:
        await connection.execute(
            sa.text(
                "UPDATE items SET sealed_vector ="
                " set_byte(sealed_vector, 20, get_byte(sealed_vector, 20) # 1)"
            )
        )
    with pytest.raises(errors.DataCorrupted):
        await services.vectors.query(access(), Query(vectors=np.ones((1, 8), "f4")))
    with pytest.raises(errors.DataCorrupted):
        await services.vectors.get(access(), ["0"], frozenset({"vector"}))
