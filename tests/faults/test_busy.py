"""Every connection is taken, or a statement takes too long: 503 in time, and then all is well."""

import asyncio

import httpx
import psycopg
import pytest

from tests.api.conftest import RemoteIndex, serve
from tests.faults.conftest import settings_on
from tests.faults.postgres import Postgres
from tests.locks import wait_until_blocked

ITEM = {"id": "a", "vector": [1, 2]}
PATIENCE_S = 1.0


async def new_index(client: httpx.AsyncClient) -> RemoteIndex:
    index = RemoteIndex(client)
    assert (await index.post("indexes/create", dimension=2)).status_code == 200
    assert (await index.post("vectors/upsert", items=[ITEM])).status_code == 200
    assert (await index.post("vectors/query", query_vectors=[1, 2])).status_code == 200
    return index


async def lock(blocker: psycopg.AsyncConnection, table: str) -> None:
    """Keep everybody from `table` until the transaction of `blocker` ends."""
    await blocker.execute(
        psycopg.sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(
            psycopg.sql.Identifier(table)
        )
    )


@pytest.mark.parametrize(
    ("table", "route", "fields"),
    [
        ("item_counts", "vectors/upsert", {"items": [ITEM]}),
        ("indexes", "vectors/query", {"query_vectors": [1, 2]}),
    ],
    ids=["connections", "search connections"],
)
async def test_who_finds_every_connection_taken_is_told_to_come_back(
    postgres: Postgres, table: str, route: str, fields: dict[str, object]
) -> None:
    settings = settings_on(postgres.dsn, pool_size=1, pool_timeout_s=PATIENCE_S)
    async with (
        serve(settings) as client,
        await psycopg.AsyncConnection.connect(postgres.dsn) as blocker,
    ):
        index = await new_index(client)
        await lock(blocker, table)
        first = asyncio.create_task(index.post(route, **fields))
        await asyncio.to_thread(wait_until_blocked, postgres.dsn)
        refused = await asyncio.gather(*(index.post(route, **fields) for _ in range(5)))
        assert {(answer.status_code, answer.headers.get("Retry-After")) for answer in refused} == {
            (503, "1")
        }
        assert all("busy; try again later" in answer.json()["detail"] for answer in refused)
        assert not first.done()
        assert (await client.get("/v1/health")).status_code == 200
        await blocker.rollback()
        assert (await first).status_code == 200
        assert (await index.post(route, **fields)).status_code == 200
        assert (await index.post("vectors/num_vectors")).json() == {"result": 1}


async def test_a_statement_that_takes_too_long_is_given_up_and_changes_nothing(
    postgres: Postgres,
) -> None:
    settings = settings_on(postgres.dsn, statement_timeout_ms=700)
    async with (
        serve(settings) as client,
        await psycopg.AsyncConnection.connect(postgres.dsn) as blocker,
    ):
        index = await new_index(client)
        for table, route, fields in (
            ("item_counts", "vectors/upsert", {"items": [{**ITEM, "id": "b"}]}),
            ("item_counts", "vectors/delete", {"ids": ["a"]}),
            ("indexes", "vectors/query", {"query_vectors": [1, 2]}),
            ("indexes", "vectors/query", {"query_vectors": [1, 2], "filters": {"a": 1}}),
            ("indexes", "vectors/list_ids", {}),
        ):
            await lock(blocker, table)
            answer = await index.post(route, **fields)
            assert (answer.status_code, answer.headers.get("Retry-After")) == (503, "1"), (
                answer.text
            )
            assert answer.json() == {"detail": "The database took too long to answer"}
            await blocker.rollback()
        assert (await index.post("vectors/list_ids")).json() == {"ids": ["a"], "count": 1}
        assert (await index.post("vectors/num_vectors")).json() == {"result": 1}
