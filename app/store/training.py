"""Statements of training: the job of an index and its lease, what a training builds, and what it leaves.

A job is claimed by writing a random name, the claim, into its row, and is kept by a heartbeat. Once
the heartbeat is `LEASE_S` old, or the trainer's connection is gone (`store.presence`), the job
belongs to nobody, and the next claim takes it over. Every statement that changes something for good
names the claim, so a trainer that was stopped and comes back can do no harm.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from psycopg import errors as pg
from sqlalchemy.dialects.postgresql import INTERVAL, insert
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Index, TrainingJob, TrainingResult, TrainingStatus
from app.store.partitions import ivf_definition
from app.store.presence import IS_PRESENT
from app.store.tables import IVF_PREFIX, indexes, ivf_name, partition_name, training_jobs, trainings

LEASE_S = 30

# One number for all who look whether a training may start: the ASCII codes of "training".
_QUEUE_LOCK = 0x747261696E696E67
_LOCK_TIMEOUT = "30s"
# How soon PostgreSQL notices that the trainer is gone, and ends its CREATE INDEX.
_CLIENT_CHECK = "2s"
_FIRST_PAUSE_S = 60
_MAX_DOUBLINGS = 8

_IVF_NAME = re.compile(rf"{IVF_PREFIX}([0-9a-f]{{32}})_[0-9]+")

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


# ---------------------------------------------------------------- the job


async def enqueue(
    connection: AsyncConnection, claim: Claim, *, n_lists: int | None, is_patient: bool
) -> bool:
    """Claim the job of an index; false when another trainer has it, or `is_patient` and it shall wait after a failure.

    A job that was abandoned counts as a failure from now on, so that one which always ends so is
    not tried for ever.
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
    is_due = sa.func.coalesce(training_jobs.c.next_attempt_at <= sa.func.now(), sa.true())
    is_abandoned = training_jobs.c.state.in_(["queued", "running"])
    statement = (
        insert(training_jobs)
        .values(index_id=claim.index_id, generation=0, n_failures=0, **fresh)
        .on_conflict_do_update(
            index_elements=[training_jobs.c.index_id],
            set_={
                **fresh,
                "n_failures": training_jobs.c.n_failures + sa.cast(is_abandoned, sa.Integer),
            },
            where=sa.and_(sa.not_(_is_live), is_due if is_patient else sa.true()),
        )
        .returning(training_jobs.c.index_id)
    )
    try:
        return (await connection.execute(statement)).one_or_none() is not None
    except IntegrityError as error:
        # The foreign key: the index was deleted.
        if isinstance(error.orig, pg.ForeignKeyViolation):
            return False
        raise


async def start(
    connection: AsyncConnection, claim: Claim, max_trainings: int, *, is_due: bool
) -> int | None:
    """Start the claimed job if it is its turn: return the generation to build, None to wait. Raises `ClaimLost`.

    If `is_due`, the index is due for training from now on until one succeeds.
    """
    await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_QUEUE_LOCK)))
    # The row of the index before that of the job, as everywhere.
    index = sa.select(indexes.c.generation).where(indexes.c.id == claim.index_id)
    generation = (
        await connection.execute(index.with_for_update(key_share=True))
    ).scalar_one_or_none()
    mine = sa.select(
        training_jobs.c.queued_at, training_jobs.c.generation, training_jobs.c.n_failures
    )
    job = (await connection.execute(mine.where(claim.condition))).one_or_none()
    if generation is None or job is None:
        raise ClaimLost
    is_before = sa.or_(
        training_jobs.c.state == "running", training_jobs.c.queued_at < job.queued_at
    )
    before = sa.select(sa.func.count()).where(
        _is_live, is_before, training_jobs.c.index_id != claim.index_id
    )
    if (await connection.execute(before)).scalar_one() >= max_trainings:
        return None
    # A number of its own for each attempt: what a stopped trainer still builds has another name.
    target: int = max(generation, job.generation) + 1
    pause = _pause(job.n_failures) if job.n_failures else None
    await connection.execute(
        sa.update(training_jobs)
        .where(claim.condition)
        .values(
            state="running",
            started_at=sa.func.now(),
            generation=target,
            # Should the service be killed over it, then the next one waits as long as after any
            # other failure.
            next_attempt_at=pause,
        )
    )
    if is_due:
        await _set_due(connection, claim, is_due=True)
    return target


async def beat(connection: AsyncConnection, claim: Claim, phase: str, progress: int) -> None:
    """Renew the claim and say how far the training is. Raises `ClaimLost`."""
    statement = (
        sa.update(training_jobs)
        .where(claim.condition)
        .values(heartbeat_at=sa.func.now(), phase=phase, progress=progress)
    )
    if (await connection.execute(statement)).rowcount != 1:
        raise ClaimLost


async def finish(connection: AsyncConnection, claim: Claim, result: TrainingResult | None) -> None:
    """Give the job back after success; `result` is None when there was nothing to do. Raises `ClaimLost`."""
    ended = {
        "state": "succeeded",
        "progress": 100,
        "failure": None,
        "n_failures": 0,
        "next_attempt_at": None,
    }
    started_at = await _end(connection, claim, ended)
    if result is not None:
        made = {
            "generation": result.generation,
            "n_items": result.n_items,
            "n_lists": result.n_lists,
            "encoder_version": result.encoder_version,
            "recall": result.recall,
        }
        await _record(connection, claim, started_at, outcome="succeeded", **made)
    await _set_due(connection, claim, is_due=False)


async def fail(connection: AsyncConnection, claim: Claim, failure: str, *, is_due: bool) -> None:
    """Give the job back after a failure; no automatic training starts for a while. Raises `ClaimLost`.

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
    """Give the job back unfinished, to be taken by the next request that can. Raises `ClaimLost`."""
    started_at = await _end(
        connection, claim, {"state": "interrupted", "failure": None, "next_attempt_at": None}
    )
    if started_at is not None:
        await _record(connection, claim, started_at, outcome="interrupted")


async def _end(
    connection: AsyncConnection, claim: Claim, values: dict[str, Any]
) -> datetime | None:
    """Write how a job ended and return when it started, None if it never did. Raises `ClaimLost`."""
    # The row of the index is locked first, as everywhere.
    index = sa.select(indexes.c.id).where(indexes.c.id == claim.index_id)
    await connection.execute(index.with_for_update(key_share=True))
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


async def _set_due(connection: AsyncConnection, claim: Claim, *, is_due: bool) -> None:
    await connection.execute(
        sa.update(indexes)
        .where(indexes.c.id == claim.index_id, indexes.c.is_training_due != is_due)
        .values(is_training_due=is_due, revision=indexes.c.revision + 1)
    )


def _pause(n_failures: int) -> sa.ColumnElement[datetime]:
    """Return when the next automatic training may start: a minute after the first failure, then twice as long each."""
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


# ---------------------------------------------------------------- the encoder


async def announce_encoder(
    connection: AsyncConnection, claim: Claim, index: Index, sealed_encoder: bytes
) -> None:
    """Store the next encoder of `index`: every upsert that begins from now on writes its sketches too.

    The caller holds `store.indexes.own_encoder`. An encoder that was announced before stays. Raises
    `ClaimLost`.
    """
    await connection.execute(
        sa.update(indexes)
        .where(
            indexes.c.id == index.id,
            indexes.c.encoder_version == index.encoder_version,
            indexes.c.sealed_next_encoder.is_(None),
        )
        .values(sealed_next_encoder=sealed_encoder, revision=indexes.c.revision + 1)
    )
    await _check(connection, claim)


async def _check(connection: AsyncConnection, claim: Claim) -> None:
    """Raise `ClaimLost` unless the claim holds, and hold it until the transaction ends."""
    statement = sa.select(training_jobs.c.index_id).where(claim.condition).with_for_update()
    if (await connection.execute(statement)).one_or_none() is None:
        raise ClaimLost


# ---------------------------------------------------------------- the ivfflat index


@dataclass(frozen=True, slots=True)
class Build:
    """An ivfflat index to build: on the sketches of which encoder, with how many lists, in how much memory."""

    index_id: UUID
    generation: int
    encoder_version: int
    sketch_bits: int
    n_lists: int
    memory_mb: int


async def build(connection: AsyncConnection, wanted: Build) -> None:
    """Build an ivfflat index beside the one in use, on a `maintenance_connection`; nobody waits for it.

    Raises `DBAPIError` when PostgreSQL refuses or finds the result invalid.
    """
    name = ivf_name(wanted.index_id, wanted.generation)
    await _set(
        connection,
        maintenance_work_mem=f"{wanted.memory_mb}MB",
        client_connection_check_interval=_CLIENT_CHECK,
        statement_timeout="0",
        lock_timeout="0",
    )
    definition = ivf_definition(
        wanted.encoder_version, wanted.sketch_bits, wanted.n_lists, wanted.generation
    )
    await connection.exec_driver_sql(
        f"CREATE INDEX CONCURRENTLY {name} ON {partition_name(wanted.index_id)} {definition}"
    )


async def is_valid(connection: AsyncConnection, index_id: UUID, generation: int) -> bool:
    """Whether the ivfflat index of a generation is there, complete and usable."""
    statement = sa.text(
        "SELECT indisvalid AND indisready FROM pg_index WHERE indexrelid = to_regclass(:name)"
    )
    row = await connection.execute(statement, {"name": ivf_name(index_id, generation)})
    return bool(row.scalar_one_or_none())


async def build_progress(connection: AsyncConnection, index_id: UUID) -> float:
    """Return which share of the build is done; PostgreSQL counts only while it loads tuples."""
    statement = sa.text(
        """
        SELECT CASE
            WHEN phase LIKE '%k-means%' THEN 0.1
            WHEN phase LIKE '%assigning%' THEN 0.3
            WHEN phase LIKE '%loading%' THEN 0.6 + 0.4 * tuples_done / greatest(tuples_total, tuples_done, 1)
            ELSE 0 END::float
        FROM pg_stat_progress_create_index WHERE relid = to_regclass(:name)
        """
    )
    share = (
        (await connection.execute(statement, {"name": partition_name(index_id)})).scalars().first()
    )
    return float(share or 0)


async def swap(
    connection: AsyncConnection, claim: Claim, index: Index, result: TrainingResult
) -> None:
    """Send queries to the new ivfflat index. Raises `ClaimLost`, with nothing changed when rolled back."""
    is_new_encoder = result.encoder_version != index.encoder_version
    encoder = (
        {"sealed_encoder": indexes.c.sealed_next_encoder, "sealed_next_encoder": None}
        if is_new_encoder
        else {}
    )
    await connection.execute(
        sa.update(indexes)
        .where(indexes.c.id == claim.index_id, indexes.c.encoder_version == index.encoder_version)
        .values(
            generation=result.generation,
            n_lists=result.n_lists,
            encoder_version=result.encoder_version,
            profile=result.profile,
            trained_at=sa.func.now(),
            n_items_at_training=result.n_items,
            n_changes_at_training=result.n_changes,
            is_training_due=False,
            revision=indexes.c.revision + 1,
            **encoder,
        )
    )
    await _check(connection, claim)


async def renew_profile(
    connection: AsyncConnection, claim: Claim, index: Index, result: TrainingResult
) -> None:
    """Store what was measured of the ivfflat index in use. Raises `ClaimLost`."""
    await connection.execute(
        sa.update(indexes)
        .where(indexes.c.id == claim.index_id, indexes.c.generation == index.generation)
        .values(profile=result.profile, revision=indexes.c.revision + 1)
    )
    await _check(connection, claim)


async def drop_ivf(connection: AsyncConnection, name: str) -> None:
    """Drop an ivfflat index on a `maintenance_connection` without holding up searches."""
    await _set(
        connection,
        lock_timeout=_LOCK_TIMEOUT,
        statement_timeout="0",
        client_connection_check_interval=_CLIENT_CHECK,
    )
    await connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")


async def analyze(connection: AsyncConnection, index_id: UUID) -> None:
    """Tell the planner about the items as they are now."""
    await connection.exec_driver_sql(f"ANALYZE {partition_name(index_id)}")


async def leftovers(connection: AsyncConnection, *, claimed: UUID | None = None) -> Sequence[str]:
    """Return the ivfflat indexes that no index uses and no live job is building.

    The index `claimed` is the caller's own: what its earlier jobs have left is among them.
    """
    statement = sa.text(
        r"""
        SELECT relation.relname
        FROM pg_class AS relation JOIN pg_index ON indexrelid = relation.oid
            JOIN pg_class AS partition ON partition.oid = indrelid
            JOIN indexes ON partition.relname = 'items_' || replace(indexes.id::text, '-', '')
            LEFT JOIN training_jobs AS job ON job.index_id = indexes.id
        WHERE starts_with(relation.relname, 'ivf_')
            AND relation.relname <> 'ivf_' || replace(indexes.id::text, '-', '') || '_' || indexes.generation
            AND (indexes.id = CAST(:claimed AS uuid) OR job.index_id IS NULL
                OR job.state NOT IN ('queued', 'running')
                OR job.heartbeat_at NOT BETWEEN now() - make_interval(secs => :lease)
                    AND now() + make_interval(secs => :lease))
        """
    )
    rows = await connection.execute(statement, {"claimed": claimed, "lease": LEASE_S})
    return [name for name in rows.scalars() if _IVF_NAME.fullmatch(name)]


async def _set(connection: AsyncConnection, **settings: str) -> None:
    """Change settings of this session, which is the caller's alone."""
    for name, value in settings.items():
        await connection.execute(
            sa.text("SELECT set_config(:name, :value, false)"), {"name": name, "value": value}
        )


def reason(error: DBAPIError) -> str:
    """Return what PostgreSQL says against it, in its own first line; it names indexes and limits, never values."""
    return str(error.orig).strip().splitlines()[0]
