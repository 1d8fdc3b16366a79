"""How trainings end that come to no good end, and who takes them up."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from app import errors, store
from app.domain import Caller, Index, IndexAccess, Query, TrainingStatus
from app.engine.sketches import ivf_statements, samples
from app.engine.sketches.ivf import IvfSketches
from app.services.context import ServiceContext
from app.settings import Settings
from app.store.indexes import Counts
from app.store.presence import Presence
from app.store.training import ClaimLost, Trained
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
    recall,
    relations,
    row,
    row_that,
    scalar,
    settled,
    trained,
)
from tests.integration.moments import Gone, expire_claims, hold

pytestmark = pytest.mark.anyio

# Each phase, and where a training stands still in it: at which step, and whether after the step.
PHASES: dict[str, tuple[Any, str, bool]] = {
    "fitting": (ivf_statements, "announce", False),
    "encoding": (samples, "write_sketches", True),
    "building": (IvfSketches, "build", True),
    "calibrating": (Calibrator, "profile", True),
    "swapping": (IvfSketches, "swap", True),
    "cleaning": (IvfSketches, "tidy", False),
}


@pytest.fixture
def settings(database_dsn: str) -> Settings:
    return Settings(database_url=database_dsn, workers=1, retrain_threshold=THRESHOLD)


def is_complete(index: Index) -> bool:
    """Whether nothing is left to be taken up again."""
    return index.profile is not None and not index.is_training_due


@pytest.mark.parametrize("phase", PHASES)
async def test_a_training_stopped_in_any_phase_leaves_nothing_and_is_taken_up_again(
    settings: Settings, engine: AsyncEngine, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, queries = clustered(N, D, seed=1), clustered(50, D, seed=2)
    owner, step, is_after = PHASES[phase]
    with monkeypatch.context() as patch:
        moment = hold(patch, owner, step, is_after=is_after)
        async with ServiceContext.open(settings) as services:
            await filled(services, vectors)
            await moment.reached()
            assert await recall(services, "euclidean", queries, vectors) >= 0.9
    await assert_clean(engine)
    assert await scalar(engine, "SELECT state FROM training_jobs") == "interrupted"
    async with ServiceContext.open(settings) as services:
        assert await recall(services, "euclidean", queries, vectors) >= 0.9
        index = await row_that(engine, is_complete, "the training is taken up again")
        await settled(services)
        assert (index.n_lists, index.encoder_version) == (64, 1)
        await assert_clean(engine)
        assert await recall(services, "euclidean", queries, vectors) >= 0.9
        assert await services.vectors.count(ACCESS) == N


async def test_a_write_without_key_builds_and_the_next_keyed_request_completes(
    settings: Settings, engine: AsyncEngine
) -> None:
    vectors, queries = clustered(N, D, seed=1), clustered(50, D, seed=2)
    async with ServiceContext.open(replace(settings, auto_train_disabled=True)) as services:
        await filled(services, vectors[:-1])
        writer = await services.users.create(ACCESS, ["write"])
    async with ServiceContext.open(settings) as services:
        by_writer = IndexAccess("test", None, Caller(user=writer))
        outcome = await services.vectors.upsert(by_writer, items(vectors[-1:], N - 1))
        assert outcome.training_message is not None
        await settled(services)
        index = await row(engine)
        assert (index.n_lists, index.encoder_version, index.profile) == (64, 0, None)
        # Without a profile all lists are read.
        assert await recall(services, "euclidean", queries, vectors) >= 0.95
        index = await row_that(engine, is_complete, "the training is completed")
        await settled(services)
        assert index.encoder_version == 1
        await assert_clean(engine)


async def test_what_a_killed_trainer_left_is_cleared_away_and_taken_up_once_its_claim_expires(
    settings: Settings, engine: AsyncEngine
) -> None:
    vectors = clustered(N, D, seed=1)
    async with ServiceContext.open(replace(settings, auto_train_disabled=True)) as services:
        await filled(services, vectors)
    async with Gone.trainer(settings, engine) as gone:
        async with engine.begin() as connection:
            assert await store.training.start(connection, gone.claim, 1, is_due=True) == 2
        half_built = await leave_half_built(engine, 2)
        async with ServiceContext.open(settings) as services:
            await services.vectors.query(ACCESS, Query(vectors=vectors[:1]))
            await services.training.make_round()
            # Somebody may still be at it.
            assert (half_built, False) in await relations(engine)
            assert await is_live(services)
            await expire_claims(engine)
            assert not await is_live(services)
            with pytest.raises(ClaimLost):
                async with engine.begin() as connection:
                    await store.training.beat(connection, gone.claim, "building", 50)
    async with ServiceContext.open(settings) as services:
        await services.vectors.query(ACCESS, Query(vectors=vectors[:1]))
        index = await row_that(engine, is_complete, "the training is taken up again")
        await settled(services)
    # As many lists as the killed one was asked for, under a number of its own.
    assert (index.n_lists, index.generation) == (32, 3)
    await assert_clean(engine)


async def test_what_is_out_of_use_is_cleared_away_while_its_trainer_may_still_be_there(
    services: ServiceContext, settings: Settings, engine: AsyncEngine
) -> None:
    await trained(services, clustered(N, D, seed=1))
    async with Gone.trainer(settings, engine) as gone:
        async with engine.begin() as connection:
            generation = await store.training.start(connection, gone.claim, 1, is_due=True)
        assert generation is not None
        # As after a crash between a swap and the cleaning, and as in the middle of a build.
        out_of_use = await leave_half_built(engine, 1)
        being_built = await leave_half_built(engine, generation)
        await services.training.make_round()
        names = [name for name, _ in await relations(engine)]
        assert out_of_use not in names
        assert being_built in names
        await expire_claims(engine)
        await services.training.make_round()
    await assert_clean(engine)


async def leave_half_built(engine: AsyncEngine, generation: int) -> str:
    """Leave what a trainer does that is killed in CREATE INDEX CONCURRENTLY; return its name."""
    index = await row(engine)
    name = store.tables.ivf_name(index.id, generation)
    definition = store.partitions.ivf_definition(
        index.encoder_version, index.sketch_bits or 0, 32, generation
    )
    async with engine.begin() as connection:
        await connection.exec_driver_sql(
            f"CREATE INDEX {name} ON {store.tables.partition_name(index.id)} {definition}"
        )
        invalidate = sa.text(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = CAST(:name AS regclass)"
        )
        await connection.execute(invalidate, {"name": name})
    return name


async def is_live(services: ServiceContext) -> bool:
    """Whether stats say that somebody sees to the training, which has not ended."""
    job = (await services.indexes.stats(ACCESS)).job
    assert job is not None
    assert job.state == "running"
    return job.is_live


async def test_a_trainer_whose_claim_was_taken_over_can_neither_swap_nor_measure(
    services: ServiceContext, settings: Settings, engine: AsyncEngine
) -> None:
    await trained(services, clustered(N, D, seed=1))
    before = await row(engine)
    async with Gone.trainer(settings, engine) as gone:
        await expire_claims(engine)
        async with engine.begin() as connection:
            assert await store.training.enqueue(
                connection, gone.rival, n_lists=None, is_patient=False
            )
    made = Trained(replace(before, n_lists=7), Counts(N, N, 0), {"points": {}})
    for store_it in (store.training.succeed, store.training.renew_profile):
        with pytest.raises(ClaimLost):
            async with engine.begin() as connection:
                await store_it(connection, gone.claim, made)
    assert await row(engine) == before


async def test_the_job_of_a_worker_that_died_is_free_at_once(
    services: ServiceContext, settings: Settings, engine: AsyncEngine
) -> None:
    await trained(services, clustered(N, D, seed=1))
    cut = sa.text(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks"
        " WHERE locktype = 'advisory' AND granted"
    )
    async with Gone.trainer(settings, engine) as gone, engine.begin() as connection:
        assert not await store.training.enqueue(
            connection, gone.rival, n_lists=None, is_patient=False
        )
        # A lost connection is not the worker's death: it has a second to say so.
        await connection.execute(cut)
        assert await store.training.status(connection) == TrainingStatus([], [])
        await gone.presence.confirm()
        assert await store.training.status(connection) == TrainingStatus([], ["test"])
    async with engine.begin() as connection:
        assert await store.training.enqueue(connection, gone.rival, n_lists=None, is_patient=False)


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

    pause = "SELECT extract(epoch FROM next_attempt_at - now()) FROM training_jobs"
    with monkeypatch.context() as patch:
        patch.setattr(IvfSketches, "build", refuse)
        await create(services)
        outcome = await services.vectors.upsert(ACCESS, items(clustered(N, D, seed=1)))
        assert outcome.training_message is not None
        await settled(services)
        for n in range(3):
            outcome = await services.vectors.upsert(ACCESS, items(clustered(1, D, seed=n), N))
            assert outcome.training_message is None
        job = (await services.indexes.stats(ACCESS)).job
        assert job is not None
        assert (job.state, job.failure) == ("failed", "no room")
        assert 50 < await scalar(engine, pause) <= 60
        # On request it is tried at once, and the next pause is twice as long.
        assert await services.training.train(ACCESS, None) == "no room"
        assert 110 < await scalar(engine, pause) <= 120
        assert await scalar(engine, "SELECT count(*) FROM trainings WHERE outcome = 'failed'") == 2
    assert await services.training.train(ACCESS, None) is None
    assert await scalar(engine, "SELECT n_failures FROM training_jobs") == 0
    await assert_clean(engine)


async def test_a_bug_is_told_by_the_log_alone(
    services: ServiceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def burst(*_: Any) -> None:
        raise ValueError(KEY)

    await trained(services, clustered(N, D, seed=1))
    monkeypatch.setattr(Calibrator, "profile", burst)
    failure = await services.training.train(ACCESS, None)
    assert failure == "an internal error, see the log of the service"


async def test_a_lost_claim_stops_the_training(
    services: ServiceContext, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await trained(services, clustered(N, D, seed=1))
    before = await row(engine)
    # It is never let go: the heartbeat that finds the claim lost must end the wait.
    building = hold(monkeypatch, IvfSketches, "build")
    training = asyncio.create_task(services.training.train(ACCESS, 20))
    await building.reached()
    await scalar(engine, "UPDATE training_jobs SET claim = gen_random_uuid() RETURNING index_id")
    failure = await asyncio.wait_for(training, 20)
    assert failure is not None
    assert "another worker" in failure
    assert (await row(engine)).generation == before.generation


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
