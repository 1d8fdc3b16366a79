import getpass
import os
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

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BIT
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app import errors
from app.server.accounts import SYSTEM_USER
from app.settings import Settings
from app.store import server
from app.store.pg.dsn import database_url
from app.store.pg.engine import VarBit, create_engine, maintenance_connection

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


async def test_an_idle_connection_that_was_closed_is_replaced(
    settings: Settings, database_dsn: str
) -> None:
    async with engine_of(settings, database_dsn, pool_size=1) as engine:
        async with engine.connect() as connection:
            first = await connection.scalar(sa.select(sa.func.pg_backend_pid()))
        with psycopg.connect(database_dsn, autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", [first])
        async with engine.connect() as connection:
            assert await connection.scalar(sa.select(sa.func.pg_backend_pid())) != first


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


async def test_a_pool_without_a_free_connection_is_overloaded(
    settings: Settings, database_dsn: str
) -> None:
    async with (
        engine_of(settings, database_dsn, pool_size=1, pool_timeout_s=0.05) as engine,
        engine.connect(),
    ):
        with pytest.raises(errors.Overloaded):
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


@pytest.fixture
def pgbouncer_dsn(database_dsn: str, tmp_path: Path) -> Iterator[str]:
    """The database behind a PgBouncer in transaction mode with a single server connection."""
    program = shutil.which("pgbouncer")
    if program is None:
        pytest.skip("needs pgbouncer")
    url = database_url(database_dsn)
    host, name = url.host or url.query["host"], url.database
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    tmp_path.chmod(0o755)
    port_of_server = url.port or url.query.get("port", 5432)
    password = f" password={url.password}" if url.password else ""
    (tmp_path / "pgbouncer.ini").write_text(
        f"[databases]\n{name} = host={host} port={port_of_server} user={url.username}{password}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
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
    settings: Settings, pgbouncer_dsn: str, database_dsn: str
) -> None:
    async with engine_of(settings, pgbouncer_dsn, prepare_threshold=-1) as engine:
        for _ in range(3):
            assert await _setting(engine, "statement_timeout") == "1min"
        async with engine.connect() as connection, engine.connect() as other:
            await connection.execute(sa.select(sa.literal(1)))
            await connection.commit()
            await other.execute(sa.select(sa.literal(1)))
    # Nothing of ours stays in the session that other clients get.
    with psycopg.connect(pgbouncer_dsn, autocommit=True, prepare_threshold=None) as neighbour:
        assert neighbour.execute("SHOW statement_timeout").fetchone() == ("0",)
