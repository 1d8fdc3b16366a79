"""The real application on a real database, spoken to over ASGI.

An application lives as long as a test module; its tests keep apart by the names of their indexes.
"""

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import httpx
import psycopg
import pytest
from litestar.types import Middleware
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import make_url

from app.server.application import create_app
from app.settings import Settings

KEY = bytes(range(32)).hex()
ROOT_KEY = "example-root-key"

# Tests ask no model hub.
_SMALL: dict[str, Any] = {"workers": 1, "pool_size": 4, "allow_model_downloads": False}

Serve: TypeAlias = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@dataclass(frozen=True)
class RemoteIndex:
    """An index of one test, and the way to its routes."""

    client: httpx.AsyncClient
    key: str = KEY
    name: str = field(default_factory=lambda: f"index-{uuid.uuid4().hex}")

    async def post(self, route: str, **fields: Any) -> httpx.Response:
        body = {"index_name": self.name, "index_key": self.key, **fields}
        return await self.client.post(f"/v1/{route}", json=body)

    async def post_text(self, route: str, fields: str) -> httpx.Response:
        """Post what no JSON encoder would write: `fields` is pasted into the body."""
        body = f'{{"index_name":"{self.name}","index_key":"{self.key}",{fields}}}'
        return await self.post_bytes(route, body.encode())

    async def post_bytes(self, route: str, body: bytes) -> httpx.Response:
        return await self.client.post(
            f"/v1/{route}", content=body, headers={"Content-Type": "application/json"}
        )


@asynccontextmanager
async def serve(settings: Settings, *middleware: Middleware) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client of an application with `settings`; an exception in it is its 500."""
    app = create_app(settings, middleware)
    transport = httpx.ASGITransport(cast("Any", app), raise_app_exceptions=False)
    async with (
        app.lifespan(),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        yield client


@pytest.fixture(scope="module")
def module_dsn(server_dsn: str, template_dsn: str) -> Iterator[Callable[[], str]]:
    """Makes migrated databases that live as long as the module."""
    names: list[str] = []
    with closing(psycopg.connect(server_dsn, autocommit=True)) as admin:

        def clone() -> str:
            names.append(f"test_{uuid.uuid4().hex}")
            template = str(conninfo_to_dict(template_dsn)["dbname"])
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            admin.execute(statement.format(sql.Identifier(names[-1]), sql.Identifier(template)))
            return (
                make_url(template_dsn).set(database=names[-1]).render_as_string(hide_password=False)
            )

        yield clone
        for name in names:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="module")
def service(module_dsn: Callable[[], str]) -> Serve:
    """Starts an application on an empty database; its arguments are settings."""
    return lambda **values: serve(Settings(database_url=module_dsn(), **{**_SMALL, **values}))


@pytest.fixture(scope="module")
async def client(service: Serve) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application without a root key."""
    async with service() as client:
        yield client


@pytest.fixture(scope="module")
async def guarded_client(service: Serve) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application with a root key, which it does not send by itself."""
    async with service(root_key=ROOT_KEY) as client:
        yield client


@pytest.fixture
async def index(client: httpx.AsyncClient) -> RemoteIndex:
    """An empty index of three dimensions."""
    index = RemoteIndex(client)
    answer = await index.post("indexes/create", dimension=3)
    assert answer.status_code == 200, answer.text
    return index
