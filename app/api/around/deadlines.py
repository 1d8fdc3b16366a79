"""How long a request may take: to arrive, and to be answered.

One timer looks after all requests of a worker. A timer for each would cost every request ten times
as much.
"""

import asyncio
import time
from types import TracebackType
from typing import Any, Self

from app.errors import AppError

_MAX_INTERVAL_S = 1.0


class Deadline:
    """When a request ends in an error: with the block that it is for, or earlier by itself.

    It is for the task that enters the block.
    """

    __slots__ = ("_deadlines", "_task", "ends_at", "error", "is_over")

    def __init__(self, deadlines: "Deadlines", seconds: float, error: AppError) -> None:
        self._deadlines = deadlines
        self._task: asyncio.Task[Any] | None = None
        self.ends_at = time.monotonic() + seconds
        self.error = error
        self.is_over = False

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None  # noqa: S101 - a coroutine runs in a task
        self._deadlines.add(self._task, self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._task is not None  # noqa: S101 - it was entered
        self._deadlines.remove(self._task)
        if self.is_over:
            self._task.uncancel()
            if isinstance(error, asyncio.CancelledError):
                raise self.error from None


class Deadlines:
    """The deadlines of all requests of a worker."""

    def __init__(self, shortest_s: float) -> None:
        self._interval_s = min(shortest_s / 10, _MAX_INTERVAL_S)
        self._pending: dict[asyncio.Task[Any], Deadline] = {}
        self._is_looking = False

    def within(self, seconds: float, error: AppError) -> Deadline:
        """Return a deadline `seconds` from now, which ends its block in `error`."""
        return Deadline(self, seconds, error)

    def add(self, task: asyncio.Task[Any], deadline: Deadline) -> None:
        """Look after `deadline` until it is removed; a task has one at a time."""
        self._pending[task] = deadline
        self._look_later()

    def remove(self, task: asyncio.Task[Any]) -> None:
        """Look after the deadline of `task` no more."""
        self._pending.pop(task, None)

    def _look_later(self) -> None:
        if not self._is_looking:
            self._is_looking = True
            asyncio.get_running_loop().call_later(self._interval_s, self._look)

    def _look(self) -> None:
        """Cut off those whose time is over."""
        self._is_looking = False
        now = time.monotonic()
        late = [task for task, deadline in self._pending.items() if deadline.ends_at <= now]
        for task in late:
            self._pending.pop(task).is_over = True
            task.cancel()
        if self._pending:
            self._look_later()
