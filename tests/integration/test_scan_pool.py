"""The pool of the scans' connections: what it lends, what it keeps, what it replaces."""

import asyncio
import socket
from contextlib import closing

import psycopg
import pytest

from app import errors
from app.settings import Settings
from app.store.pg import engine
from app.store.pg.scan_pool import ScanPool


def backend(raw: psycopg.Connection[object]) -> int:
    return raw.info.backend_pid


async def test_the_connection_used_last_is_lent_first(pool: ScanPool) -> None:
    async with pool.lend() as first, pool.lend() as second:
        assert backend(first) != backend(second)
    with pool.lend_blocking() as again:
        assert again is first
    async with pool.lend() as again, pool.lend() as other:
        assert (again, other) == (first, second)


async def test_a_connection_that_was_closed_while_idle_is_replaced(
    pool: ScanPool, database_dsn: str
) -> None:
    async with pool.lend() as raw:
        pid = backend(raw)
    with psycopg.connect(database_dsn, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    async with pool.lend() as raw:
        assert backend(raw) != pid
        assert raw.execute("SELECT 1").fetchone() == (1,)


async def test_a_transaction_that_was_left_open_goes_with_its_connection(pool: ScanPool) -> None:
    async with pool.lend() as raw:
        raw.execute("BEGIN")
    async with pool.lend() as other:
        assert other is not raw
    assert raw.closed


async def test_it_tells_how_many_it_lends(settings: Settings, database_dsn: str) -> None:
    told: list[int] = []
    with closing(ScanPool(settings, database_dsn, told.append)) as pool:
        async with pool.lend():
            assert sum(told) == 1
        with pytest.raises(ValueError, match="no matter"), pool.lend_blocking():
            raise ValueError("no matter")
    assert told == [1, -1, 1, -1]


async def lend(pool: ScanPool) -> None:
    async with pool.lend():
        pass


async def test_a_server_that_refuses_is_unavailable(settings: Settings) -> None:
    with closing(ScanPool(settings, "postgresql://nobody@127.0.0.1:1/nothing")) as pool:
        with pytest.raises(errors.Unavailable), pool.lend_blocking():
            pass
        with pytest.raises(errors.Unavailable):
            await lend(pool)


async def test_a_server_that_says_nothing_does_not_stop_the_event_loop(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_CONNECT_TIMEOUT_S", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dsn = f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/nothing"
        with closing(ScanPool(settings, dsn)) as pool:
            lending = asyncio.create_task(lend(pool))
            n_turns = 0
            while not lending.done():
                await asyncio.sleep(0.01)
                n_turns += 1
            with pytest.raises(errors.Unavailable):
                await lending
    assert n_turns > 50
