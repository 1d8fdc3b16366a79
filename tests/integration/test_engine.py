import asyncio
import getpass
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BIT
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app import errors
from app.domain import Caller, IndexAccess, Item, NewIndex, Query
from app.server.accounts import SYSTEM_USER
from app.services.context import ServiceContext
from app.settings import Settings
from app.store import server
from app.store.pg.adapters import VarBit
from app.store.pg.connection import Connection
from app.store.pg.dsn import database_url
from app.store.pg.engine import create_engine, driver, maintenance_connection
from app.store.pg.pool import Pool
from app.store.pg.round_trip import RoundTrip

SKETCH = VarBit(bytes([0b1010_0101, 0xFF, 0x00, 0x01]))
BITS = "10100101111111110000000000000001"


@asynccontextmanager
async def engine_of(settings: Settings, dsn: str, **changes: Any) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(replace(settings, **changes), dsn)
    try:
        yield engine
    finally:
        await engine.dispose()


async def _setting(engine: AsyncEngine, name: str) -> Any:
    async with engine.begin() as connection:
        return await connection.scalar(sa.select(sa.func.current_setting(name)))


async def test_a_bit_string_goes_there_and_back(connection: AsyncConnection) -> None:
    bits = sa.cast(sa.bindparam("sketch", SKETCH, BIT(varying=True)), BIT(varying=True))
    row = (await connection.execute(sa.select(sa.cast(bits, sa.Text), sa.func.length(bits)))).one()
    assert tuple(row) == (BITS, len(BITS))
    answer = await connection.exec_driver_sql(
        "SELECT %(sketch)s, %(sketch)s::bit(32)", {"sketch": SKETCH}
    )
    assert tuple(answer.one()) == (SKETCH, SKETCH)


async def test_a_bit_string_can_be_copied_in_and_compared(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        raw: Any = (await connection.get_raw_connection()).driver_connection
        await raw.execute("CREATE TEMPORARY TABLE incoming (sketch varbit, sealed bytea)")
        async with raw.cursor().copy("COPY incoming FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["varbit", "bytea"])
            await copy.write_row((SKETCH, b"\x00sealed"))
        cursor = await raw.execute(
            "SELECT sketch::bit(32) <~> %s::bit(32), sealed FROM incoming", [SKETCH]
        )
        assert await cursor.fetchone() == (0.0, b"\x00sealed")


async def test_a_connection_lost_in_a_transaction_is_unavailable(
    engine: AsyncEngine, database_dsn: str
) -> None:
    async with engine.connect() as connection:
        pid = await connection.scalar(sa.select(sa.func.pg_backend_pid()))
        with psycopg.connect(database_dsn, autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        with pytest.raises(errors.Unavailable):
            await connection.execute(sa.text("SELECT 1"))


async def test_a_server_that_refuses_is_unavailable(settings: Settings) -> None:
    async with engine_of(settings, "postgresql://nobody@127.0.0.1:1/nothing") as engine:
        with pytest.raises(errors.Unavailable):
            async with engine.connect():
                pass


async def test_a_slow_statement_is_unavailable(settings: Settings, database_dsn: str) -> None:
    async with (
        engine_of(settings, database_dsn, statement_timeout_ms=50) as engine,
        engine.connect() as connection,
    ):
        with pytest.raises(errors.Unavailable, match="too long"):
            await connection.execute(sa.text("SELECT pg_sleep(10)"))


async def test_no_parameter_is_quoted_in_an_error(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        with pytest.raises(sa.exc.DBAPIError) as caught:
            await connection.execute(
                sa.text("SELECT 1 / (:n - :n), :secret"), {"n": 3, "secret": "plaintext"}
            )
    assert "plaintext" not in str(caught.value)


async def test_the_timeout_of_a_session_survives_a_rollback(
    settings: Settings, database_dsn: str
) -> None:
    async with engine_of(settings, database_dsn, pool_size=1) as engine:
        async with engine.connect() as connection:
            await connection.execute(sa.text("SELECT 1"))
            await connection.rollback()
        assert await _setting(engine, "statement_timeout") == "1min"


async def test_maintenance_has_no_timeout_and_no_transaction(
    settings: Settings, database_dsn: str
) -> None:
    async with maintenance_connection(settings, database_dsn) as connection:
        assert await connection.scalar(sa.text("SHOW statement_timeout")) == "0"
        await connection.execute(sa.text("CREATE INDEX CONCURRENTLY ON indexes (metric)"))


async def by_default(engine: AsyncEngine, database_dsn: str, setting: str) -> None:
    """Give the sessions of this test's database a default, as an administrator may."""
    name = database_url(database_dsn).database
    async with engine.begin() as connection:
        await connection.exec_driver_sql(f'ALTER DATABASE "{name}" SET {setting}')


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_transactions_are_read_committed_whatever_the_default_of_the_database(
    engine: AsyncEngine, pool: Pool, database_dsn: str, level: str
) -> None:
    await by_default(engine, database_dsn, f"default_transaction_isolation = '{level}'")
    for one in (engine, pool.engine):
        assert await _setting(one, "transaction_isolation") == "read committed"
    async with pool.lend() as raw, RoundTrip(raw) as trip:
        found = trip.execute("SELECT current_setting('transaction_isolation')")
    assert found.one() == ("read committed",)
    # What has changed the level for itself gives the connection back as it was.
    async with pool.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
    assert await _setting(pool.engine, "transaction_isolation") == "read committed"


async def test_a_lock_that_takes_too_long_is_unavailable(
    engine: AsyncEngine, database_dsn: str
) -> None:
    await by_default(engine, database_dsn, "lock_timeout = '20ms'")
    async with engine.begin() as holder, engine.begin() as connection:
        await holder.execute(sa.text("LOCK TABLE indexes"))
        with pytest.raises(errors.Unavailable, match="too long"):
            await connection.execute(sa.text("LOCK TABLE indexes"))


async def test_a_transaction_that_was_idle_for_too_long_is_unavailable(
    engine: AsyncEngine, pool: Pool
) -> None:
    idle = "SET LOCAL idle_in_transaction_session_timeout = 1"
    async with engine.connect() as connection:
        await connection.execute(sa.text(idle))
        await _ended(connection)
        # The server may have closed the connection before its reason is read.
        with pytest.raises(errors.Unavailable):
            await connection.execute(sa.text("SELECT 1"))
    with pytest.raises(errors.Unavailable):
        await _asked_by_the_driver(pool, idle)


async def _asked_by_the_driver(pool: Pool, idle: str) -> None:
    async with pool.engine.connect() as connection, driver(connection) as raw:
        await raw.execute(idle)
        await _ended(connection)
        await raw.execute("SELECT 1")


async def _ended(connection: AsyncConnection) -> None:
    """Return when the server has ended the session of `connection`."""
    raw = (await connection.get_raw_connection()).driver_connection
    assert isinstance(raw, Connection)
    ready = select.poll()
    ready.register(raw.pgconn.socket, select.POLLIN)
    assert await asyncio.to_thread(ready.poll, 30_000)


@pytest.fixture
def pgbouncer_dsn(database_dsn: str, tmp_path: Path) -> Iterator[str]:
    """The database behind a PgBouncer in transaction mode with a single server connection."""
    program = shutil.which("pgbouncer")
    if program is None and os.environ.get("SEALDEX_TEST_PGBOUNCER") != "required":
        pytest.skip("needs pgbouncer: apt-get install pgbouncer")
    assert program is not None, "pgbouncer is not installed"
    url = database_url(database_dsn)
    host, name = url.host or url.query["host"], url.database
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    tmp_path.chmod(0o755)
    port_of_server = url.port or url.query.get("port", 5432)
    password = f" password={url.password}" if url.password else ""
    (tmp_path / "pgbouncer.ini").write_text(
        f"[databases]\n{name} = host={host} port={port_of_server} user={url.username}{password}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        "auth_type = any\n"
        "pool_mode = transaction\ndefault_pool_size = 1\nmax_client_conn = 50\n"
    )
    # PgBouncer does not run as root; the server's own user can open its socket.
    as_user = ["-u", SYSTEM_USER] if os.geteuid() == 0 else ["-u", getpass.getuser()]
    with subprocess.Popen([program, "-q", *as_user, str(tmp_path / "pgbouncer.ini")]) as process:
        _wait_for(port)
        yield f"postgresql://{url.username}@127.0.0.1:{port}/{name}"
        process.send_signal(signal.SIGTERM)


def _wait_for(port: int) -> None:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return


async def test_behind_a_pooler_its_own_connections_are_not_counted(
    settings: Settings, pgbouncer_dsn: str
) -> None:
    async with (
        engine_of(settings, pgbouncer_dsn, prepare_threshold=-1) as engine,
        engine.connect() as connection,
    ):
        assert await server.connection_shortage(connection, 1_000_000) is None


async def test_behind_a_transaction_pooler_each_transaction_has_its_timeout(
    settings: Settings, pgbouncer_dsn: str
) -> None:
    async with Pool(replace(settings, prepare_threshold=-1), pgbouncer_dsn) as pool:
        for _ in range(3):
            assert await _setting(pool.engine, "statement_timeout") == "1min"
            async with pool.lend() as raw, RoundTrip(raw) as trip:
                found = trip.execute("SELECT current_setting('statement_timeout')")
            assert found.one() == ("1min",)
        async with pool.engine.connect() as connection, pool.engine.connect() as other:
            await connection.execute(sa.select(sa.literal(1)))
            await connection.commit()
            await other.execute(sa.select(sa.literal(1)))
    # Nothing of ours stays in the session that other clients get.
    with psycopg.connect(pgbouncer_dsn, autocommit=True, prepare_threshold=None) as neighbour:
        assert neighbour.execute("SHOW statement_timeout").fetchone() == ("0",)
        isolation = neighbour.execute("SHOW default_transaction_isolation").fetchone()
        assert isolation == ("read committed",)


ACCESS = IndexAccess("pooled", secrets.token_hex(32), Caller())
ITEMS = [Item(str(n), np.array([n, 1, 2], "f4"), None, {"n": n, "half": n % 2}) for n in range(90)]
SEARCHES: dict[str, dict[str, Any] | None] = {
    "no filter": None,
    "tokens": {"half": 1},
    "a range": {"n": {"$lt": 50}},
}


@pytest.fixture
async def pooled(settings: Settings, pgbouncer_dsn: str) -> AsyncIterator[ServiceContext]:
    """A service whose only way to the database is PgBouncer."""
    changed = replace(
        settings, database_url=pgbouncer_dsn, prepare_threshold=-1, statement_timeout_ms=400
    )
    async with ServiceContext.open(changed) as services:
        await services.indexes.create(NewIndex(name="pooled", index_key=ACCESS.index_key))
        await services.vectors.upsert(ACCESS, ITEMS)
        yield services


async def found(services: ServiceContext, wanted: dict[str, Any] | None) -> list[str]:
    query = Query(vectors=np.array([[10.2, 1, 2]], "f4"), top_k=3, filters=wanted)
    return [match.id for match in (await services.vectors.query(ACCESS, query))[0]]


async def test_behind_a_pooler_searches_find_what_they_find_without(
    pooled: ServiceContext,
) -> None:
    for _ in range(3):
        assert [await found(pooled, wanted) for wanted in SEARCHES.values()] == [
            ["10", "11", "9"],
            ["11", "9", "13"],
            ["10", "11", "9"],
        ]
        assert await pooled.vectors.count(ACCESS, {"n": {"$lt": 50}}) == 50
    await asyncio.gather(*(found(pooled, SEARCHES["tokens"]) for _ in range(8)))


@pytest.mark.parametrize("wanted", SEARCHES.values(), ids=SEARCHES)
async def test_behind_a_pooler_a_search_that_hangs_is_ended(
    pooled: ServiceContext, database_dsn: str, wanted: dict[str, Any] | None
) -> None:
    before = await found(pooled, wanted)
    async with await psycopg.AsyncConnection.connect(database_dsn) as blocker:
        await blocker.execute("LOCK TABLE indexes IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(errors.Unavailable, match="too long"):
            await asyncio.wait_for(found(pooled, wanted), 30)
        if wanted is not None:
            with pytest.raises(errors.Unavailable, match="too long"):
                await asyncio.wait_for(pooled.vectors.count(ACCESS, wanted), 30)
        await blocker.rollback()
    assert await found(pooled, wanted) == before
