"""How long the body of a request may take to arrive: a slow one keeps a place in work.

One timer looks after all requests of a worker that wait for their bodies. A timer for each would
cost every request ten times as much.
"""

import asyncio
import time
from typing import Any

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, ReceiveMessage, Scope, Send

from app.errors import Incomplete, TooSlow

# Slower than any line that a body is sent over on purpose.
_LEAST_BYTES_PER_S = 64 * 1024
_MAX_INTERVAL_S = 1.0


class BodyTimeout(ASGIMiddleware):
    """Lets a body take so long to arrive, and a second more for each 64 KB of it.

    A client that goes away in the middle of it has made an error, too; the framework takes it for
    one of its own.
    """

    scopes = (ScopeType.HTTP,)

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._interval_s = min(timeout_s / 10, _MAX_INTERVAL_S)
        # Until when each request may wait that does.
        self._waiting: dict[asyncio.Task[Any], float] = {}
        self._is_looking = False

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Pass the request on with a body that comes in time, or else raises `TooSlow` or `Incomplete`."""
        ends_at = time.monotonic() + self._timeout_s

        async def receive_in_time() -> Any:
            nonlocal ends_at
            message = await self._receive(receive, ends_at)
            if message["type"] == "http.request":
                ends_at += len(message["body"]) / _LEAST_BYTES_PER_S
            elif message["type"] == "http.disconnect":
                raise Incomplete("the body of the request is not complete")
            return message

        await next_app(scope, receive_in_time, send)

    async def _receive(self, receive: Receive, ends_at: float) -> ReceiveMessage:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        self._waiting[task] = ends_at
        self._look_later()
        try:
            return await receive()
        except asyncio.CancelledError:
            if task in self._waiting:
                # By somebody else.
                raise
            task.uncancel()
            raise TooSlow("the body of the request did not arrive in time") from None
        finally:
            self._waiting.pop(task, None)

    def _look_later(self) -> None:
        if not self._is_looking:
            self._is_looking = True
            asyncio.get_running_loop().call_later(self._interval_s, self._look)

    def _look(self) -> None:
        """Cut off those whose time is over."""
        self._is_looking = False
        now = time.monotonic()
        for task in [task for task, ends_at in self._waiting.items() if ends_at <= now]:
            del self._waiting[task]
            task.cancel()
        if self._waiting:
            self._look_later()
