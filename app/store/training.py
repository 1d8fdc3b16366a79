"""Statements on the jobs of training and on their history.

A job is claimed by writing a random name, the claim, into its row, and is kept by a heartbeat. Once
the heartbeat is `LEASE_S` old, or the trainer's connection is gone (`store.presence`), the job
belongs to nobody, and the next claim takes it over. Every statement that changes something for good
names the claim, so a trainer that was stopped and comes back can do no harm.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from psycopg import errors as pg
from sqlalchemy.dialects.postgresql import INTERVAL, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Index, TrainingJob, TrainingStatus
from app.store import drift
from app.store.indexes import Counts
from app.store.presence import IS_PRESENT
from app.store.tables import indexes, training_jobs, trainings

LEASE_S = 30

# One number for all who look whether a training may start: the ASCII codes of "training".
_QUEUE_LOCK = 0x747261696E696E67
_FIRST_PAUSE_S = 60
_MAX_DOUBLINGS = 8

_LEASE = sa.cast(f"{LEASE_S} seconds", INTERVAL)
_is_fresh = sa.and_(
    training_jobs.c.state.in_(["queued", "running"]),
    # One from the future is of before the clock was set back: it would keep the job of a trainer
    # that is gone.
    training_jobs.c.heartbeat_at.between(sa.func.now() - _LEASE, sa.func.now() + _LEASE),
)
_is_live = sa.and_(_is_fresh, IS_PRESENT)


class ClaimLost(Exception):
    """The job is no longer the trainer's: it was taken over, or the index is gone."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to train one index."""

    index_id: UUID
    name: UUID

    @property
    def condition(self) -> sa.ColumnElement[bool]:
        """What is true of the job's row as long as the claim holds.

        A claim that has expired never holds again: what its trainer has built may be gone already.
        One whose trainer has lost a connection holds until another takes the job.
        """
        return sa.and_(
            training_jobs.c.index_id == self.index_id, training_jobs.c.claim == self.name, _is_fresh
        )


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training has made: the row of the index after it, but for what is counted then.

    `profile` is what was measured, as it is stored; None when the trainer had no key.
    """

    index: Index
    counts: Counts
    profile: Mapping[str, Any] | None = None

    @property
    def recall(self) -> float | None:
        """The recall that the profile promises at the default target."""
        return None if self.profile is None else self.profile.get("recall")


async def hold(connection: AsyncConnection, claim: Claim) -> None:
    """Raise `ClaimLost` unless the claim holds, and hold it until the transaction ends."""
    statement = sa.select(training_jobs.c.index_id).where(claim.condition).with_for_update()
    if (await connection.execute(statement)).one_or_none() is None:
        raise ClaimLost


# ---------------------------------------------------------------- the job


async def enqueue(
    connection: AsyncConnection, claim: Claim, *, n_lists: int | None, is_patient: bool
) -> bool:
    """Claim the job of an index; false when another trainer has it, or it must wait.

    After a failure it must wait if the caller `is_patient`. A job that was abandoned counts as a
    failure from now on, so that one which always ends so is not tried for ever.
    """
    fresh = {
        "claim": claim.name,
        "state": "queued",
        "queued_at": sa.func.now(),
        "started_at": None,
        "heartbeat_at": sa.func.now(),
        "phase": "waiting",
        "progress": 0,
        "requested_n_lists": n_lists,
    }
    try:
        return await _insert_or_take_over(connection, claim, fresh, is_patient=is_patient)
    except IntegrityError as error:
        # The foreign key: the index was deleted.
        if isinstance(error.orig, pg.ForeignKeyViolation):
            return False
        raise


async def _insert_or_take_over(
    connection: AsyncConnection, claim: Claim, fresh: Mapping[str, Any], *, is_patient: bool
) -> bool:
    is_due = sa.func.coalesce(training_jobs.c.next_attempt_at <= sa.func.now(), sa.true())
    is_abandoned = sa.cast(training_jobs.c.state.in_(["queued", "running"]), sa.Integer)
    statement = (
        insert(training_jobs)
        .values(index_id=claim.index_id, generation=0, n_failures=0, **fresh)
        .on_conflict_do_update(
            index_elements=[training_jobs.c.index_id],
            set_={**fresh, "n_failures": training_jobs.c.n_failures + is_abandoned},
            where=sa.and_(sa.not_(_is_live), is_due if is_patient else sa.true()),
        )
        .returning(training_jobs.c.index_id)
    )
    return (await connection.execute(statement)).one_or_none() is not None


async def start(
    connection: AsyncConnection, claim: Claim, max_trainings: int, *, is_due: bool
) -> int | None:
    """Start the claimed job if it is its turn: return the generation to build, None to wait.

    If `is_due`, the index is due for training from now on until one succeeds. Raises `ClaimLost`.
    """
    await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_QUEUE_LOCK)))
    generation = await _lock_index(connection, claim)
    mine = sa.select(
        training_jobs.c.queued_at, training_jobs.c.generation, training_jobs.c.n_failures
    )
    job = (await connection.execute(mine.where(claim.condition))).one_or_none()
    if generation is None or job is None:
        raise ClaimLost
    if await _n_before(connection, claim, job.queued_at) >= max_trainings:
        return None
    # A number of its own for each attempt: what a stopped trainer still builds has another name.
    target: int = max(generation, job.generation) + 1
    await _set_running(connection, claim, target, job.n_failures)
    if is_due:
        await _set_due(connection, claim, is_due=True)
    return target


async def _lock_index(connection: AsyncConnection, claim: Claim) -> int | None:
    """Lock the row of the index, before that of the job as everywhere; return its generation."""
    statement = sa.select(indexes.c.generation).where(indexes.c.id == claim.index_id)
    locked = await connection.execute(statement.with_for_update(key_share=True))
    return locked.scalar_one_or_none()


async def _n_before(connection: AsyncConnection, claim: Claim, queued_at: datetime) -> int:
    """Return how many trainings are at work or before this one in the queue."""
    is_before = sa.or_(training_jobs.c.state == "running", training_jobs.c.queued_at < queued_at)
    statement = sa.select(sa.func.count()).where(
        _is_live, is_before, training_jobs.c.index_id != claim.index_id
    )
    return (await connection.execute(statement)).scalar_one()


async def _set_running(
    connection: AsyncConnection, claim: Claim, generation: int, n_failures: int
) -> None:
    await connection.execute(
        sa.update(training_jobs)
        .where(claim.condition)
        .values(
            state="running",
            started_at=sa.func.now(),
            generation=generation,
            # Should the service be killed over it, then the next one waits as long as after any
            # other failure.
            next_attempt_at=_pause(n_failures) if n_failures else None,
        )
    )


async def beat(connection: AsyncConnection, claim: Claim, phase: str, progress: int) -> None:
    """Renew the claim and say how far the training is. Raises `ClaimLost`."""
    statement = (
        sa.update(training_jobs)
        .where(claim.condition)
        .values(heartbeat_at=sa.func.now(), phase=phase, progress=progress)
    )
    if (await connection.execute(statement)).rowcount != 1:
        raise ClaimLost


async def finish(connection: AsyncConnection, claim: Claim, trained: Trained | None) -> None:
    """Give the job back after success; `trained` is None when there was nothing to do.

    Raises `ClaimLost`.
    """
    ended = {
        "state": "succeeded",
        "progress": 100,
        "failure": None,
        "n_failures": 0,
        "next_attempt_at": None,
    }
    started_at = await _end(connection, claim, ended)
    if trained is not None:
        made = {
            "generation": trained.index.generation,
            "n_items": trained.counts.n_items,
            "n_lists": trained.index.n_lists,
            "encoder_version": trained.index.encoder_version,
            "recall": trained.recall,
        }
        await _record(connection, claim, started_at, outcome="succeeded", **made)
    await _set_due(connection, claim, is_due=False)


async def fail(connection: AsyncConnection, claim: Claim, failure: str, *, is_due: bool) -> None:
    """Give the job back after a failure; for a while no training starts by itself.

    Raises `ClaimLost`.

    Unless the index `is_due` for training still, requests that hold the key do not try again by
    themselves.
    """
    count = sa.select(training_jobs.c.n_failures).where(claim.condition)
    n_failures = ((await connection.execute(count)).scalar_one_or_none() or 0) + 1
    ended = {
        "state": "failed",
        "failure": failure,
        "n_failures": n_failures,
        "next_attempt_at": _pause(n_failures),
    }
    started_at = await _end(connection, claim, ended)
    await _record(connection, claim, started_at, outcome="failed", failure=failure)
    if not is_due:
        await _set_due(connection, claim, is_due=False)


async def interrupt(connection: AsyncConnection, claim: Claim) -> None:
    """Give the job back unfinished, for the next request that can take it. Raises `ClaimLost`."""
    started_at = await _end(
        connection, claim, {"state": "interrupted", "failure": None, "next_attempt_at": None}
    )
    if started_at is not None:
        await _record(connection, claim, started_at, outcome="interrupted")


async def _end(
    connection: AsyncConnection, claim: Claim, values: dict[str, Any]
) -> datetime | None:
    """Write how a job ended and return when it started, None if it never did."""
    await _lock_index(connection, claim)
    statement = (
        sa.update(training_jobs)
        .where(claim.condition)
        .values(values)
        .returning(training_jobs.c.started_at)
    )
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise ClaimLost
    started_at: datetime | None = row.started_at
    return started_at


async def _record(
    connection: AsyncConnection, claim: Claim, started_at: datetime | None, **facts: Any
) -> None:
    """Add a training to the history."""
    started = sa.func.now() if started_at is None else started_at
    await connection.execute(
        sa.insert(trainings).values(index_id=claim.index_id, started_at=started, **facts)
    )


async def ask_for(connection: AsyncConnection, index: Index) -> bool:
    """Have the next request that holds the key train `index`; false if it was asked for already.

    False also when the index was trained or deleted since it was looked at.
    """
    statement = (
        sa.update(indexes)
        .where(
            indexes.c.id == index.id,
            indexes.c.trained_at == index.trained_at,
            sa.not_(indexes.c.is_training_due),
        )
        .values(is_training_due=True, revision=indexes.c.revision + 1)
    )
    return (await connection.execute(statement)).rowcount == 1


async def _set_due(connection: AsyncConnection, claim: Claim, *, is_due: bool) -> None:
    await connection.execute(
        sa.update(indexes)
        .where(indexes.c.id == claim.index_id, indexes.c.is_training_due != is_due)
        .values(is_training_due=is_due, revision=indexes.c.revision + 1)
    )


def _pause(n_failures: int) -> sa.ColumnElement[datetime]:
    """Return when the next automatic training may start.

    That is a minute after the first failure, and twice as long after each further one.
    """
    seconds = _FIRST_PAUSE_S * 2 ** min(n_failures - 1, _MAX_DOUBLINGS)
    return sa.func.now() + sa.cast(f"{seconds} seconds", INTERVAL)


async def requested_n_lists(connection: AsyncConnection, index_id: UUID) -> int | None:
    """Return how many lists the last training of an index was asked for, if it was told."""
    statement = sa.select(training_jobs.c.requested_n_lists).where(
        training_jobs.c.index_id == index_id
    )
    return (await connection.execute(statement)).scalar_one_or_none()


async def status(connection: AsyncConnection) -> TrainingStatus:
    """Return which indexes are trained now, and which wait for it."""
    statement = (
        sa.select(indexes.c.name, training_jobs.c.state)
        .join(training_jobs, training_jobs.c.index_id == indexes.c.id)
        .where(_is_live)
        .order_by(training_jobs.c.queued_at)
    )
    rows = (await connection.execute(statement)).all()
    running, queued = (
        [name for name, state in rows if state == wanted] for wanted in ("running", "queued")
    )
    return TrainingStatus(running, queued)


async def job(connection: AsyncConnection, index_id: UUID) -> TrainingJob | None:
    """Return the last training of an index, if it ever had one."""
    columns = [
        getattr(training_jobs.c, name)
        for name in ("state", "phase", "progress", "failure", "next_attempt_at")
    ]
    statement = sa.select(*columns, _is_live.label("is_live")).where(
        training_jobs.c.index_id == index_id
    )
    row = (await connection.execute(statement)).one_or_none()
    return None if row is None else TrainingJob(**row._mapping)  # noqa: SLF001 - SQLAlchemy's documented way


# ---------------------------------------------------------------- what it has made


async def succeed(connection: AsyncConnection, claim: Claim, trained: Trained) -> None:
    """Store what the index is since searches were moved. Raises `ClaimLost`; then roll back."""
    await connection.execute(
        sa.update(indexes)
        .where(indexes.c.id == claim.index_id)
        .values(
            n_lists=trained.index.n_lists,
            profile=trained.profile,
            trained_at=sa.func.now(),
            n_items_at_training=trained.counts.n_items,
            n_changes_at_training=trained.counts.n_changes,
            n_outdated_at_training=trained.counts.n_outdated,
            is_training_due=False,
            revision=indexes.c.revision + 1,
        )
    )
    await drift.forget(connection, claim.index_id)
    await hold(connection, claim)


async def renew_profile(connection: AsyncConnection, claim: Claim, trained: Trained) -> None:
    """Store what was measured of the lists in use. Raises `ClaimLost`; then roll back."""
    await connection.execute(
        sa.update(indexes)
        .where(indexes.c.id == claim.index_id, indexes.c.generation == trained.index.generation)
        .values(profile=trained.profile, revision=indexes.c.revision + 1)
    )
    await drift.forget(connection, claim.index_id)
    await hold(connection, claim)
