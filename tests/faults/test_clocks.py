"""Clocks jump: nobody is granted more than is due, nobody is locked out, and nothing fails."""

import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

import httpx
import psycopg
import pytest
from cachetools import TTLCache

from app.settings import Settings
from tests.api.conftest import ROOT_KEY, RemoteIndex, serve
from tests.api.test_users import new_users
from tests.faults.conftest import settings_on

SetClock: TypeAlias = Callable[[str], Awaitable[None]]

YEAR_S = 365 * 24 * 3_600
ITEMS = [{"id": str(number), "vector": [number, number % 7, 1]} for number in range(1_100)]

_SKEWED = """
    CREATE SCHEMA skewed;
    CREATE TABLE skewed.skew AS SELECT interval '0' AS difference;
    CREATE FUNCTION skewed.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
        RETURN pg_catalog.clock_timestamp() + (SELECT difference FROM skewed.skew);
    CREATE FUNCTION skewed.now() RETURNS timestamptz LANGUAGE sql STABLE
        RETURN pg_catalog.now() + (SELECT difference FROM skewed.skew);
    DO $$ BEGIN
        -- What is named before pg_catalog is found before it.
        EXECUTE format(
            'ALTER DATABASE %I SET search_path = skewed, pg_catalog, public', current_database()
        );
    END $$
    """


@pytest.fixture
async def set_clock(database_dsn: str) -> AsyncIterator[SetClock]:
    """Sets the clock of the database to some time after the true one, for all that ask."""
    async with await psycopg.AsyncConnection.connect(database_dsn, autocommit=True) as admin:
        await admin.execute(_SKEWED)

        async def set_clock(difference: str) -> None:
            await admin.execute("UPDATE skewed.skew SET difference = %s", [difference])

        yield set_clock


@pytest.fixture
def limited(database_dsn: str) -> Settings:
    """One request in ten seconds, and three ahead of that."""
    return settings_on(database_dsn, rate_limit_per_s=0.1, rate_limit_burst=3)


async def ask(client: httpx.AsyncClient, times: int) -> list[int]:
    return [(await client.get("/v1/indexes/list")).status_code for _ in range(times)]


async def test_a_clock_that_is_set_back_neither_locks_a_key_out_nor_gives_it_a_new_account(
    limited: Settings, set_clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("app.services.limits.monotonic", clock)
    async with serve(limited) as client:
        assert await ask(client, 5) == [200, 200, 200, 429, 429]
        # A refusal is remembered for a second.
        clock.offset_s += 1
        await set_clock("-1 hour")
        assert await ask(client, 3) == [200, 429, 429]
        clock.offset_s += 1
        await set_clock("-1 year")
        assert await ask(client, 3) == [200, 429, 429]


async def test_a_clock_that_is_set_forward_gives_a_key_no_more_than_what_it_may_be_ahead(
    limited: Settings, set_clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("app.services.limits.monotonic", clock)
    async with serve(limited) as client:
        assert await ask(client, 4) == [200, 200, 200, 429]
        clock.offset_s += 1
        await set_clock("1 year")
        assert await ask(client, 5) == [200, 200, 200, 429, 429]


async def test_what_a_worker_has_taken_of_a_rate_ends_when_its_clock_jumps(
    database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("app.services.limits.monotonic", clock)
    rate, burst = 20, 4
    # A worker takes two requests at a time: a tenth of a second's worth.
    async with serve(
        settings_on(database_dsn, rate_limit_per_s=rate, rate_limit_burst=burst)
    ) as client:
        start = time.monotonic()
        answers = await ask(client, 1)
        clock.offset_s = YEAR_S
        answers += await ask(client, 5)
        # The second of the first two is lost, not saved up.
        assert answers[0] == 200
        assert answers.count(200) <= burst - 1 + rate * (time.monotonic() - start)


async def test_a_training_of_before_the_clock_was_set_back_does_not_block_the_next(
    database_dsn: str,
) -> None:
    async with serve(settings_on(database_dsn)) as client:
        index = RemoteIndex(client)
        assert (await index.post("indexes/create", dimension=3)).status_code == 200
        assert (await index.post("vectors/upsert", items=ITEMS)).status_code == 200
        assert (await index.post("indexes/train", n_lists=3)).json()["status"] == "success"
        with psycopg.connect(database_dsn) as admin:
            # As a trainer leaves it that is killed before the clock is set back by an hour.
            admin.execute(
                "UPDATE training_jobs SET state = 'running', claim = gen_random_uuid(),"
                " heartbeat_at = now() + interval '1 hour'"
            )
        status = (await client.get("/v1/indexes/training-status")).json()
        assert status["training_indexes"] == []
        assert (await index.post("indexes/train", n_lists=4)).json()["status"] == "success"
        assert (await index.post("indexes/describe")).json()["n_lists"] == 4


class Clock:
    """The true time and an offset."""

    offset_s = 0.0
    _true = staticmethod(time.monotonic)

    def __call__(self) -> float:
        return self._true() + self.offset_s


async def test_remembered_keys_end_when_the_clock_jumps_and_open_again(
    database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("app.services.access.TTLCache", functools.partial(TTLCache, timer=clock))
    async with serve(settings_on(database_dsn, root_key=ROOT_KEY)) as client:
        users = await new_users(client)
        for n_years in (0, 1, 2):
            clock.offset_s = n_years * YEAR_S
            assert (await users.post("both", "vectors/upsert", items=ITEMS[:3])).status_code == 200
            assert (await users.post("writer", "vectors/list_ids")).status_code == 403
            assert (
                await users.post("root", "vectors/num_vectors", index_key="00" * 32)
            ).status_code == 401
            assert (await users.post("reader", "vectors/list_ids")).json()["count"] == 3
        assert (await users.revoke("reader")).is_success
        for n_years in (2, 3):
            clock.offset_s = n_years * YEAR_S
            assert (await users.post("reader", "vectors/list_ids")).status_code == 403


async def test_the_time_of_day_is_of_no_account(
    database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_time = time.time
    async with serve(settings_on(database_dsn)) as client:
        index = RemoteIndex(client)
        assert (await index.post("indexes/create", dimension=3)).status_code == 200
        for n_years in (0, 50, -50, 0):
            monkeypatch.setattr(
                time, "time", lambda n_years=n_years: true_time() + n_years * YEAR_S
            )
            for route, fields in (
                ("vectors/upsert", {"items": ITEMS[:5]}),
                ("vectors/query", {"query_vectors": [1, 1, 1], "filters": {"a": None}}),
                ("vectors/get", {"ids": ["1"]}),
                ("indexes/stats", {}),
                ("indexes/train", {}),
            ):
                answer = await index.post(route, **fields)
                assert answer.status_code == 200, answer.text
            assert (await client.get("/v1/ready")).status_code == 200
