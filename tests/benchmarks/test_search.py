"""Encrypted search over HTTP against plaintext pgvector through psycopg: one PostgreSQL, one run,
in turn.
"""

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
AUTOMATIC = None
# Four times the automatic number for 60,000 items.
MANY_LISTS = 1_024

Search = Callable[[int], list[str]]


@pytest.fixture(scope="module")
def plain(trained: Service, dataset: Data) -> Iterator[psycopg.Connection[Any]]:
    """The same vectors in a table of their own, unencrypted."""
    connection = psycopg.connect(trained.dsn, autocommit=True)
    register_vector(connection)
    d = dataset.vectors.shape[1]
    connection.execute(f"CREATE TABLE plain (id text PRIMARY KEY, embedding vector({d}))")
    with connection.cursor().copy("COPY plain FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["text", "vector"])
        for item_id, vector in zip(dataset.ids, dataset.vectors, strict=True):
            copy.write_row((item_id, vector))
    connection.execute("SET maintenance_work_mem = '512MB'")
    yield connection
    connection.close()


def train(service: Service, n_lists: int | None) -> None:
    with Connection(service.port) as connection:
        connection.post(
            "indexes/train", {"index_name": INDEX, "index_key": KEY, "n_lists": n_lists}
        )


def lists_of(service: Service) -> int:
    n_lists: int = service.post("indexes/describe", {"index_name": INDEX, "index_key": KEY}).json()[
        "n_lists"
    ]
    return n_lists


def index_alike(plain: psycopg.Connection[Any], service: Service) -> int:
    """Give the plaintext table an ivfflat index with as many lists as ours has, and return their
    number.
    """
    n_lists = lists_of(service)
    plain.execute("DROP INDEX IF EXISTS plain_ivf")
    plain.execute(
        "CREATE INDEX plain_ivf ON plain USING ivfflat (embedding vector_cosine_ops) WITH "
        f"(lists = {n_lists})"
    )
    plain.execute("VACUUM ANALYZE plain")
    return n_lists


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
            {
                "index_name": INDEX,
                "index_key": KEY,
                "query_vectors": query.tolist(),
                "top_k": k,
                **options,
            },
        )
        for query in dataset.queries
    ]

    def search(position: int) -> list[str]:
        return [match["id"] for match in json.loads(connection.send(bodies[position]))["results"]]

    return search


def recall(search: Search, dataset: Data, k: int) -> float:
    return float(
        np.mean([dataset.recall(position, search(position), k) for position in range(N_FOR_RECALL)])
    )


def fewest_probes(
    plain: psycopg.Connection[Any], dataset: Data, k: int, wanted: float
) -> tuple[int, float]:
    """Set and return the smallest number of probes with which the plaintext index reaches `wanted`
    recall.
    """
    search = search_plain(plain, dataset, k)
    for n_probes in (
        1,
        2,
        4,
        6,
        8,
        10,
        12,
        14,
        16,
        20,
        24,
        28,
        32,
        40,
        48,
        56,
        64,
        80,
        96,
        128,
        256,
    ):
        plain.execute(f"SET ivfflat.probes = {n_probes}")
        if (reached := recall(search, dataset, k)) >= wanted:
            return n_probes, reached
    raise AssertionError("the plaintext index does not reach the recall")


def timed(search: Search, position: int) -> float:
    start = time.perf_counter()
    search(position)
    return time.perf_counter() - start


def beside_plain(
    service: Service, plain: psycopg.Connection[Any], dataset: Data
) -> list[dict[str, Any]]:
    """Measure both in turn, at the same recall with the same number of lists."""
    rows = []
    n_lists = index_alike(plain, service)
    for k in TARGETS:
        with Connection(service.port) as connection:
            ours = search_sealdex(connection, dataset, k)
            our_recall = recall(ours, dataset, k)
            n_probes, plain_recall = fewest_probes(plain, dataset, k, our_recall)
            theirs = search_plain(plain, dataset, k)
            times = [
                (timed(ours, position), timed(theirs, position)) for position in range(N_MEASURED)
            ]
        our_ms, plain_ms = (milliseconds(column) for column in zip(*times, strict=True))
        rows.append(
            {
                "top_k": k,
                "n_lists": n_lists,
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
    return rows


def test_latency_at_the_same_recall(
    trained: Service, plain: psycopg.Connection[Any], dataset: Data, report: Report
) -> None:
    # The index has trained itself at 10,001 items.
    rows = beside_plain(trained, plain, dataset)
    for wanted in (AUTOMATIC, MANY_LISTS):
        train(trained, wanted)
        rows += beside_plain(trained, plain, dataset)
    report("latency", {"data": dataset.name, "n_items": len(dataset.ids), "rows": rows})
    assert all(row["sealdex"]["recall"] >= TARGETS[row["top_k"]] for row in rows)


def test_throughput_by_clients(trained: Service, dataset: Data, report: Report) -> None:
    bodies = [
        request(
            "vectors/query",
            {"index_name": INDEX, "index_key": KEY, "query_vectors": query.tolist(), "top_k": 10},
        )
        for query in dataset.queries
    ]
    rows = []
    for wanted in (AUTOMATIC, MANY_LISTS):
        train(trained, wanted)
        n_lists = lists_of(trained)
        with Connection(trained.port) as connection:
            reached = recall(search_sealdex(connection, dataset, 10), dataset, 10)
        run_clients(trained.port, bodies, 4, 2)
        for n_clients in (1, 4, 8, 16):
            load = run_clients(trained.port, bodies, n_clients, LOAD_SECONDS)
            rows.append({"n_lists": n_lists, "recall": reached, **vars(load)})
    report("throughput", {"data": dataset.name, "rows": rows})
    assert all(row["recall"] >= TARGETS[10] for row in rows)


def test_recall_and_latency_by_target(trained: Service, dataset: Data, report: Report) -> None:
    train(trained, AUTOMATIC)
    rows = []
    with Connection(trained.port) as connection:
        for target in (0.80, 0.90, 0.95, 0.99):
            search = search_sealdex(connection, dataset, 10, target_recall=target)
            reached = recall(search, dataset, 10)
            p50_ms, p99_ms = milliseconds(
                [timed(search, position) for position in range(N_MEASURED)]
            )
            rows.append(
                {"target_recall": target, "recall": reached, "p50_ms": p50_ms, "p99_ms": p99_ms}
            )
    report("target_recall", {"data": dataset.name, "rows": rows})
