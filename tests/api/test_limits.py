"""Limits, browsers, and headers that keep them out."""

import asyncio

import httpx
import pytest

from app.settings import Settings
from tests.api.conftest import ROOT_KEY, serve

ORIGIN = "https://app.example"


async def test_beyond_its_rate_a_key_is_told_to_wait_and_others_are_not(database_dsn: str) -> None:
    settings = Settings(
        database_url=database_dsn,
        pool_size=2,
        rate_limit_per_s=0.5,
        rate_limit_burst=3,
        root_key=ROOT_KEY,
    )
    async with serve(settings) as client, serve(settings) as other_worker:
        ask = [
            await one.get("/v1/indexes/list", headers={"X-API-Key": ROOT_KEY})
            for one in (client, other_worker, client, other_worker, client)
        ]
        assert [answer.status_code for answer in ask] == [200, 200, 200, 429, 429]
        assert ask[-1].headers["Retry-After"] == "2"
        assert ask[-1].json() == {"detail": "too many requests for this key; try again later"}
        # A wrong key is refused as such and uses up nothing.
        assert (
            await client.get("/v1/indexes/list", headers={"X-API-Key": "wrong"})
        ).status_code == 401


async def test_a_rate_is_reached_but_not_passed(database_dsn: str) -> None:
    settings = Settings(
        database_url=database_dsn, pool_size=2, rate_limit_per_s=100, rate_limit_burst=20
    )
    async with serve(settings) as client:
        loop = asyncio.get_running_loop()
        start, n_good = loop.time(), 0
        while loop.time() < start + 1:
            n_good += (await client.get("/v1/indexes/list")).status_code == 200
        duration = loop.time() - start
        assert n_good <= 20 + 100 * duration + 10


async def test_without_a_limit_nothing_is_counted(client: httpx.AsyncClient) -> None:
    assert {(await client.get("/v1/indexes/list")).status_code for _ in range(150)} == {200}


@pytest.mark.parametrize("path", ["/v1/health", "/v1/nope", "/v1/indexes/list", "/metrics"])
async def test_every_answer_keeps_browsers_and_caches_out(
    client: httpx.AsyncClient, path: str
) -> None:
    headers = (await client.get(path, headers={"Origin": ORIGIN})).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "Strict-Transport-Security" not in headers
    assert not [name for name in headers if name.lower().startswith("access-control-")]


async def test_pages_of_the_origins_in_the_settings_may_call(database_dsn: str) -> None:
    settings = Settings(database_url=database_dsn, cors_origins=f"{ORIGIN}, https://other.example")
    async with serve(settings) as client:
        preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
        answer = await client.options("/v1/vectors/query", headers=preflight)
        assert answer.status_code == 204
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "X-API-Key".lower() in answer.headers["Access-Control-Allow-Headers"].lower()
        answer = await client.get("/v1/indexes/list", headers={"Origin": "https://evil.example"})
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert (await client.options("/v1/vectors/query")).status_code == 405
