"""How long a request may take to arrive and to be answered, and how much of it is held."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from app.api.around.arriving import Bodies
from app.api.around.deadlines import Deadlines
from app.errors import Incomplete, Overloaded, TooLarge, TooSlow
from app.settings import Settings

TIMEOUT_S = 0.3
LIMIT = 1_000_000
Receive = Callable[[], Awaitable[Any]]


def new_bodies(**values: Any) -> Bodies:
    return Bodies(Settings(receive_timeout_s=TIMEOUT_S, **values))


async def never() -> Any:
    await asyncio.Event().wait()


async def read(
    receive: Receive,
    *,
    bodies: Bodies | None = None,
    deadlines: Deadlines | None = None,
    limit: int = LIMIT,
) -> bytes:
    """Receive a body as the admission of a request does."""
    bodies, deadlines = bodies or new_bodies(), deadlines or Deadlines(TIMEOUT_S)
    with (
        deadlines.within(60, Overloaded("late")) as deadline,
        bodies.held() as body,
        bodies.arriving("caller"),
    ):
        return await body.receive(cast("Any", receive), limit, deadline)


def chunks(*sizes: int, pause_s: float = 0.0) -> Receive:
    """Gives a body in chunks, with a pause before each."""
    left = list(sizes)

    async def receive() -> Any:
        await asyncio.sleep(pause_s)
        return {"type": "http.request", "body": bytes(left.pop(0)), "more_body": bool(left)}

    return receive


async def test_a_body_that_does_not_come_is_cut_off_and_others_are_not() -> None:
    deadlines = Deadlines(TIMEOUT_S)
    start = time.monotonic()
    late = [asyncio.create_task(read(never, deadlines=deadlines)) for _ in range(3)]
    assert len(await read(chunks(3, 4, pause_s=TIMEOUT_S / 10), deadlines=deadlines)) == 7
    for task in late:
        with pytest.raises(TooSlow):
            await task
    assert time.monotonic() - start >= TIMEOUT_S


async def test_each_64_kilobytes_give_a_body_a_second_more() -> None:
    body = await read(chunks(*[65_536] * 4, pause_s=0.8 * TIMEOUT_S))
    assert len(body) == 4 * 65_536


async def test_time_is_not_given_for_each_chunk_anew() -> None:
    with pytest.raises(TooSlow):
        await read(chunks(*[1] * 100, pause_s=TIMEOUT_S / 3))


async def test_the_time_of_the_body_is_not_taken_from_the_request() -> None:
    deadlines, bodies = Deadlines(TIMEOUT_S), new_bodies()
    with deadlines.within(TIMEOUT_S, Overloaded("late")) as deadline, bodies.held() as body:
        ends_at = deadline.ends_at
        receive = chunks(65_536, 65_536, 65_536, pause_s=0.8 * TIMEOUT_S)
        await body.receive(cast("Any", receive), LIMIT, deadline)
        assert deadline.ends_at >= ends_at + 3 * 0.8 * TIMEOUT_S
        assert isinstance(deadline.error, Overloaded)


async def test_what_takes_too_long_ends_in_the_error_of_its_deadline() -> None:
    async def work() -> None:
        with Deadlines(TIMEOUT_S).within(TIMEOUT_S, Overloaded("late")):
            await never()

    with pytest.raises(Overloaded, match="late"):
        await work()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_whoever_is_cancelled_by_others_stays_cancelled() -> None:
    task = asyncio.create_task(read(never))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_client_that_goes_away_is_told_apart_from_a_failure() -> None:
    async def receive() -> Any:
        return {"type": "http.disconnect"}

    with pytest.raises(Incomplete):
        await read(receive)


async def test_a_body_that_is_not_announced_is_cut_off_at_the_limit() -> None:
    with pytest.raises(TooLarge, match="at most 25 bytes"):
        await read(chunks(10, 10, 10), limit=25)


async def test_bodies_that_arrive_are_counted_by_caller() -> None:
    bodies = new_bodies(max_arriving_bodies=2)
    with (
        bodies.arriving("a"),
        bodies.arriving("a"),
        bodies.arriving("b"),
        pytest.raises(Overloaded, match="have not arrived"),
        bodies.arriving("a"),
    ):
        pass
    with bodies.arriving("a"):
        pass


async def test_bytes_of_bodies_are_counted_until_their_requests_end() -> None:
    bodies = new_bodies(max_held_body_bytes=100)
    deadlines = Deadlines(TIMEOUT_S)
    with deadlines.within(60, Overloaded("late")) as deadline:
        with bodies.held() as body:
            await body.receive(cast("Any", chunks(40, 40)), LIMIT, deadline)
            with pytest.raises(Overloaded, match="too many bytes"):
                await read(chunks(10, 11), bodies=bodies, deadlines=Deadlines(TIMEOUT_S))
        assert len(await read(chunks(100), bodies=bodies)) == 100
