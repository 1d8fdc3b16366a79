"""Use cases of training: on request, after an upsert, once more after a crash; and its status."""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any
from uuid import UUID

from cachetools import TTLCache
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from app import errors, store
from app.domain import Caller, IndexAccess, Permission, TrainingStatus
from app.engine.keyed import KeyedIndex
from app.engine.kinds import trainable
from app.services import audit
from app.services.access import IndexOpener
from app.settings import Settings
from app.store.training import ClaimLost
from app.training import drift
from app.training.jobs import Jobs, reason
from app.training.traffic import Traffic
from app.training.trainer import Order, Trainer

logger = logging.getLogger(__name__)

# The round after what trainings have left, and after indexes whose items have changed.
_ROUND_INTERVAL_S = 10.0
# A worker asks the database at most this often whether a training that came to no end can be
# started again.
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
        self._jobs = Jobs(engine, settings, self._trainer)
        self._asked: TTLCache[UUID, bool] = TTLCache(_MAX_REMEMBERED, _RESUME_INTERVAL_S)
        self._background: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to make rounds: clear away leftovers, look for drift."""
        self._run(self._make_rounds())

    async def close(self) -> None:
        """End the trainings of this worker, and the rounds."""
        background = list(self._background)
        for task in background:
            task.cancel()
        await asyncio.gather(self._jobs.close(), *background, return_exceptions=True)

    async def train(self, access: IndexAccess, n_lists: int | None) -> str | None:
        """Train an index, behind a training that is at work on it; return why that failed, or None.

        Too few items for lists are left as they are: they are searched exactly. Raises
        `InvalidInput`, `NotFound`, `KeyRejected`.
        """
        if n_lists is not None and n_lists < 0:
            raise errors.InvalidInput("n_lists cannot be negative")
        opened = await self._opener.with_index(access, self._current, needs=None)
        await audit.record_request(self._engine, access, "train_request", opened.index.id)
        order = Order(opened.index, opened, min(n_lists or 0, _MAX_INT32) or None)
        try:
            # A client that goes away does not end the training.
            await asyncio.shield(await self._jobs.begin_in_line(order))
        except ClaimLost:
            return "the index was deleted, or another worker took the training over"
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is None or current.cancelling():
                raise
            return "the service was stopped"
        except Exception as error:  # noqa: BLE001 - the job has logged it, and the contract answers it so
            return reason(error)
        return None

    async def _current(self, opened: KeyedIndex) -> KeyedIndex:
        async with self._engine.connect() as connection:
            await store.indexes.check_revision(connection, opened.index)
        return opened

    async def after_upsert(self, opened: KeyedIndex, n_items: int) -> str | None:
        """Start to train an index that has outgrown its lists; return the sentence that says so."""
        index = opened.index
        threshold = index.n_lists * self._settings.retrain_threshold
        # A training that would make no more lists is none that the new items need.
        if n_items <= threshold or trainable(index).automatic_n_lists(n_items) <= index.n_lists:
            self.resume_if_due(opened)
            self._measure_again_if_grown(opened, n_items)
            return None
        # Who may only write cannot open vectors: then the part that needs no key is done, and the
        # next request that can open them completes it (`resume_if_due`).
        order = Order(index, opened if _can_open(opened) else None)
        if not await self._is_begun(order):
            return None
        return f"Index training has been triggered (vectors: {n_items}, threshold: {threshold})"

    def resume_if_due(self, opened: KeyedIndex) -> None:
        """Start again, in the background, a training that came to no end.

        Costs nothing when there is none.
        """
        index = opened.index
        lacks_profile = index.is_trained and index.profile is None
        if (
            not _can_open(opened)
            or not (index.is_training_due or lacks_profile)
            or index.id in self._asked
            or self._jobs.has(index.id)
        ):
            return
        self._asked[index.id] = True
        self._run(self._resume(opened))

    async def _resume(self, opened: KeyedIndex) -> None:
        try:
            async with self._engine.connect() as connection:
                n_lists = await store.training.requested_n_lists(connection, opened.index.id)
        except (DBAPIError, errors.AppError) as error:
            logger.info("a training could not be resumed yet: %s", type(error).__name__)
        else:
            await self._is_begun(Order(opened.index, opened, n_lists))

    def _measure_again_if_grown(self, opened: KeyedIndex, n_items: int) -> None:
        """Start, in the background, to measure recall again once an index has grown by half."""
        index, profile = opened.index, opened.profile
        n_measured = None if profile is None else profile.n_items
        if (
            n_measured is None
            or n_items <= _GROWTH * n_measured
            or index.is_training_due
            or not _can_open(opened)
            or self._jobs.has(index.id)
        ):
            return
        self._run(self._start(Order(index, opened, is_measuring_only=True)))

    async def _start(self, order: Order) -> None:
        await self._is_begun(order)

    async def _is_begun(self, order: Order) -> bool:
        """Start to train unless another does or it must wait; say whether that could be done.

        The items are stored, whatever becomes of it; the next upsert asks for it again.
        """
        try:
            return await self._jobs.begin(order, is_patient=True) is not None
        except (DBAPIError, errors.AppError) as error:
            logger.warning("a training could not be started: %s", type(error).__name__)
            return False

    async def status(self, caller: Caller) -> TrainingStatus:
        """Return the names of the indexes that are trained or wait for it, in whatever worker."""
        async with self._engine.connect() as connection:
            status = await store.training.status(connection)
        if caller.user is not None:
            status = status.only(frozenset(await self._opener.visible_names(caller)))
        return replace(status, retrain_threshold=self._settings.retrain_threshold)

    # ------------------------------------------------------------ in the background

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _make_rounds(self) -> None:
        await self.make_round(is_first=True)
        while True:
            await asyncio.sleep(_ROUND_INTERVAL_S)
            await self.make_round()

    async def make_round(self, *, is_first: bool = False) -> None:
        """Clear away what trainings have left, and look at indexes whose items have changed."""
        try:
            await self._trainer.drop_leftovers()
            await drift.look_at_changed(
                self._engine,
                self._settings.drift_share,
                is_first_round=is_first,
                asks_for_training=not self._settings.auto_train_disabled,
            )
        except (DBAPIError, errors.AppError) as error:
            logger.info("the round after trainings is made later: %s", type(error).__name__)


def _can_open(opened: KeyedIndex) -> bool:
    return Permission.READ in opened.permissions
