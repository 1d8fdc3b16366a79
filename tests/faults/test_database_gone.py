"""The database stops and comes back: clear answers meanwhile, and no restart of the service."""

import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import psycopg

from tests.faults.postgres import Postgres
from tests.locks import wait_until_blocked
from tests.service.conftest import Service

INDEX = {"index_name": "gone", "index_key": secrets.token_hex(32)}
ITEMS = [
    {"id": str(number), "vector": [number, 1], "metadata": {"a": number % 3}}
    for number in range(20)
]
POSTS: dict[str, dict[str, Any]] = {
    "indexes/create": {"index_name": "another", "dimension": 2},
    "indexes/describe": {},
    "indexes/stats": {},
    "indexes/train": {},
    "indexes/delete": {},
    "vectors/upsert": {"items": ITEMS},
    "vectors/query": {"query_vectors": [1, 2]},
    "vectors/get": {"ids": ["1"]},
    "vectors/delete": {"ids": ["1"]},
    "vectors/list_ids": {},
    "vectors/num_vectors": {"filters": {"a": 1}},
}
GETS = ["indexes/list", "indexes/training-status", "ready"]
# What an answer may take: nothing waits for a database that refuses.
_SOON_S = 9
_BACK_S = 30


@contextmanager
def crashed(postgres: Postgres) -> Iterator[None]:
    postgres.crash()
    try:
        yield
    finally:
        postgres.come_back()


def assert_unavailable(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.headers.get("Retry-After")) == (503, "1"), answer.text
    assert answer.json() == {"detail": "The database does not answer"}
    assert answer.elapsed.total_seconds() < _SOON_S


def wait_until_ready(service: Service) -> None:
    deadline = time.monotonic() + _BACK_S
    while service.get("ready").status_code != httpx.codes.OK:
        assert time.monotonic() < deadline, "the service does not find its database again"
        time.sleep(0.05)


def prepared(service: Service) -> None:
    service.post("indexes/delete", INDEX)
    for route, fields in (
        ("indexes/create", {"dimension": 2}),
        ("vectors/upsert", {"items": ITEMS}),
    ):
        assert service.post(route, {**INDEX, **fields}).status_code == 200


def test_without_its_database_every_route_says_so_and_with_it_all_is_well(
    running: Service, postgres: Postgres
) -> None:
    prepared(running)
    process = running.process
    with crashed(postgres):
        # Twice: the first meets connections that were cut, the second none.
        for _ in range(2):
            for route, fields in POSTS.items():
                assert_unavailable(running.post(route, {**INDEX, **fields}))
            for route in GETS:
                assert_unavailable(running.get(route))
        assert running.get("health").status_code == 200
        metrics = httpx.get(f"{running.url}/metrics")
        assert "sealdex_database_up 0.0" in metrics.text
    wait_until_ready(running)
    assert running.post("vectors/num_vectors", INDEX).json() == {"result": len(ITEMS)}
    found = running.post(
        "vectors/query", {**INDEX, "query_vectors": [3, 1], "top_k": 1, "filters": {"a": 0}}
    )
    assert found.json() == {"results": [{"id": "3"}]}
    assert running.post("vectors/upsert", {**INDEX, "items": ITEMS}).status_code == 200
    assert (running.process, process and process.poll()) == (process, None)


def test_a_request_in_work_is_told_when_the_database_stops_and_leaves_nothing(
    running: Service, postgres: Postgres
) -> None:
    prepared(running)
    more = [{"id": f"more {number}", "vector": [number, 2]} for number in range(20)]
    with psycopg.connect(postgres.dsn) as blocker, ThreadPoolExecutor(1) as pool:
        # The upsert waits for the counts, its items written and not committed.
        blocker.execute("LOCK TABLE item_counts IN ACCESS EXCLUSIVE MODE")
        upsert = pool.submit(running.post, "vectors/upsert", {**INDEX, "items": more})
        wait_until_blocked(postgres.dsn)
        with crashed(postgres):
            assert_refused(upsert.result(timeout=30))
        blocker.close()
    wait_until_ready(running)
    assert running.post("vectors/num_vectors", INDEX).json() == {"result": len(ITEMS)}
    assert set(running.post("vectors/list_ids", INDEX).json()["ids"]) == {
        item["id"] for item in ITEMS
    }
    assert running.post("vectors/upsert", {**INDEX, "items": more}).status_code == 200


def assert_refused(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()) == (503, {"detail": "The database does not answer"})
