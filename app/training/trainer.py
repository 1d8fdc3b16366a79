"""The steps of one training, whatever the kind of the index.

Whoever has no key can build and swap; with the keys a training prepares the index and measures its
recall too. While it runs, upserts, queries and deletes go on with what is in use. Arithmetic is
done in threads, a few milliseconds at a time, so that requests of the same worker get their turn in
between; and while searches are under way, in whatever worker, they have one processor to themselves
(`traffic`).
"""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app import errors, store
from app.domain import AuditEntry, Index
from app.engine import header
from app.engine.keyed import KeyedIndex, open_row
from app.engine.kinds import TRAINABLE, trainable
from app.engine.trainable import Work
from app.settings import Settings
from app.store.indexes import Counts
from app.store.pg.engine import maintenance_connection
from app.store.training import Claim, ClaimLost, Trained
from app.training import drift
from app.training.calibration import Calibrator, Examination
from app.training.traffic import Traffic

# Searching fewer items than this takes less than a millisecond without lists.
MIN_ITEMS = 1_000

_PROGRESS_INTERVAL_S = 1.0

# Phases, and the per cent of a training that each takes.
_SHARES = {
    "fitting": (0, 5),
    "encoding": (5, 40),
    "building": (40, 65),
    "calibrating": (65, 97),
    "swapping": (97, 98),
    "cleaning": (98, 100),
}


@dataclass(slots=True)
class Progress:
    """How far a training is, for its heartbeat to report."""

    phase: str = "waiting"
    percent: int = 0

    def enter(self, phase: str) -> None:
        """Begin a phase."""
        self.phase = phase
        self.advance(0)

    def advance(self, share: float) -> None:
        """Say which share of the phase is done."""
        start, end = _SHARES[self.phase]
        self.percent = round(start + (end - start) * min(1.0, max(0.0, share)))


@dataclass(frozen=True, slots=True)
class Order:
    """What a training is asked for: an index, its keys if somebody has brought them, and lists.

    `is_measuring_only` leaves encoder and lists as they are and brings the search profile up to
    date.
    """

    index: Index
    opened: KeyedIndex | None
    n_lists: int | None = None
    is_measuring_only: bool = False


@dataclass(frozen=True, slots=True)
class Training:
    """One training at work: its order, its claim, the generation it builds, and how far it is."""

    order: Order
    claim: Claim
    generation: int
    progress: Progress = field(default_factory=Progress)


class Trainer:
    """Trains indexes; what it knows of a single training is in `Training`."""

    def __init__(self, engine: AsyncEngine, settings: Settings, traffic: Traffic) -> None:
        self._engine = engine
        self._settings = settings
        self._traffic = traffic
        self._calibrator = Calibrator(engine, settings, traffic)

    async def train(self, training: Training) -> Trained | None:
        """Train an index that is claimed. Returns None when it has too few items to need it.

        Raises `ClaimLost` when the claim or the index is gone, `TrainingFailed` with a reason for
        the caller.
        """
        index, counts = await self._read(training)
        if training.order.is_measuring_only:
            return await self._measure_again(training, index, counts)
        n_lists = choose_n_lists(index, counts.n_items, training.order.n_lists, self._settings)
        await self.drop_leftovers(claimed=index.id)
        if n_lists is None or index.dimension is None:
            return None
        index = await self._prepare(training, index)
        trained = Trained(_target(training, index, n_lists), counts)
        examination = await self._build(training, index, trained)
        trained = await self._calibrate(training, trained, examination)
        await self._swap(training, index, trained)
        await self._clean(training)
        return trained

    async def _read(self, training: Training) -> tuple[Index, Counts]:
        """Return the row of the index as it is now, and what is counted of it."""
        index_id = training.claim.index_id
        async with self._engine.connect() as connection:
            index = await store.indexes.by_id(connection, index_id)
            counts = await store.indexes.counts(connection, index_id)
        if index is None:
            raise ClaimLost
        return index, counts

    async def _prepare(self, training: Training, index: Index) -> Index:
        """Do what needs the keys and comes before the build; return the row as it is then."""
        if training.order.opened is None:
            return index
        work = Work(
            open_row(index, training.order.opened.keys),
            self._engine,
            lambda connection: store.training.hold(connection, training.claim),
            self._traffic.is_quiet,
            training.progress.enter,
            training.progress.advance,
        )
        await trainable(index).prepare(work)
        return (await self._read(training))[0]

    # ------------------------------------------------------------ build; no key is needed

    async def _build(
        self, training: Training, index: Index, trained: Trained
    ) -> Examination | None:
        """Build what is to be; return what its recall is measured by, if the keys are there.

        Neither needs the other: the one keeps the database busy, the other the service.
        """
        training.progress.enter("building")
        examination = asyncio.create_task(self._examination(training, index))
        watch = asyncio.create_task(self._watch_build(training, trained.index))
        try:
            async with self.maintenance() as connection:
                await trainable(index).build(connection, trained.index, trained.counts.n_items)
            return await examination
        finally:
            await _end(examination, watch)

    async def _watch_build(self, training: Training, target: Index) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_INTERVAL_S)
            async with self._engine.connect() as connection:
                share = await trainable(target).built_share(connection, target)
            training.progress.advance(share)

    async def _swap(self, training: Training, index: Index, trained: Trained) -> None:
        """Move searches to what was built, in one transaction that names the claim."""
        training.progress.enter("swapping")
        async with self._engine.begin() as connection:
            if not await trainable(index).swap(connection, index, trained.index):
                raise ClaimLost
            await store.training.succeed(connection, training.claim, trained)
            await store.audit.record(connection, _audit_entry(index, trained.counts.n_items))

    async def _clean(self, training: Training) -> None:
        """Drop what was in use before, and judge the index anew."""
        training.progress.enter("cleaning")
        await self.drop_leftovers(claimed=training.claim.index_id)
        index, _ = await self._read(training)
        async with self.maintenance() as connection:
            await trainable(index).tidy(connection, index)
        await drift.renew_verdict(self._engine, index, self._settings.drift_share)

    async def drop_leftovers(self, *, claimed: UUID | None = None) -> None:
        """Drop what trainings have left: broken, unfinished or out of use.

        The index `claimed` is the caller's; of others, what a live training builds is left alone.
        """
        for kind in TRAINABLE:
            async with self._engine.connect() as connection:
                names = await kind.leftovers(connection, claimed=claimed)
            if names:
                async with self.maintenance() as connection:
                    for name in names:
                        await kind.drop(connection, name)

    def maintenance(self) -> AsyncConnection:
        """Return a connection of its own for what takes long; it opens when awaited."""
        return maintenance_connection(self._settings, self.dsn)

    @property
    def dsn(self) -> str:
        """Address of the database for what takes long, which is not behind a pooler."""
        dsn = self._settings.maintenance_database_url or self._settings.database_url
        assert dsn is not None  # noqa: S101 - the service does not start without one
        return dsn

    # ------------------------------------------------------------ calibration

    async def _examination(self, training: Training, index: Index) -> Examination | None:
        if training.order.opened is None:
            return None
        return await self._calibrator.examination(open_row(index, training.order.opened.keys))

    async def _calibrate(
        self, training: Training, trained: Trained, examination: Examination | None
    ) -> Trained:
        """Return `trained` with its search profile, if there is something to measure it by."""
        if examination is None:
            return trained
        training.progress.enter("calibrating")
        profile = await self._calibrator.profile(
            trained.index, trained.counts.n_items, examination, training.progress.advance
        )
        return replace(trained, profile=profile.to_json())

    async def _measure_again(
        self, training: Training, index: Index, counts: Counts
    ) -> Trained | None:
        """Bring the search profile up to date with the lists as they are."""
        training.progress.enter("calibrating")
        examination = await self._examination(training, index) if index.is_trained else None
        if examination is None:
            return None
        trained = await self._calibrate(training, Trained(index, counts), examination)
        async with self._engine.begin() as connection:
            await store.training.renew_profile(connection, training.claim, trained)
        index, _ = await self._read(training)
        await drift.renew_verdict(self._engine, index, self._settings.drift_share)
        return trained


def choose_n_lists(
    index: Index, n_items: int, requested: int | None, settings: Settings
) -> int | None:
    """Return how many lists to make; None for an index that is better left alone.

    Raises `TrainingRefused` for a request that cannot be met.
    """
    if n_items < min(MIN_ITEMS, settings.retrain_threshold + 1):
        return None
    requested = requested or _requested_at_creation(index, n_items, settings)
    n_lists = requested or trainable(index).automatic_n_lists(n_items)
    if 2 * n_lists > n_items:
        return None
    if n_lists > trainable(index).max_lists:
        raise errors.TrainingRefused(
            f"an index can have at most {trainable(index).max_lists} lists"
        )
    if requested is not None:
        _check_memory(index, n_items, requested, settings)
        return requested
    while _memory_mb(index, n_items, n_lists) > settings.training_memory_mb:
        n_lists //= 2
    return n_lists


def _requested_at_creation(index: Index, n_items: int, settings: Settings) -> int | None:
    """Return the lists that were asked for at creation, as long as they keep lists short enough."""
    requested = index.requested_n_lists
    if requested is None or n_items > requested * settings.retrain_threshold:
        return None
    return requested


def _check_memory(index: Index, n_items: int, n_lists: int, settings: Settings) -> None:
    needed, limit = _memory_mb(index, n_items, n_lists), settings.training_memory_mb
    if needed > limit:
        raise errors.TrainingRefused(
            f"{n_lists} lists need {needed} MB of memory in the database, "
            f"SEALDEX_TRAINING_MEMORY_MB is {limit}"
        )


def _memory_mb(index: Index, n_items: int, n_lists: int) -> int:
    return trainable(index).build_memory_mb(index, n_items, n_lists)


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended, however that was."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _audit_entry(index: Index, n_items: int) -> AuditEntry:
    """Return the entry of a training that has moved searches, whoever asked for it."""
    return AuditEntry(
        caller="service",
        key_id=None,
        operation="train",
        index_id=index.id,
        index_name=index.name,
        n_items=n_items,
        request_id="",
        outcome="done",
    )


def _target(training: Training, index: Index, n_lists: int) -> Index:
    """Return the row of the index as it will be after the swap, with the header that goes with it.

    Only who has the keys can seal a header.
    """
    opened = training.order.opened
    target = trainable(index).target(
        index, training.generation, n_lists, is_prepared=opened is not None
    )
    if opened is None:
        return target
    return replace(target, sealed_header=header.seal(opened.keys, header.Header.of(target)))
