"""A database and a service that may be harmed. Each test mends what it broke."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from app.settings import Settings
from app.store import schema
from tests.api.conftest import RemoteIndex, serve
from tests.faults.postgres import Postgres, Way
from tests.service.conftest import Service, new_service

RECEIVE_TIMEOUT_S = 1.5
REQUESTS_IN_WORK = 8
ARRIVING_BODIES = 16


@pytest.fixture(scope="package")
def postgres() -> Iterator[Postgres]:
    """A server with a migrated database, which may be stopped."""
    with tempfile.TemporaryDirectory(prefix="sealdex-test-") as directory:
        Path(directory).chmod(0o755)
        with Postgres(Path(directory)) as server:
            asyncio.run(schema.upgrade(server.dsn))
            yield server


@pytest.fixture
def way(postgres: Postgres) -> Iterator[Way]:
    """A way to the server that can be cut."""
    way = Way(postgres)
    yield way
    way.close()


@pytest.fixture(scope="package")
def running(postgres: Postgres) -> Iterator[Service]:
    """A service process with one worker on that server, little patience and few places."""
    with tempfile.TemporaryDirectory(prefix="sealdex-test-") as directory:
        service = new_service(
            Path(directory),
            DATABASE_URL=postgres.dsn,
            SEALDEX_WORKERS="1",
            SEALDEX_RECEIVE_TIMEOUT_S=str(RECEIVE_TIMEOUT_S),
            SEALDEX_MAX_REQUESTS_IN_WORK=str(REQUESTS_IN_WORK),
            SEALDEX_MAX_ARRIVING_BODIES=str(ARRIVING_BODIES),
            SEALDEX_ALLOW_MODEL_DOWNLOADS="false",
        )
        service.start()
        yield service
        service.stop()


def settings_on(dsn: str, **values: object) -> Settings:
    """Settings of a small service on the database at `dsn`."""
    facts = {"database_url": dsn, "pool_size": 2, "allow_model_downloads": False, **values}
    return Settings(**facts)  # type: ignore[arg-type]


@pytest.fixture
async def client_on_the_way(way: Way) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application whose database is at the end of the way."""
    async with serve(settings_on(way.dsn)) as client:
        yield client


@pytest.fixture
async def index_on_the_way(client_on_the_way: httpx.AsyncClient) -> RemoteIndex:
    """An index with one item, whose connections are there."""
    index = RemoteIndex(client_on_the_way)
    assert (await index.post("indexes/create", dimension=2)).status_code == httpx.codes.OK
    items = [{"id": "before", "vector": [1, 2]}]
    assert (await index.post("vectors/upsert", items=items)).status_code == httpx.codes.OK
    return index
