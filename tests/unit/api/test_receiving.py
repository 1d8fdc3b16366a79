import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from litestar.types import HTTPScope

from app.api.around.slow_bodies import BodyTimeout
from app.errors import Incomplete, TooSlow

TIMEOUT_S = 0.3
SCOPE = cast("HTTPScope", {"type": "http"})
Receive = Callable[[], Awaitable[Any]]


async def never() -> Any:
    await asyncio.Event().wait()


async def send(_: Any) -> None:
    pass


async def read(middleware: BodyTimeout, receive: Receive) -> int:
    """Receive a body through the middleware and return its length."""
    n_bytes = 0

    async def app(_: Any, receive: Receive, __: Any) -> None:
        nonlocal n_bytes
        while True:
            message = await receive()
            n_bytes += len(message["body"])
            if not message["more_body"]:
                return

    await middleware.handle(SCOPE, cast("Any", receive), send, cast("Any", app))
    return n_bytes


def chunks(*sizes: int, pause_s: float = 0.0) -> Receive:
    """Gives a body in chunks, with a pause before each."""
    left = list(sizes)

    async def receive() -> Any:
        await asyncio.sleep(pause_s)
        return {"type": "http.request", "body": bytes(left.pop(0)), "more_body": bool(left)}

    return receive


async def test_a_body_that_does_not_come_is_cut_off_and_others_are_not() -> None:
    middleware = BodyTimeout(TIMEOUT_S)
    start = time.monotonic()
    late = [asyncio.create_task(read(middleware, never)) for _ in range(3)]
    assert await read(middleware, chunks(3, 4, pause_s=TIMEOUT_S / 10)) == 7
    for task in late:
        with pytest.raises(TooSlow):
            await task
    assert time.monotonic() - start >= TIMEOUT_S


async def test_each_64_kilobytes_give_a_body_a_second_more() -> None:
    assert (
        await read(BodyTimeout(TIMEOUT_S), chunks(*[65_536] * 4, pause_s=0.8 * TIMEOUT_S))
        == 4 * 65_536
    )


async def test_time_is_not_given_for_each_chunk_anew() -> None:
    with pytest.raises(TooSlow):
        await read(BodyTimeout(TIMEOUT_S), chunks(*[1] * 100, pause_s=TIMEOUT_S / 3))


async def test_whoever_is_cancelled_by_others_stays_cancelled() -> None:
    task = asyncio.create_task(read(BodyTimeout(60), never))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_whoever_was_cut_off_is_not_cancelled() -> None:
    with pytest.raises(TooSlow):
        await read(BodyTimeout(TIMEOUT_S), never)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_client_that_goes_away_is_told_apart_from_a_failure() -> None:
    async def receive() -> Any:
        return {"type": "http.disconnect"}

    with pytest.raises(Incomplete):
        await read(BodyTimeout(60), receive)
