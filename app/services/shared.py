"""Answers that many may ask for at a time: one looks, and all who ask meanwhile get what it saw."""

import asyncio
from collections.abc import Awaitable, Callable
from copy import copy
from time import monotonic
from typing import Generic, TypeVar

from app.errors import AppError

Answer = TypeVar("Answer")


class Shared(Generic[Answer]):
    """What `look` returns or raises, good for `seconds`; it never looks twice at a time."""

    def __init__(self, look: Callable[[], Awaitable[Answer]], seconds: float) -> None:
        self._look = look
        self._seconds = seconds
        self._task: asyncio.Task[Answer] | None = None
        self._good_until = 0.0

    async def answer(self) -> Answer:
        """Return what was seen lately, or what is seen now."""
        if self._task is None or (self._task.done() and monotonic() >= self._good_until):
            self._task = asyncio.create_task(self._looked())
        # Who goes away does not end the look of the others.
        try:
            return await asyncio.shield(self._task)
        except AppError as error:
            # A copy: each raise adds to the traceback of an error.
            raise copy(error).with_traceback(None) from None

    async def _looked(self) -> Answer:
        try:
            return await self._look()
        finally:
            self._good_until = monotonic() + self._seconds
