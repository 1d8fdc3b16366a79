import time

import pytest

from app.observe.figures import Figures
from app.training.traffic import Traffic


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock of one hand, which tests move."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def search(figures: Figures) -> None:
    figures.observe_request("/v1/vectors/query", 0.01, {"wait": 0.0, "sql": 0.01})


def test_without_searches_it_is_quiet(clock: list[float]) -> None:
    figures = Figures(["/v1/vectors/query"])
    traffic = Traffic(figures)
    figures.observe_request("/v1/vectors/upsert", 0.01, {"sql": 0.01})
    for _ in range(3):
        clock[0] += 1
        assert traffic.is_quiet()
    assert Traffic(None).is_quiet()


def test_it_is_quiet_again_half_a_second_after_the_last_search(clock: list[float]) -> None:
    figures = Figures(["/v1/vectors/query"])
    traffic = Traffic(figures)
    for _ in range(3):
        search(figures)
        clock[0] += 0.4
        assert not traffic.is_quiet()
    clock[0] += 0.4
    assert not traffic.is_quiet()
    clock[0] += 0.2
    assert traffic.is_quiet()


def test_searches_of_before_the_first_look_count(clock: list[float]) -> None:
    figures = Figures(["/v1/vectors/query"])
    search(figures)
    clock[0] += 60
    traffic = Traffic(figures)
    assert not traffic.is_quiet()
