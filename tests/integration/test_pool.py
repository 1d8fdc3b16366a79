"""The pool: what it lends, what it replaces, and what it says when it has nothing to lend."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from app import errors
from app.settings import Settings
from app.store.pg import connection as connections
from app.store.pg.pool import Pool

NOBODY = "postgresql://nobody@127.0.0.1:1/nothing"


@asynccontextmanager
async def pool_of(settings: Settings, dsn: str, **changes: Any) -> AsyncIterator[Pool]:
    async with Pool(replace(settings, **changes), dsn) as pool:
        yield pool


def backend(raw: psycopg.AsyncConnection[Any]) -> int:
    return raw.info.backend_pid


async def lend(pool: Pool) -> None:
    async with pool.lend():
        pass


def terminate(dsn: str, pid: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


async def test_the_connection_used_last_is_lent_first(pool: Pool) -> None:
    async with pool.lend() as first, pool.lend() as second:
        assert backend(first) != backend(second)
    for _ in range(3):
        async with pool.lend() as again:
            assert again is first
    async with pool.lend() as again, pool.lend() as other:
        assert (again, other) == (first, second)


@pytest.mark.parametrize("n_steps", range(8))
async def test_a_wait_that_is_cancelled_ends_though_a_connection_comes(
    settings: Settings, database_dsn: str, n_steps: int
) -> None:
    async with pool_of(settings, database_dsn, pool_size=1) as pool:
        held = await pool.getconn()
        waiting = asyncio.create_task(lend(pool))
        while not pool.get_stats().get("requests_waiting"):  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)
        await pool.putconn(held)
        for _ in range(n_steps):
            if not waiting.done():
                await asyncio.sleep(0)
        if waiting.cancel():
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await lend(pool)


async def test_searches_and_all_other_statements_share_the_connections(
    settings: Settings, database_dsn: str
) -> None:
    async with pool_of(settings, database_dsn, pool_size=1, pool_timeout_s=0.05) as pool:
        async with pool.lend() as raw:
            pid = backend(raw)
            with pytest.raises(errors.Overloaded, match="busy"):
                async with pool.engine.connect():
                    pass
        async with pool.engine.connect() as connection:
            assert await connection.scalar(sa.select(sa.func.pg_backend_pid())) == pid
            with pytest.raises(errors.Overloaded, match="busy"):
                await lend(pool)


@pytest.mark.parametrize("n_idle", [1, 4])
async def test_connections_that_were_closed_while_idle_are_replaced_at_once(
    pool: Pool, database_dsn: str, n_idle: int
) -> None:
    lent = [await pool.getconn() for _ in range(n_idle)]
    for raw in lent:
        await pool.putconn(raw)
    for raw in lent:
        await asyncio.to_thread(terminate, database_dsn, backend(raw))
    async with pool.lend() as raw:
        assert raw not in lent
        assert await (await raw.execute("SELECT 1")).fetchone() == (1,)


async def test_a_transaction_that_was_left_open_ends_with_the_loan(pool: Pool) -> None:
    async with pool.lend() as raw:
        await raw.execute("CREATE TEMPORARY TABLE left_behind (n integer)")
    async with pool.lend() as raw:
        cursor = await raw.execute("SELECT to_regclass('left_behind')")
        assert await cursor.fetchone() == (None,)


async def test_it_tells_how_many_it_lends(settings: Settings, database_dsn: str) -> None:
    told: list[int] = []
    async with Pool(settings, database_dsn, told.append) as pool:
        async with pool.lend(), pool.engine.connect():
            assert told == [1, 2]
        with pytest.raises(ValueError, match="no matter"):
            async with pool.lend():
                raise ValueError("no matter")
    assert told == [1, 2, 1, 0, 1, 0]


async def test_a_server_that_refuses_is_unavailable_at_once(settings: Settings) -> None:
    async with pool_of(settings, NOBODY, pool_timeout_s=600) as pool:
        for _ in range(3):
            with pytest.raises(errors.Unavailable) as caught:
                await asyncio.wait_for(lend(pool), 60)
            assert isinstance(caught.value.__cause__, psycopg.OperationalError)
        with pytest.raises(errors.Unavailable):
            async with pool.engine.connect():
                pass


async def test_all_who_wait_for_a_server_that_refuses_are_told(settings: Settings) -> None:
    async with pool_of(settings, NOBODY, pool_timeout_s=600) as pool:
        outcomes = await asyncio.wait_for(
            asyncio.gather(*(lend(pool) for _ in range(20)), return_exceptions=True), 60
        )
    assert {type(outcome) for outcome in outcomes} == {errors.Unavailable}


async def test_who_finds_no_more_room_on_the_server_gets_what_others_give_back(
    settings: Settings, database_dsn: str
) -> None:
    name = database_dsn.rpartition("/")[2].partition("?")[0]
    async with pool_of(settings, database_dsn, pool_timeout_s=60) as pool:
        async with pool.lend() as raw:
            await raw.set_autocommit(True)
            await raw.execute(f'ALTER DATABASE "{name}" CONNECTION LIMIT 0')
            # A role that may do everything is let in all the same.
            await raw.execute("CREATE ROLE limited LOGIN")
            refused = asyncio.Event()
            assert isinstance(pool.kwargs, dict)
            pool.kwargs |= {"user": "limited", "refused": lambda _: refused.set()}
            waiting = asyncio.create_task(pool.getconn())
            await refused.wait()
            assert not waiting.done()
            await raw.execute(f'ALTER DATABASE "{name}" CONNECTION LIMIT -1')
            await raw.execute("DROP ROLE limited")
            await raw.set_autocommit(False)
        assert await waiting is raw
        await pool.putconn(raw)


async def test_a_server_that_says_nothing_does_not_stop_the_event_loop(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_CONNECT_TIMEOUT_S", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dsn = f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/nothing"
        async with pool_of(settings, dsn, pool_timeout_s=60) as pool:
            lending = asyncio.create_task(lend(pool))
            n_turns = 0
            while not lending.done():
                await asyncio.sleep(0.01)
                n_turns += 1
            with pytest.raises(errors.Unavailable):
                await lending
    assert n_turns > 50


async def test_nobody_waits_longer_for_a_silent_server_than_for_a_connection(
    settings: Settings,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dsn = f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/nothing"
        async with pool_of(settings, dsn, pool_timeout_s=0.2) as pool:
            with pytest.raises(errors.Unavailable):
                await asyncio.wait_for(lend(pool), 5)


async def test_a_closed_pool_is_unavailable(settings: Settings, database_dsn: str) -> None:
    async with pool_of(settings, database_dsn) as pool:
        await lend(pool)
    with pytest.raises(errors.Unavailable, match="stopped"):
        await lend(pool)
