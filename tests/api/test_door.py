"""Who is let in, at what cost, and what the audit log says of those who are not."""

import asyncio
import logging
from typing import Any, cast

import httpx
import psycopg
import pytest
from sqlalchemy import event

from app.api import items
from app.settings import Settings
from tests.api.conftest import KEY, ROOT_KEY, serve

ROOT = {"X-API-Key": ROOT_KEY}
INDEX = {"index_name": "guarded", "index_key": KEY}


def settings_on(dsn: str, **values: Any) -> Settings:
    return Settings(database_url=dsn, pool_size=2, root_key=ROOT_KEY, **values)


async def new_reader(client: httpx.AsyncClient) -> tuple[str, str]:
    """Return id and API key of a user that may read."""
    await client.post("/v1/indexes/create", json={**INDEX, "dimension": 2}, headers=ROOT)
    body = {"permissions": ["read"], "index_key": KEY}
    user = (await client.post("/v1/indexes/guarded/users", json=body, headers=ROOT)).json()
    return user["user_id"], user["api_key"]


class Statements:
    """Counts the statements that an application sends."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        services = cast("Any", client)._transport.app.state.services
        self.n = 0
        engine = services.operations._engine.sync_engine
        event.listen(engine, "before_cursor_execute", self._count)

    def _count(self, *_: object) -> None:
        self.n += 1


async def test_a_revoked_user_is_refused_before_its_body_and_soon_without_a_statement(
    database_dsn: str,
) -> None:
    async def endless() -> Any:
        while True:
            yield b"[" * 1_000
            await asyncio.sleep(0)

    async with serve(settings_on(database_dsn)) as client:
        user_id, api_key = await new_reader(client)
        headers = {"X-API-Key": api_key, "Content-Type": "application/json"}
        assert (await client.post("/v1/vectors/num_vectors", json=INDEX, headers=headers)).json()
        gone = f"/v1/indexes/guarded/users/{user_id}"
        assert (await client.delete(gone, headers={**ROOT, "X-Index-Key": KEY})).status_code == 204
        assert (
            await client.post("/v1/vectors/num_vectors", json=INDEX, headers=headers)
        ).status_code == 403
        statements = Statements(client)
        async with asyncio.timeout(30):
            for _ in range(5):
                answer = await client.post("/v1/vectors/query", content=endless(), headers=headers)
                assert answer.status_code == 403
        assert statements.n == 0


async def test_looking_whether_the_service_is_ready_costs_one_look_a_second(
    database_dsn: str,
) -> None:
    async with serve(settings_on(database_dsn, metrics_open=True)) as client:
        operations = cast("Any", client)._transport.app.state.services.operations
        statements = Statements(client)
        for path, look in (
            ("/v1/ready", operations._check_ready),
            ("/metrics", operations._index_figures),
        ):
            await look()
            once, statements.n = statements.n, 0
            answers = await asyncio.gather(*(client.get(path) for _ in range(100)))
            assert {answer.status_code for answer in answers} == {200}
            # The second is over in the middle of them at most once.
            assert 0 < statements.n <= 2 * once
            statements.n = 0


async def test_refused_requests_cost_no_statement_while_the_refusal_holds(
    database_dsn: str,
) -> None:
    settings = settings_on(database_dsn, rate_limit_per_s=0.1, rate_limit_burst=1)
    async with serve(settings) as client:
        asked = [await client.get("/v1/indexes/list", headers=ROOT) for _ in range(2)]
        assert [answer.status_code for answer in asked] == [200, 429]
        statements = Statements(client)
        for _ in range(20):
            answer = await client.get("/v1/indexes/list", headers=ROOT)
            assert answer.status_code == 429
        assert statements.n == 0


def recorded(dsn: str) -> list[tuple[str, str, str | None, str]]:
    with psycopg.connect(dsn) as database:
        return database.execute(
            "SELECT split_part(caller, ' ', 1), operation, index_name, outcome FROM audit_log"
            " ORDER BY recorded_at, position"
        ).fetchall()


async def test_the_audit_log_has_who_was_refused_at_the_door_and_who_read_lists(
    database_dsn: str,
) -> None:
    async with serve(settings_on(database_dsn, audit_reads=True)) as client:
        _, api_key = await new_reader(client)
        user = {"X-API-Key": api_key}
        before = len(recorded(database_dsn))
        await client.get("/v1/indexes/list")
        await client.post("/v1/vectors/query", json=INDEX, headers={"X-API-Key": "wrong"})
        await client.post("/v1/indexes/delete", json=INDEX, headers=user)
        await client.post("/v1/vectors/query", json={"index_name": 5}, headers=ROOT)
        await client.post("/v1/indexes/describe", json={}, headers=ROOT)
        await client.get("/v1/indexes/list", headers=user)
        await client.get("/v1/indexes/guarded/users", headers={**ROOT, "X-Index-Key": KEY})
        await client.post("/v1/vectors/num_vectors", json=INDEX, headers=user)
        wrong = {**INDEX, "index_name": "x" * 5_000}
        await client.post("/v1/vectors/num_vectors", json=wrong, headers=ROOT)
    assert sorted(recorded(database_dsn)[before:]) == sorted(
        [
            ("unknown", "list", None, "refused"),
            ("unknown", "query", None, "refused"),
            ("user", "delete", None, "refused"),
            ("root", "query", None, "refused"),
            ("root", "describe", None, "refused"),
            ("user", "list", None, "done"),
            ("root", "list_users", "guarded", "done"),
            ("user", "num_vectors", "guarded", "done"),
            ("root", "num_vectors", "x" * 255, "failed"),
        ]
    )


async def test_a_read_is_recorded_whatever_its_function_is_called(
    database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for handler in (items.get_items, items.query):
        monkeypatch.setattr(handler.fn, "__name__", "renamed")
        monkeypatch.setattr(handler.fn, "__qualname__", "renamed")
    async with serve(settings_on(database_dsn, audit_reads=True)) as client:
        await new_reader(client)
        await client.post("/v1/vectors/get", json={**INDEX, "ids": ["a"]}, headers=ROOT)
    assert recorded(database_dsn)[-1] == ("root", "get_items", "guarded", "done")


async def test_who_is_refused_without_a_key_does_not_fill_the_audit_log(database_dsn: str) -> None:
    settings = settings_on(database_dsn, audit_reads=True, max_audited_refusals=3)
    async with serve(settings) as client:
        for _ in range(20):
            await client.get("/v1/indexes/list")
        assert len(recorded(database_dsn)) == 3
        trail = cast("Any", client)._transport.app.state.services.trail
        # A minute later.
        trail._ends_at = 0.0
        await client.get("/v1/indexes/list")
    with psycopg.connect(database_dsn) as database:
        rows = database.execute("SELECT caller, n_items FROM audit_log ORDER BY recorded_at")
        assert rows.fetchall()[3:] == [("many", 17), ("unknown", None)]


async def test_failures_are_logged_so_often_and_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = Settings(database_url="postgresql://nobody@127.0.0.1:1/x", max_logged_failures=3)
    from app.server.application import create_app  # noqa: PLC0415 - its logging is set up here

    app = create_app(settings)
    logging.getLogger().addHandler(caplog.handler)
    try:
        transport = httpx.ASGITransport(cast("Any", app), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for _ in range(10):
                # Without its lifespan the application has no services.
                assert (await client.get("/v1/ready")).status_code == 500
    finally:
        logging.getLogger().removeHandler(caplog.handler)
    failures = [record for record in caplog.records if "failed" in record.getMessage()]
    assert len(failures) == 3


@pytest.mark.parametrize("name", ["a%1Fb", "a%1fb"])
async def test_a_stand_in_for_a_slash_is_no_slash(
    guarded_client: httpx.AsyncClient, name: str
) -> None:
    body = {"index_name": "a/b", "index_key": KEY}
    await guarded_client.post("/v1/indexes/create", json=body, headers=ROOT)
    headers = {**ROOT, "X-Index-Key": KEY}
    found = await guarded_client.get("/v1/indexes/a%2Fb/users", headers=headers)
    assert found.status_code == 200
    answer = await guarded_client.get(f"/v1/indexes/{name}/users", headers=headers)
    assert answer.status_code == 404
