import asyncio
import time
from collections.abc import Iterator

import pytest

from app.observe.stages import STAGES, Stopwatch, current, stage, timed


@pytest.fixture
def watch() -> Iterator[Stopwatch]:
    watch = Stopwatch("request")
    watch.dispatched()
    token = current.set(watch)
    yield watch
    current.reset(token)


def test_nested_stages_count_once_and_add_up_to_the_total(watch: Stopwatch) -> None:
    with stage("sql"):
        time.sleep(0.02)
        with stage("pool"):
            time.sleep(0.03)
        time.sleep(0.01)
    time.sleep(0.005)
    total = watch.total()
    assert sum(watch.seconds.values()) == pytest.approx(total, abs=1e-9)
    assert watch.seconds["sql"] == pytest.approx(0.03, abs=0.02)
    assert watch.seconds["pool"] >= 0.03
    assert watch.seconds["other"] >= 0.005


async def test_a_stage_in_a_thread_counts_for_the_request(watch: Stopwatch) -> None:
    @timed("rerank")
    def work(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    assert await asyncio.to_thread(work, 0.01) == 0.01
    async with stage("sql"):
        await asyncio.sleep(0)
    assert watch.seconds["rerank"] >= 0.01
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
