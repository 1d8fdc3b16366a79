"""A scrape after a load run: all workers in it, and stages that explain where the time of a request
goes.
"""

import secrets
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.service.conftest import Service, new_service

INDEX = {"index_name": "load", "index_key": secrets.token_hex(32)}
DIMENSION = 384
N_ITEMS = 3000
N_QUERIES = 200


@pytest.fixture(scope="module")
def measured() -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="sealdex-test-") as directory:
        service = new_service(Path(directory), SEALDEX_WORKERS="2")
        service.start()
        yield service
        service.stop()


def scrape(service: Service) -> dict[tuple[str, str], float]:
    text = httpx.get(f"{service.url}/metrics", timeout=60).text
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_scrape_after_a_load_run_accounts_for_the_time_of_the_requests(measured: Service) -> None:
    vectors = np.random.default_rng(1).standard_normal((N_ITEMS, DIMENSION)).tolist()
    assert measured.post("indexes/create", {**INDEX, "dimension": DIMENSION}).status_code == 200
    for start in range(0, N_ITEMS, 1000):
        items = [{"id": str(row), "vector": vectors[row]} for row in range(start, start + 1000)]
        assert measured.post("vectors/upsert", {**INDEX, "items": items}).status_code == 200
    # Workers that have just started compile and connect, which says nothing of how they run.
    run_queries(measured, vectors[:50])
    before = scrape(measured)
    run_queries(measured, vectors[:N_QUERIES])
    after = scrape(measured)
    grown = {key: value - before.get(key, 0) for key, value in after.items()}
    query = ("sealdex_requests_total", "/v1/vectors/query,200")
    assert grown[query] == N_QUERIES
    assert grown["sealdex_request_duration_seconds_count", "/v1/vectors/query"] == N_QUERIES
    stages = {
        name: value
        for (family, name), value in grown.items()
        if family == "sealdex_stage_duration_seconds_sum"
    }
    requests_s = sum(
        value
        for (family, _), value in grown.items()
        if family == "sealdex_request_duration_seconds_sum"
    )
    shares = {name: round(value / requests_s, 4) for name, value in stages.items()}
    other = stages.pop("other")
    assert sum(stages.values()) + other == pytest.approx(requests_s, rel=1e-3)
    assert sum(stages.values()) >= 0.9 * requests_s, shares


def run_queries(service: Service, vectors: list[list[float]]) -> None:
    def query(vector: list[float]) -> int:
        body = {**INDEX, "query_vectors": vector, "top_k": 10}
        return client.post(f"{service.url}/v1/vectors/query", json=body).status_code

    with httpx.Client(timeout=60) as client, ThreadPoolExecutor(2) as pool:
        assert set(pool.map(query, vectors)) == {200}


def test_every_worker_answers_for_all(measured: Service) -> None:
    def ask(_: int) -> int:
        return httpx.get(f"{measured.url}/v1/health").status_code

    health = ("sealdex_requests_total", "/v1/health,200")
    before = scrape(measured)[health]
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(80))) == {200}
    assert {scrape(measured)[health] - before for _ in range(8)} == {80}
    assert scrape(measured)["sealdex_pool_connections_max", ""] == 16
