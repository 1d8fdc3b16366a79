"""What calibrations ask the database, and how they let searches go first."""

import asyncio
from typing import Any

import numpy as np
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.domain import Query
from app.engine.keyed import KeyedIndex
from app.engine.sketches import fitting, samples
from app.engine.sketches.ivf import IvfSketches
from app.services.context import ServiceContext
from app.settings import Settings
from app.training import calibration
from app.training.traffic import Traffic
from tests.integration.an_index import ACCESS, THRESHOLD, D, N, clustered, row, trained

pytestmark = pytest.mark.anyio

CHUNK = 100


@pytest.fixture
def settings(database_dsn: str) -> Settings:
    return Settings(database_url=database_dsn, workers=1, retrain_threshold=THRESHOLD)


class Count:
    """How often something was done, and how often at once."""

    def __init__(self) -> None:
        self.n_done = self.n_at_once = self.most_at_once = 0

    def wrapped(self, work: Any) -> Any:
        async def counted(*arguments: Any, **named: Any) -> Any:
            self.n_at_once += 1
            self.most_at_once = max(self.most_at_once, self.n_at_once)
            try:
                return await work(*arguments, **named)
            finally:
                self.n_at_once -= 1
                self.n_done += 1

        return counted


async def test_no_sketch_that_goes_to_the_database_is_that_of_a_stored_item(
    services: ServiceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = clustered(N, D, seed=1)
    # One is there many times: no mixture of two of its copies may be asked for.
    vectors[: N // 3] = vectors[0]
    sent: set[bytes] = set()
    keyed: list[KeyedIndex] = []
    candidates, questions = IvfSketches.candidates, IvfSketches.questions

    async def noted(kind: Any, connection: Any, target: Any, asked: Any, **named: Any) -> Any:
        sent.update(asked)
        return await candidates(kind, connection, target, asked, **named)

    def noted_questions(kind: Any, opened: KeyedIndex, rows: Any) -> Any:
        keyed.append(opened)
        return questions(kind, opened, rows)

    monkeypatch.setattr(IvfSketches, "candidates", noted)
    monkeypatch.setattr(IvfSketches, "questions", noted_questions)
    await trained(services, vectors)
    assert len(sent) > 500
    of_items = set(questions(IvfSketches(), keyed[0], vectors))
    assert not sent & of_items
    # Nor nearly: some of their bits differ, as those of stored sketches do by their noise.
    bits = np.frombuffer(b"".join(of_items), np.uint8).reshape(len(of_items), -1)
    shares = [
        np.bitwise_count(bits ^ np.frombuffer(sketch, np.uint8)).sum(axis=1).min()
        / (8 * len(sketch))
        for sketch in list(sent)[:100]
    ]
    assert min(shares) > 0.01
    assert np.median(shares) > 0.04


@pytest.mark.parametrize("is_quiet", [True, False])
async def test_while_searches_are_under_way_one_processor_is_theirs(
    services: ServiceContext, monkeypatch: pytest.MonkeyPatch, is_quiet: bool
) -> None:
    asking, writing = Count(), Count()
    n_rests = 0
    n_written_meanwhile: list[int] = []
    vectors_after = samples.vectors_after

    async def rest_after(_: Traffic, _worked_s: float) -> None:
        nonlocal n_rests
        n_rests += 1

    async def read(*arguments: Any, **named: Any) -> Any:
        if "lacking" in named:
            n_written_meanwhile.append(writing.n_at_once)
        return await vectors_after(*arguments, **named)

    monkeypatch.setattr(Traffic, "is_quiet", lambda _: is_quiet)
    monkeypatch.setattr(Traffic, "rest_after", rest_after)
    monkeypatch.setattr(IvfSketches, "candidates", asking.wrapped(IvfSketches.candidates))
    monkeypatch.setattr(samples, "write_sketches", writing.wrapped(samples.write_sketches))
    monkeypatch.setattr(samples, "vectors_after", read)
    # Small chunks, so that there are many of them.
    monkeypatch.setattr(fitting, "chunk_items", lambda _: CHUNK)
    monkeypatch.setattr(calibration, "chunk_items", lambda _: CHUNK)
    await trained(services, clustered(N, D, seed=1))
    assert writing.n_done == N // CHUNK
    assert n_rests == N // CHUNK
    # In quiet, a chunk is read and encoded while others are written, and two streams ask.
    assert asking.most_at_once == (2 if is_quiet else 1)
    assert (max(n_written_meanwhile) > 0) is is_quiet


async def test_the_pass_over_all_vectors_rests_only_while_searches_are_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    await Traffic(None).rest_after(0.5)
    assert slept == []
    monkeypatch.setattr(Traffic, "is_quiet", lambda _: False)
    await Traffic(None).rest_after(0.5)
    assert slept == [1.0]


async def test_an_index_of_copies_is_trained_and_has_nothing_to_measure(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    await trained(services, np.ones((N, D), np.float32))
    index = await row(engine)
    assert index.is_trained
    assert index.profile is not None
    assert index.profile["points"] == {}
    assert index.profile["recall"] is None
    query = Query(vectors=np.ones((1, D), np.float32), top_k=5)
    assert len((await services.vectors.query(ACCESS, query))[0]) == 5
