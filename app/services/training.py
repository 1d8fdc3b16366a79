"""Use cases of training: on request, after an upsert, and once more after a crash.

A training is a task of the worker that got the request, because only that has the index key, in
memory and nowhere else. All that other workers need to know is a row in PostgreSQL: the job, which
is a lease (`store.training`).
"""

import asyncio
import logging
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Any
from uuid import UUID

from cachetools import TTLCache
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from app import errors, store
from app.domain import Caller, Index, IndexAccess, Permission, TrainingResult, TrainingStatus
from app.engine.keyed import KeyedIndex
from app.services import audit
from app.services.access import IndexOpener
from app.settings import Settings
from app.store.presence import Presence
from app.store.training import Claim, ClaimLost
from app.training.traffic import Traffic
from app.training.trainer import Job, Progress, Trainer, Wanted, automatic_n_lists

logger = logging.getLogger(__name__)

_HEARTBEAT_S = 1.0
# A trainer that cannot renew its claim for so long stops, well before somebody else may take over.
_PATIENCE_S = store.training.LEASE_S * 2 / 3
_QUEUE_POLL_S = 0.2
_SWEEP_INTERVAL_S = 30.0
_CLEAR_UP_S = 15.0
# A service that is told to stop leaves to the next start what takes longer.
_STOP_CLEAR_UP_S = 2.0
_STOP_S = 5.0
# A worker asks the database at most so often whether a training that came to no end can be started
# again.
_RESUME_INTERVAL_S = 5.0
_MAX_REMEMBERED = 10_000
# What the column for the number of lists asked for can hold; more than any index has.
_MAX_INT32 = 2**31 - 1
# An index that has grown so many times since its recall was measured has it measured again.
_GROWTH = 1.5


class TrainingService:
    """Starts trainings and knows of all that are at work."""

    def __init__(
        self, engine: AsyncEngine, opener: IndexOpener, settings: Settings, traffic: Traffic
    ) -> None:
        self._engine = engine
        self._opener = opener
        self._settings = settings
        self._trainer = Trainer(engine, settings, traffic)
        self._presence = Presence(settings, self._trainer.dsn)
        self._tasks: dict[UUID, asyncio.Task[TrainingResult | None]] = {}
        self._asked: TTLCache[UUID, bool] = TTLCache(_MAX_REMEMBERED, _RESUME_INTERVAL_S)
        self._background: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to clear away, now and then, what trainings that came to no end have left."""
        self._run(self._sweep())

    async def close(self) -> None:
        """End the trainings of this worker; their jobs are free at once for the next request that holds the key."""
        tasks = [*self._background, *self._tasks.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            # A connection whose server hangs is cut by the end of the process; its claim ends with
            # it.
            _, hung = await asyncio.wait(tasks, timeout=_STOP_S)
            if hung:
                logger.warning("%d trainings did not end in time: the database hangs", len(hung))

    async def train(self, access: IndexAccess, n_lists: int | None) -> str | None:
        """Train an index, behind a training that is at work on it already; return why that failed, or None.

        Too few items for lists are left as they are: they are searched exactly. Raises
        `InvalidInput`, `NotFound`, `KeyRejected`.
        """
        if n_lists is not None and n_lists < 0:
            raise errors.InvalidInput("n_lists cannot be negative")
        opened = await self._opener.with_index(access, self._current, needs=None)
        await audit.record_request(self._engine, access, "train_request", opened.index.id)
        try:
            task = await self._begin_in_line(opened, min(n_lists or 0, _MAX_INT32) or None)
            # A client that goes away does not end the training.
            await asyncio.shield(task)
        except ClaimLost:
            return "the index was deleted, or another worker took the training over"
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is None or current.cancelling():
                raise
            return "the service was stopped"
        except Exception as error:  # noqa: BLE001 - the task has logged it, and this is how the contract answers it
            return _reason(error)
        return None

    async def _current(self, opened: KeyedIndex) -> KeyedIndex:
        async with self._engine.connect() as connection:
            await store.indexes.check_revision(connection, opened.index)
        return opened

    async def _begin_in_line(
        self, opened: KeyedIndex, n_lists: int | None
    ) -> asyncio.Task[TrainingResult | None]:
        """Start a training as soon as the one that is at work has ended. Raises `ClaimLost` for a deleted index."""
        index = opened.index
        while (task := await self._begin(index, Wanted(opened, n_lists), is_patient=False)) is None:
            async with self._engine.connect() as connection:
                if await store.indexes.by_id(connection, index.id) is None:
                    raise ClaimLost
            await asyncio.sleep(_QUEUE_POLL_S)
        return task

    async def after_upsert(self, opened: KeyedIndex, n_items: int) -> str | None:
        """Start a training if the index has outgrown its lists; return the sentence that says so."""
        index = opened.index
        threshold = index.n_lists * self._settings.retrain_threshold
        # A training that would make no more lists is none that the new items need.
        if n_items <= threshold or automatic_n_lists(n_items) <= index.n_lists:
            self.resume_if_due(opened)
            self._measure_again_if_grown(opened, n_items)
            return None
        try:
            # Who may only write cannot open vectors: then the part that needs no key is done, and
            # the next request that can open them completes it (`resume_if_due`).
            wanted = Wanted(opened if _can_open(opened) else None, None)
            if await self._begin(index, wanted, is_patient=True) is None:
                return None
        except (DBAPIError, errors.AppError) as error:
            # The items are stored, whatever becomes of the training; the next upsert asks for it
            # again.
            logger.warning("a training could not be started: %s", type(error).__name__)
            return None
        return f"Index training has been triggered (vectors: {n_items}, threshold: {threshold})"

    def resume_if_due(self, opened: KeyedIndex) -> None:
        """Start again, in the background, a training that came to no end. Costs nothing when there is none."""
        index = opened.index
        lacks_profile = index.is_trained and index.profile is None
        if (
            not _can_open(opened)
            or not (index.is_training_due or lacks_profile)
            or index.id in self._asked
            or index.id in self._tasks
        ):
            return
        self._asked[index.id] = True
        self._run(self._resume(opened))

    def _measure_again_if_grown(self, opened: KeyedIndex, n_items: int) -> None:
        """Start, in the background, to measure recall anew once an index has grown by half since the last time."""
        index = opened.index
        n_measured = (index.profile or {}).get("n_items", n_items)
        if (
            n_items <= _GROWTH * n_measured
            or index.is_training_due
            or not _can_open(opened)
            or index.id in self._tasks
        ):
            return
        self._run(self._start_later(index, Wanted(opened, None, is_measuring_only=True)))

    async def _start_later(self, index: Index, wanted: Wanted) -> None:
        try:
            await self._begin(index, wanted, is_patient=True)
        except (DBAPIError, errors.AppError) as error:
            logger.info("a training could not be started yet: %s", type(error).__name__)

    async def _resume(self, opened: KeyedIndex) -> None:
        try:
            async with self._engine.connect() as connection:
                n_lists = await store.training.requested_n_lists(connection, opened.index.id)
        except (DBAPIError, errors.AppError) as error:
            logger.info("a training could not be resumed yet: %s", type(error).__name__)
        else:
            await self._start_later(opened.index, Wanted(opened, n_lists))

    async def status(self, caller: Caller) -> TrainingStatus:
        """Return the names of the indexes that are trained or wait for it, in whatever worker."""
        async with self._engine.connect() as connection:
            status = await store.training.status(connection)
        if caller.user is not None:
            status = status.only(frozenset(await self._opener.visible_names(caller)))
        return replace(status, retrain_threshold=self._settings.retrain_threshold)

    # ------------------------------------------------------------ one training

    async def _begin(
        self, index: Index, wanted: Wanted, *, is_patient: bool
    ) -> asyncio.Task[TrainingResult | None] | None:
        """Claim the job of an index and start its task; None when another training has it or it must wait."""
        if index.id in self._tasks:
            return None
        claim = Claim(index.id, self._presence.new_claim())
        async with AsyncExitStack() as stack:
            async with self._engine.begin() as connection:
                now = await store.indexes.by_id(connection, index.id)
                if now is None or (is_patient and now.generation != index.generation):
                    # Deleted, or trained since the caller looked.
                    return None
                if not await store.training.enqueue(
                    connection, claim, n_lists=wanted.n_lists, is_patient=is_patient
                ):
                    return None
                # Before others see the claim, who would take it for that of a dead worker.
                await stack.enter_async_context(self._presence.held())
            task = asyncio.create_task(self._train(claim, wanted, stack.pop_all()))
        self._tasks[index.id] = task
        task.add_done_callback(lambda done: self._forget(index.id, done))
        return task

    def _forget(self, index_id: UUID, task: asyncio.Task[TrainingResult | None]) -> None:
        self._tasks.pop(index_id, None)
        # Whoever waits for the task sees its error too; when nobody does, it has been logged.
        if not task.cancelled():
            task.exception()

    async def _train(
        self, claim: Claim, wanted: Wanted, presence: AsyncExitStack
    ) -> TrainingResult | None:
        """Wait for the job's turn, train, and give the job back whatever the end."""
        async with presence:
            return await self._train_claimed(claim, wanted)

    async def _train_claimed(self, claim: Claim, wanted: Wanted) -> TrainingResult | None:
        progress = Progress()
        began = time.monotonic()
        try:
            result = await self._with_heartbeat(
                claim, progress, self._in_turn(claim, wanted, progress)
            )
            async with self._engine.begin() as connection:
                await store.training.finish(connection, claim, result)
        except ClaimLost:
            logger.warning("training of index %s was given up: its claim is lost", claim.index_id)
            raise
        except asyncio.CancelledError:
            await self._give_back(claim, None)
            raise
        except Exception as error:
            reason = _reason(error)
            logger.warning(
                "training of index %s failed: %s",
                claim.index_id,
                reason,
                exc_info=not _is_expected(error),
            )
            await self._give_back(claim, error)
            raise
        logger.info("training of index %s took %.1f s", claim.index_id, time.monotonic() - began)
        return result

    async def _in_turn(
        self, claim: Claim, wanted: Wanted, progress: Progress
    ) -> TrainingResult | None:
        while True:
            async with self._engine.begin() as connection:
                generation = await store.training.start(
                    connection,
                    claim,
                    self._settings.max_trainings,
                    is_due=not wanted.is_measuring_only,
                )
            if generation is not None:
                return await self._trainer.train(Job(claim, generation, wanted, progress))
            await asyncio.sleep(_QUEUE_POLL_S)

    async def _with_heartbeat(
        self, claim: Claim, progress: Progress, work: Coroutine[Any, Any, TrainingResult | None]
    ) -> TrainingResult | None:
        """Return what `work` returns, and stop it when the claim is lost."""
        tasks = (asyncio.create_task(work), asyncio.create_task(self._beat(claim, progress)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                return tasks[0].result()
            raise ClaimLost
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _beat(self, claim: Claim, progress: Progress) -> None:
        """Renew the claim again and again; return when that is no longer possible."""
        last = time.monotonic()
        while time.monotonic() - last < _PATIENCE_S:
            try:
                await self._presence.confirm()
                async with self._engine.begin() as connection:
                    await store.training.beat(connection, claim, progress.phase, progress.percent)
                last = time.monotonic()
            except ClaimLost:
                return
            except errors.AppError as error:
                logger.warning("the claim of a training could not be renewed: %s", error)
            await asyncio.sleep(_HEARTBEAT_S)

    async def _give_back(self, claim: Claim, error: Exception | None) -> None:
        """Clear up after a training that came to no good end, and free its job."""
        try:
            limit = _STOP_CLEAR_UP_S if error is None else _CLEAR_UP_S
            await asyncio.wait_for(self._trainer.drop_leftovers(claim.index_id), limit)
        except (TimeoutError, DBAPIError, errors.AppError) as problem:
            logger.warning("what a training left is cleared away later: %s", type(problem).__name__)
        # A claim that is lost and a database that is gone need nothing given back.
        with suppress(ClaimLost, DBAPIError, errors.AppError):
            async with self._engine.begin() as connection:
                if error is None:
                    await store.training.interrupt(connection, claim)
                else:
                    is_due = not isinstance(error, errors.TrainingRefused)
                    await store.training.fail(connection, claim, _reason(error), is_due=is_due)

    # ------------------------------------------------------------ in the background

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _sweep(self) -> None:
        while True:
            try:
                await self._trainer.drop_leftovers()
            except (DBAPIError, errors.AppError) as error:
                logger.info("what trainings left is cleared away later: %s", type(error).__name__)
            await asyncio.sleep(_SWEEP_INTERVAL_S)


def _can_open(opened: KeyedIndex) -> bool:
    return Permission.READ in opened.permissions


def _is_expected(error: Exception) -> bool:
    return isinstance(error, errors.AppError | errors.TrainingFailed)


def _reason(error: Exception) -> str:
    """Return what may be told of `error`: an unexpected one is told by the log alone."""
    return str(error) if _is_expected(error) else "an internal error, see the log of the service"
