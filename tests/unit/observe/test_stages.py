import asyncio
from collections.abc import Iterator

import pytest

from app.observe import stages
from app.observe.stages import STAGES, Stopwatch, current, stage, timed


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stages, "perf_counter", clock)
    return clock


@pytest.fixture
def watch(clock: Clock) -> Iterator[Stopwatch]:
    watch = Stopwatch("request")
    clock.passes(1)
    watch.dispatched()
    token = current.set(watch)
    yield watch
    current.reset(token)


def test_nested_stages_count_once_and_add_up_to_the_total(watch: Stopwatch, clock: Clock) -> None:
    with stage("sql"):
        clock.passes(20)
        with stage("pool"):
            clock.passes(30)
        clock.passes(10)
    clock.passes(5)
    assert watch.total() == 66
    assert watch.seconds == {"dispatch": 1, "sql": 30, "pool": 30, "other": 5}


async def test_a_stage_in_a_thread_counts_for_the_request(watch: Stopwatch, clock: Clock) -> None:
    @timed("rerank")
    def work(seconds: float) -> float:
        clock.passes(seconds)
        return seconds

    assert await asyncio.to_thread(work, 4) == 4
    async with stage("sql"):
        clock.passes(2)
    assert (watch.seconds["rerank"], watch.seconds["sql"]) == (4, 2)
    assert set(watch.seconds) <= set(STAGES)


def test_a_stage_that_fails_ends_all_the_same(watch: Stopwatch) -> None:
    with pytest.raises(ValueError, match="x"), stage("open"):
        raise ValueError("x")
    with stage("sql"):
        pass
    assert set(watch.seconds) == {"dispatch", "other", "open", "sql"}


def test_without_a_request_nothing_is_timed() -> None:
    with stage("sql"):
        assert current.get() is None
