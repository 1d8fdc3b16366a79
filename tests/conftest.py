"""A real PostgreSQL for the tests: SEALDEX_TEST_DATABASE_URL, else a container, else the embedded
one.

The schema is migrated once, into a template database. A test that asks for `database_dsn`,
`settings` or `engine` gets a clone of its own, dropped afterwards. `connection` is one transaction,
rolled back at the end.
"""

import asyncio
import os
import socket
import tempfile
import uuid
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.server.postgres import EmbeddedPostgres
from app.settings import Settings
from app.store import schema
from app.store.pg.dsn import database_url, libpq_dsn
from app.store.pg.engine import create_engine

_IMAGE = "pgvector/pgvector:pg18"
# Tests need no durability and little memory.
_QUICK = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "256MB",
}


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests and fixtures run on asyncio, as the service does."""
    return "asyncio"


@pytest.fixture(scope="session")
def server_dsn() -> Iterator[str]:
    """The address of a PostgreSQL with pgvector where databases can be created."""
    if given := os.environ.get("SEALDEX_TEST_DATABASE_URL"):
        yield libpq_dsn(given)
    elif _is_docker_there():
        with _container() as dsn:
            yield dsn
    else:
        with tempfile.TemporaryDirectory(prefix="sealdex-test-") as directory:
            Path(directory).chmod(0o755)
            with EmbeddedPostgres(Path(directory), overrides=_QUICK) as server:
                yield server.dsn


@pytest.fixture(scope="session")
def template_dsn(server_dsn: str) -> Iterator[str]:
    """A migrated database to clone. Nothing may stay connected to it."""
    with new_database(server_dsn, "template0") as dsn:
        asyncio.run(schema.upgrade(dsn))
        yield dsn


@pytest.fixture
def empty_dsn(server_dsn: str) -> Iterator[str]:
    """A database without a schema."""
    with new_database(server_dsn, "template0") as dsn:
        yield dsn


@pytest.fixture
def database_dsn(server_dsn: str, template_dsn: str) -> Iterator[str]:
    """A migrated database for this test alone."""
    with new_database(server_dsn, database_url(template_dsn).database or "") as dsn:
        yield dsn


@pytest.fixture
def settings(database_dsn: str) -> Settings:
    """Settings of a service on a database of this test's own."""
    return Settings(database_url=database_dsn, workers=1)


@pytest.fixture
async def engine(settings: Settings, database_dsn: str) -> AsyncIterator[AsyncEngine]:
    """An engine for tests that commit, race or build an index."""
    engine = create_engine(settings, database_dsn)
    yield engine
    await engine.dispose()


@pytest.fixture
async def connection(template_dsn: str) -> AsyncIterator[AsyncConnection]:
    """A transaction that is rolled back, for tests of one statement; cheaper than `engine`."""
    engine = create_engine(Settings(), template_dsn)
    async with engine.connect() as connection:
        yield connection
        await connection.rollback()
    await engine.dispose()


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory like `tmp_path` that every user may pass, as the server of a service of root
    must.
    """
    with tempfile.TemporaryDirectory(prefix="sealdex-test-") as directory:
        Path(directory).chmod(0o711)
        yield Path(directory)


@contextmanager
def new_database(server_dsn: str, template: str) -> Iterator[str]:
    """Create a database from a template, give its address, drop it."""
    name = f"test_{uuid.uuid4().hex}"
    with closing(psycopg.connect(server_dsn, autocommit=True)) as admin:
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        admin.execute(create.format(sql.Identifier(name), sql.Identifier(template)))
        try:
            yield (
                database_url(server_dsn)
                .set(drivername="postgresql", database=name)
                .render_as_string(hide_password=False)
            )
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _is_docker_there() -> bool:
    """Whether a Docker engine answers within two seconds."""
    address = urlsplit(os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock")
    is_local = address.scheme == "unix"
    try:
        with socket.socket(socket.AF_UNIX if is_local else socket.AF_INET) as client:
            client.settimeout(2)
            client.connect(address.path if is_local else (address.hostname, address.port))
            client.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return b" 200 " in client.recv(64)
    except OSError:
        return False


@contextmanager
def _container() -> Iterator[str]:
    with warnings.catch_warnings():
        # testcontainers deprecates what it uses itself.
        warnings.simplefilter("ignore")
        from testcontainers.postgres import PostgresContainer  # noqa: PLC0415 - warns at import

        with PostgresContainer(_IMAGE, driver=None) as server:
            yield server.get_connection_url()
