"""Drift: counted, judged in one place, and shown alike wherever somebody looks."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from app import store
from app.domain import Matrix
from app.engine.sketches.parameters import EncoderParameters
from app.services.context import ServiceContext
from app.settings import Settings
from tests.integration.an_index import (
    ACCESS,
    THRESHOLD,
    D,
    N,
    clustered,
    create,
    items,
    recall,
    row,
    row_that,
    scalar,
    settled,
    trained,
    until,
)

pytestmark = pytest.mark.anyio

PLACES = ("stats", "view", "metrics", "status")


@pytest.fixture
def settings(database_dsn: str) -> Settings:
    return Settings(database_url=database_dsn, workers=1, retrain_threshold=THRESHOLD)


async def drifted(services: ServiceContext, engine: AsyncEngine) -> dict[str, bool]:
    """Return what each place says once a round was made."""
    await services.training.make_round()
    async with engine.connect() as connection:
        figures = await store.overview.index_figures(connection)
        (status,) = await store.overview.status(connection)
    return {
        "stats": bool((await services.indexes.stats(ACCESS)).look.verdict.reasons),
        "view": await scalar(engine, "SELECT is_drifted FROM sealdex_views.indexes"),
        "metrics": figures.largest[0].is_drifted,
        "status": status["is_drifted"],
    }


async def replace_items(services: ServiceContext, vectors: Matrix, count: int) -> None:
    await services.vectors.upsert(ACCESS, items(vectors[:count]))


async def test_replaced_and_deleted_items_are_drift_and_training_repairs_it(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    vectors = clustered(N, D, seed=1)
    await trained(services, vectors)
    assert await drifted(services, engine) == dict.fromkeys(PLACES, False)
    # A share of .3 of 3,000 is 900.
    await replace_items(services, vectors, 800)
    await services.vectors.delete(ACCESS, [str(one) for one in range(2_900, 3_000)])
    assert await drifted(services, engine) == dict.fromkeys(PLACES, False)
    await replace_items(services, vectors, 1)
    assert await drifted(services, engine) == dict.fromkeys(PLACES, True)
    (reason,) = (await services.indexes.stats(ACCESS)).look.verdict.reasons
    assert reason == "901 items were replaced or deleted since it was trained on 3000"
    assert await scalar(engine, "SELECT drift_reasons FROM sealdex_views.indexes") == [reason]
    assert await services.training.train(ACCESS, None) is None
    assert await drifted(services, engine) == dict.fromkeys(PLACES, False)


async def test_added_items_are_changes_and_no_drift(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    vectors = clustered(2 * N, D, seed=1)
    await trained(services, vectors[:N])
    await services.vectors.upsert(ACCESS, items(vectors[N:], N))
    await settled(services)
    counts = (await services.indexes.stats(ACCESS)).look.counts
    assert counts == (2 * N, 2 * N, 0)
    assert await drifted(services, engine) == dict.fromkeys(PLACES, False)
    changes = "SELECT n_changes_since_training FROM sealdex_views.indexes"
    assert await scalar(engine, changes) == N


async def test_the_share_that_is_drift_is_that_of_the_setting_everywhere(
    settings: Settings, engine: AsyncEngine
) -> None:
    vectors = clustered(N, D, seed=1)
    async with ServiceContext.open(replace(settings, drift_share=0.1)) as services:
        await trained(services, vectors)
        await replace_items(services, vectors, 301)
        assert await drifted(services, engine) == dict.fromkeys(PLACES, True)
    # A service with another share judges anew what has not changed since.
    async with ServiceContext.open(replace(settings, drift_share=0.2)) as services:
        await services.training.make_round(is_first=True)
        assert await drifted(services, engine) == dict.fromkeys(PLACES, False)
        await replace_items(services, vectors, 300)
        assert await drifted(services, engine) == dict.fromkeys(PLACES, True)


async def test_lists_that_have_become_uneven_are_drift(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    vectors = clustered(N, D, seed=1)
    await trained(services, vectors)
    # Two thirds of the items go to one place: with a third, 3 to 4 times the average list was near
    # the bound of 3.
    n_moved = 2_000
    await services.vectors.upsert(
        ACCESS, items(np.ones((n_moved, D), np.float32) + vectors[:n_moved] * 1e-3)
    )
    reasons = (await services.indexes.stats(ACCESS)).look.verdict.reasons
    assert any("uneven" in reason for reason in reasons)


async def test_an_index_that_has_not_changed_is_not_looked_at_again(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    await trained(services, clustered(N, D, seed=1))
    looked_at = "SELECT looked_at FROM index_drift"
    before = await scalar(engine, looked_at)
    await services.training.make_round()
    assert await scalar(engine, looked_at) == before
    await services.vectors.delete(ACCESS, ["1"])
    await services.training.make_round()
    assert await scalar(engine, looked_at) > before


async def test_a_verdict_on_what_was_before_a_training_is_not_stored(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    await trained(services, clustered(N, D, seed=1))
    before = await row(engine)
    assert await services.training.train(ACCESS, None) is None
    stale = store.drift.Verdict(9, 0.3, 1.0, ["it was so"])
    async with engine.begin() as connection:
        await store.drift.record(connection, before, stale)
    assert await scalar(engine, "SELECT reasons FROM index_drift") == []


async def test_an_index_that_grows_has_its_recall_measured_again(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    vectors, queries = clustered(4 * N, D, seed=1), clustered(300, D, seed=2)
    await trained(services, vectors[:N])
    before = await row(engine)
    for n_items in (2 * N, 4 * N):
        added = vectors[n_items // 2 : n_items]
        outcome = await services.vectors.upsert(ACCESS, items(added, n_items // 2))
        assert outcome.training_message is None
        is_measured = f"SELECT profile -> 'n_items' = '{n_items}' FROM indexes"
        await until(partial(scalar, engine, is_measured), "recall is measured again")
        await settled(services)
    index = await row(engine)
    assert (index.generation, index.n_lists, index.trained_at) == (
        before.generation,
        before.n_lists,
        before.trained_at,
    )
    assert not index.is_training_due
    assert await recall(services, "euclidean", queries, vectors) >= 0.9


async def test_the_view_shows_each_index_without_a_key(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    await create(services, name="empty")
    await trained(services, clustered(N, D, seed=1))
    async with engine.connect() as connection:
        found = await connection.execute(sa.text("SELECT * FROM sealdex_views.indexes"))
        rows = {each.name: each for each in found}
    empty, full = rows["empty"], rows["test"]
    assert (empty.n_items, empty.training_state) == (0, "never trained")
    assert (empty.is_drifted, empty.drift_reasons) == (False, [])
    assert (full.n_items, full.n_lists, full.training_state) == (N, 64, "succeeded")
    assert full.recall >= 0.9
    assert full.list_imbalance >= 1
    assert full.ivf_size_bytes > 0


def moved(n: int, seed: int) -> Matrix:
    """Vectors of another model: elsewhere, and of another scale."""
    return (3 * clustered(n, D, seed) - 20).astype(np.float32)


async def test_an_index_whose_vectors_were_all_replaced_is_trained_by_itself(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    await trained(services, clustered(N, D, seed=1))
    vectors, queries = moved(N, seed=2), moved(40, seed=3)
    await replace_items(services, vectors, N)
    await services.training.make_round()
    # A request with the key starts it.
    await recall(services, "euclidean", queries, vectors)
    after = await row_that(engine, lambda one: one.encoder_version == 2, "the encoder is fitted")
    assert after.generation > 2
    await settled(services)
    assert await recall(services, "euclidean", queries, vectors) >= 0.93
    assert (await services.indexes.stats(ACCESS)).look.verdict.reasons == []
    why = "SELECT outcome FROM audit_log WHERE operation = 'train_request' AND caller = 'service'"
    assert await scalar(engine, why) == (
        f"drift: {N} items were replaced or deleted since it was trained on {N}"
    )


async def test_an_encoder_that_still_fits_is_kept(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    await trained(services, clustered(N, D, seed=1))
    await replace_items(services, clustered(N, D, seed=2), N)
    assert await services.training.train(ACCESS, None) is None
    assert (await row(engine)).encoder_version == 1


async def sketches_of_even_versions(engine: AsyncEngine) -> dict[bytes, bytes]:
    async with engine.connect() as connection:
        rows = await connection.execute(sa.text("SELECT item_key, sketch_0::text FROM items"))
        return {bytes(item_key): sketch for item_key, sketch in rows}


async def test_a_column_with_sketches_of_an_older_encoder_is_emptied_first(
    services: ServiceContext, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 2 writes where version 0 did; items that nobody replaced have its sketches there."""
    # The first encoder is fitted to the first batch, which is unlike the rest.
    vectors = np.vstack([moved(N // 2, seed=2), clustered(N // 2, D, seed=1)])
    await trained(services, vectors)
    before = await sketches_of_even_versions(engine)
    monkeypatch.setattr(EncoderParameters, "needs_refit", lambda *_: True)
    assert await services.training.train(ACCESS, None) is None
    assert (await row(engine)).encoder_version == 2
    after = await sketches_of_even_versions(engine)
    assert len(before) == len(after) == N
    # Items of the second batch had sketches by the first encoder and the fitted one.
    assert None not in after.values()
    assert all(after[key] != sketch for key, sketch in before.items())
    queries = np.vstack([moved(20, seed=6), clustered(20, D, seed=5)])
    assert await recall(services, "euclidean", queries, vectors) >= 0.93


async def test_an_index_that_has_grown_fourfold_is_trained_by_itself(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    vectors = clustered(5 * N, D, seed=1)
    await trained(services, vectors[:N])
    before = await row(engine)
    async with engine.begin() as connection:
        # Trainings for the number of items are another matter.
        await connection.execute(sa.text("UPDATE indexes SET n_lists = 4096"))
    await services.vectors.upsert(ACCESS, items(vectors[N:], N))
    await services.training.make_round()
    assert (await row(engine)).is_training_due
    assert (await row(engine)).generation == before.generation


async def test_nothing_is_trained_by_itself_where_that_is_disabled(
    services: ServiceContext, engine: AsyncEngine, settings: Settings
) -> None:
    await trained(services, clustered(N, D, seed=1))
    await replace_items(services, moved(N, seed=2), N)
    async with ServiceContext.open(replace(settings, auto_train_disabled=True)) as disabled:
        await disabled.training.make_round()
    assert not (await row(engine)).is_training_due
