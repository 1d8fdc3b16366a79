"""Encrypted search over HTTP against plaintext pgvector through psycopg: one PostgreSQL, one run, in turn."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from pgvector.psycopg import register_vector

from tests.benchmarks.client import KEY, Connection, milliseconds, request, run_clients
from tests.benchmarks.conftest import INDEX, Report
from tests.benchmarks.data import Data
from tests.service.conftest import Service

TARGETS = {10: 0.95, 100: 0.93}
N_MEASURED = 400
N_FOR_RECALL = 300
LOAD_SECONDS = 10

Search = Callable[[int], list[str]]


@pytest.fixture(scope="module")
def plain(trained: Service, dataset: Data) -> Iterator[psycopg.Connection[Any]]:
    """The same vectors in a table of their own, with as many IVF lists, unencrypted."""
    connection = psycopg.connect(trained.dsn, autocommit=True)
    register_vector(connection)
    d = dataset.vectors.shape[1]
    connection.execute(f"CREATE TABLE plain (id text PRIMARY KEY, embedding vector({d}))")
    with connection.cursor().copy("COPY plain FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["text", "vector"])
        for item_id, vector in zip(dataset.ids, dataset.vectors, strict=True):
            copy.write_row((item_id, vector))
    n_lists = trained.post("indexes/describe", {"index_name": INDEX, "index_key": KEY}).json()["n_lists"]
    connection.execute("SET maintenance_work_mem = '512MB'")
    connection.execute(f"CREATE INDEX ON plain USING ivfflat (embedding vector_cosine_ops) WITH (lists = {n_lists})")
    connection.execute("VACUUM ANALYZE plain")
    yield connection
    connection.close()


def search_plain(plain: psycopg.Connection[Any], dataset: Data, k: int) -> Search:
    cursor = plain.cursor(binary=True)
    statement = f"SELECT id FROM plain ORDER BY embedding <=> %s LIMIT {k}"

    def search(position: int) -> list[str]:
        cursor.execute(statement, (dataset.queries[position],), prepare=True)
        return [row[0] for row in cursor.fetchall()]

    return search


def search_sealdex(connection: Connection, dataset: Data, k: int, **options: Any) -> Search:
    bodies = [
        request(
            "vectors/query",
            {"index_name": INDEX, "index_key": KEY, "query_vectors": query.tolist(), "top_k": k, **options},
        )
        for query in dataset.queries
    ]

    def search(position: int) -> list[str]:
        return [match["id"] for match in json.loads(connection.send(bodies[position]))["results"]]

    return search


def recall(search: Search, dataset: Data, k: int) -> float:
    return float(np.mean([dataset.recall(position, search(position), k) for position in range(N_FOR_RECALL)]))


def fewest_probes(plain: psycopg.Connection[Any], dataset: Data, k: int, wanted: float) -> tuple[int, float]:
    """Set and return the smallest number of probes with which the plaintext index reaches `wanted` recall."""
    search = search_plain(plain, dataset, k)
    for n_probes in (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256):
        plain.execute(f"SET ivfflat.probes = {n_probes}")
        if (reached := recall(search, dataset, k)) >= wanted:
            return n_probes, reached
    raise AssertionError("the plaintext index does not reach the recall")


def timed(search: Search, position: int) -> float:
    start = time.perf_counter()
    search(position)
    return time.perf_counter() - start


def test_latency_at_the_same_recall(
    trained: Service, plain: psycopg.Connection[Any], dataset: Data, report: Report
) -> None:
    rows = []
    for k, target in TARGETS.items():
        with Connection(trained.port) as connection:
            ours = search_sealdex(connection, dataset, k)
            our_recall = recall(ours, dataset, k)
            n_probes, plain_recall = fewest_probes(plain, dataset, k, our_recall)
            theirs = search_plain(plain, dataset, k)
            times = [(timed(ours, position), timed(theirs, position)) for position in range(N_MEASURED)]
        our_ms, plain_ms = (milliseconds(column) for column in zip(*times, strict=True))
        rows.append(
            {
                "top_k": k,
                "sealdex": {"recall": our_recall, "p50_ms": our_ms[0], "p99_ms": our_ms[1]},
                "pgvector": {
                    "recall": plain_recall,
                    "n_probes": n_probes,
                    "p50_ms": plain_ms[0],
                    "p99_ms": plain_ms[1],
                },
                "p50_ratio": our_ms[0] / plain_ms[0],
            }
        )
        assert our_recall >= target
    report("latency", {"data": dataset.name, "n_items": len(dataset.ids), "rows": rows})


def test_throughput_by_clients(trained: Service, dataset: Data, report: Report) -> None:
    bodies = [
        request("vectors/query", {"index_name": INDEX, "index_key": KEY, "query_vectors": query.tolist(), "top_k": 10})
        for query in dataset.queries
    ]
    run_clients(trained.port, bodies, 4, 2)
    loads = [run_clients(trained.port, bodies, n_clients, LOAD_SECONDS) for n_clients in (1, 4, 8, 16)]
    with Connection(trained.port) as connection:
        reached = recall(search_sealdex(connection, dataset, 10), dataset, 10)
    report("throughput", {"data": dataset.name, "recall": reached, "rows": [vars(load) for load in loads]})
    assert reached >= TARGETS[10]


def test_recall_and_latency_by_target(trained: Service, dataset: Data, report: Report) -> None:
    rows = []
    with Connection(trained.port) as connection:
        for target in (0.80, 0.90, 0.95, 0.99):
            search = search_sealdex(connection, dataset, 10, target_recall=target)
            reached = recall(search, dataset, 10)
            p50_ms, p99_ms = milliseconds([timed(search, position) for position in range(N_MEASURED)])
            rows.append({"target_recall": target, "recall": reached, "p50_ms": p50_ms, "p99_ms": p99_ms})
    report("target_recall", {"data": dataset.name, "rows": rows})
