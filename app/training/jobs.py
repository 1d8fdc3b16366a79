"""The jobs of this worker: claimed, kept alive while they train, given back whatever the end.

A training is a task of the worker that got the request, because only that has the index key, in
memory and nowhere else. All that other workers need to know is a row in PostgreSQL: the job, which
is a lease (`store.training`).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from uuid import UUID

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from app import errors, store
from app.settings import Settings
from app.store.presence import Presence
from app.store.training import LEASE_S, Claim, ClaimLost, Trained
from app.training.trainer import Order, Progress, Trainer, Training

logger = logging.getLogger(__name__)

_HEARTBEAT_S = 1.0
# A trainer that cannot renew its claim for this long stops, well before another may take over.
_PATIENCE_S = LEASE_S * 2 / 3
_QUEUE_POLL_S = 0.2
_CLEAR_UP_S = 15.0
# A service that is told to stop leaves to the next start what takes longer.
_STOP_CLEAR_UP_S = 2.0
_STOP_S = 5.0

Task = asyncio.Task[Trained | None]


class Jobs:
    """Runs the trainings of this worker."""

    def __init__(self, engine: AsyncEngine, settings: Settings, trainer: Trainer) -> None:
        self._engine = engine
        self._settings = settings
        self._trainer = trainer
        self._presence = Presence(settings, trainer.dsn)
        self._tasks: dict[UUID, Task] = {}

    def has(self, index_id: UUID) -> bool:
        """Whether this worker trains an index, or waits for its turn to."""
        return index_id in self._tasks

    async def begin(self, order: Order, *, is_patient: bool) -> Task | None:
        """Claim the job of an index and start to train; None when another has it or it must wait.

        Who `is_patient` waits after failures, and trains no index that was trained meanwhile.
        """
        if self.has(order.index.id):
            return None
        claim = Claim(order.index.id, self._presence.new_claim())
        async with AsyncExitStack() as presence:
            if not await self._claim(order, claim, presence, is_patient=is_patient):
                return None
            task = asyncio.create_task(self._work(order, claim, presence.pop_all()))
        self._tasks[claim.index_id] = task
        task.add_done_callback(lambda done: self._forget(claim.index_id, done))
        return task

    async def begin_in_line(self, order: Order) -> Task:
        """Start to train as soon as the training that is at work has ended. Raises `ClaimLost`."""
        while (task := await self.begin(order, is_patient=False)) is None:
            if await self._is_deleted(order.index.id):
                raise ClaimLost
            await asyncio.sleep(_QUEUE_POLL_S)
        return task

    async def close(self) -> None:
        """End the trainings of this worker.

        Their jobs are free at once for the next request that holds the key. A connection whose
        server hangs is cut by the end of the process; its claim ends with it.
        """
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            _, hung = await asyncio.wait(tasks, timeout=_STOP_S)
            if hung:
                logger.warning("%d trainings did not end in time: the database hangs", len(hung))

    # ------------------------------------------------------------ one job

    async def _claim(
        self, order: Order, claim: Claim, presence: AsyncExitStack, *, is_patient: bool
    ) -> bool:
        """Claim the job, and enter the sign of life that goes with it."""
        async with self._engine.begin() as connection:
            now = await store.indexes.by_id(connection, claim.index_id)
            if now is None or (is_patient and now.generation != order.index.generation):
                return False
            is_claimed = await store.training.enqueue(
                connection, claim, n_lists=order.n_lists, is_patient=is_patient
            )
            if is_claimed:
                # Before others see the claim, who would take it for that of a dead worker.
                await presence.enter_async_context(self._presence.held())
        return is_claimed

    def _forget(self, index_id: UUID, task: Task) -> None:
        self._tasks.pop(index_id, None)
        # Whoever waits for the task sees its error too; when nobody does, it has been logged.
        if not task.cancelled():
            task.exception()

    async def _work(self, order: Order, claim: Claim, presence: AsyncExitStack) -> Trained | None:
        """Wait for the job's turn, train, and give the job back whatever the end."""
        began = time.monotonic()
        async with presence:
            try:
                trained = await self._train(order, claim)
            except asyncio.CancelledError:
                await self._give_back(claim, None)
                raise
            except Exception as error:
                raise await self._failed(claim, error) from error
        logger.info("training of index %s took %.1f s", claim.index_id, time.monotonic() - began)
        return trained

    async def _train(self, order: Order, claim: Claim) -> Trained | None:
        progress = Progress()
        async with self._kept_alive(claim, progress):
            generation = await self._turn(order, claim)
            trained = await self._trainer.train(Training(order, claim, generation, progress))
            async with self._engine.begin() as connection:
                await store.training.finish(connection, claim, trained)
        return trained

    async def _turn(self, order: Order, claim: Claim) -> int:
        """Wait for the job's turn, start it, and return the generation that it may build."""
        while True:
            async with self._engine.begin() as connection:
                generation = await store.training.start(
                    connection,
                    claim,
                    self._settings.max_trainings,
                    is_due=not order.is_measuring_only,
                )
            if generation is not None:
                return generation
            await asyncio.sleep(_QUEUE_POLL_S)

    @asynccontextmanager
    async def _kept_alive(self, claim: Claim, progress: Progress) -> AsyncIterator[None]:
        """Renew the claim while the block runs; stop the block with `ClaimLost` when it is lost."""
        deadline = asyncio.timeout(_PATIENCE_S)
        try:
            async with deadline:
                beating = asyncio.create_task(self._beat(claim, progress, deadline))
                try:
                    yield
                finally:
                    beating.cancel()
                    await asyncio.gather(beating, return_exceptions=True)
        except TimeoutError as error:
            if deadline.expired():
                raise ClaimLost from error
            raise

    async def _beat(self, claim: Claim, progress: Progress, deadline: asyncio.Timeout) -> None:
        """Renew the claim again and again, and put off the deadline each time."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self._presence.confirm()
                async with self._engine.begin() as connection:
                    await store.training.beat(connection, claim, progress.phase, progress.percent)
                deadline.reschedule(loop.time() + _PATIENCE_S)
            except ClaimLost:
                deadline.reschedule(loop.time())
                return
            except (DBAPIError, errors.AppError) as error:
                logger.warning("the claim of a training could not be renewed: %s", reason(error))
            await asyncio.sleep(_HEARTBEAT_S)

    # ------------------------------------------------------------ bad ends

    async def _failed(self, claim: Claim, error: Exception) -> Exception:
        """Log why a training has failed, give its job back, and return what to raise."""
        if isinstance(error, ClaimLost) or await self._is_deleted(claim.index_id):
            logger.warning("training of index %s was given up: its claim is lost", claim.index_id)
            return ClaimLost()
        logger.warning(
            "training of index %s failed: %s",
            claim.index_id,
            reason(error),
            exc_info=None if is_expected(error) else error,
        )
        await self._give_back(claim, error)
        return error

    async def _give_back(self, claim: Claim, error: Exception | None) -> None:
        """Clear up after a training that came to no good end, and free its job."""
        try:
            limit_s = _STOP_CLEAR_UP_S if error is None else _CLEAR_UP_S
            await asyncio.wait_for(self._trainer.drop_leftovers(claimed=claim.index_id), limit_s)
        except (TimeoutError, DBAPIError, errors.AppError) as problem:
            logger.warning("what a training left is cleared away later: %s", type(problem).__name__)
        # A claim that is lost and a database that is gone need nothing given back.
        with suppress(ClaimLost, DBAPIError, errors.AppError):
            async with self._engine.begin() as connection:
                if error is None:
                    await store.training.interrupt(connection, claim)
                else:
                    is_due = not isinstance(error, errors.TrainingRefused)
                    await store.training.fail(connection, claim, reason(error), is_due=is_due)

    async def _is_deleted(self, index_id: UUID) -> bool:
        """Whether the index is known to be gone."""
        with suppress(DBAPIError, errors.AppError):
            async with self._engine.connect() as connection:
                return await store.indexes.by_id(connection, index_id) is None
        return False


def is_expected(error: Exception) -> bool:
    """Whether an error was raised on purpose, with a message for the caller."""
    return isinstance(error, errors.AppError | errors.TrainingFailed)


def reason(error: Exception) -> str:
    """Return what may be told of `error`: an unexpected one is told by the log alone."""
    return str(error) if is_expected(error) else "an internal error, see the log of the service"
