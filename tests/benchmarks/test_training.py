"""What a training takes: time, memory, and the patience of the queries that go on meanwhile."""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from app.domain import Matrix
from tests.benchmarks.client import KEY, Connection, milliseconds, request
from tests.benchmarks.conftest import BATCH, Report, batched_rows, items
from tests.benchmarks.data import N_TRUE, Data
from tests.service.conftest import Service, new_service

NAME = {"index_name": "training", "index_key": KEY}
MAX_MEMORY_MB = 1_500
N_QUERIES = 300
# Between two queries of the load that a training is measured under.
THINK_S = 0.02


@pytest.fixture(scope="module")
def untrained() -> Iterator[Service]:
    """A service that trains on request only."""
    with tempfile.TemporaryDirectory(prefix="sealdex-bench-") as directory:
        service = new_service(Path(directory), AUTO_TRAIN_DISABLED="true")
        service.start()
        yield service
        service.stop()


def test_training_of_the_data_set(untrained: Service, dataset: Data, report: Report) -> None:
    bodies = [
        request("vectors/query", {**NAME, "query_vectors": query.tolist(), "top_k": 10})
        for query in dataset.queries
    ]
    with Connection(untrained.port) as connection:
        connection.post("indexes/create", {**NAME, "metric": "cosine"})
        for rows in batched_rows(len(dataset.ids)):
            connection.post("vectors/upsert", {**NAME, "items": items(dataset, rows)})
        answers: list[dict[str, Any]] = []
        for mode in ("first, alone", "again, with queries"):
            before = latencies(connection, bodies)
            with (
                peak_memory(untrained) as peak,
                load(untrained, bodies, is_on="queries" in mode) as during,
            ):
                start = time.perf_counter()
                assert connection.post("indexes/train", NAME)["status"] == "success"
                seconds = time.perf_counter() - start
            answers.append(
                {
                    "training": mode,
                    "seconds": seconds,
                    "peak_mb": peak(),
                    "p99_ms_before": milliseconds(before)[1],
                    "p99_ms_during": milliseconds(during)[1] if during else None,
                }
            )
        recalls = {k: recall(connection, NAME, dataset, k) for k in (10, 100)}
    report(
        "training",
        {"data": dataset.name, "n_items": len(dataset.ids), "rows": answers, "recall": recalls},
    )
    assert max(answer["peak_mb"] for answer in answers) <= MAX_MEMORY_MB
    assert recalls[10] >= 0.95
    assert recalls[100] >= 0.93


@pytest.mark.parametrize(
    ("metric", "n", "d"),
    [("euclidean", 60_000, 384), ("cosine", 11_000, 3_072), ("euclidean", 20_000, 4)],
)
def test_recall_after_upserts_alone(
    bench_service: Service, dataset: Data, report: Report, metric: str, n: int, d: int
) -> None:
    vectors, queries = real_with_norms(dataset) if d == dataset.vectors.shape[1] else clusters(n, d)
    name = {"index_name": f"{metric}-{d}", "index_key": KEY}
    with Connection(bench_service.port) as connection:
        connection.post("indexes/create", {**name, "metric": metric})
        triggers = []
        for start in range(0, len(vectors), BATCH):
            rows = range(start, min(start + BATCH, len(vectors)))
            batch = [{"id": str(row), "vector": vectors[row].tolist()} for row in rows]
            triggers.append(
                connection.post("vectors/upsert", {**name, "items": batch}).get(
                    "training_triggered"
                )
            )
        assert True in triggers
        wait(bench_service)
        description = connection.post("indexes/describe", name)
        truth = nearest(metric, vectors, queries)
        found = {
            k: float(
                np.mean(
                    [
                        share(connection, name, query, true[:k])
                        for query, true in zip(queries, truth, strict=True)
                    ]
                )
            )
            for k in (10, 100)
        }
    report(
        f"recall-{metric}-{d}",
        {"n_items": len(vectors), "n_lists": description["n_lists"], "recall": found},
    )
    assert description["is_trained"]
    assert found[10] >= 0.95
    assert found[100] >= 0.93


def test_openai_embeddings_keep_their_order(bench_service: Service, report: Report) -> None:
    vectors = ada_002()
    name = {"index_name": "ada-002", "index_key": KEY}
    truth = nearest("cosine", vectors, vectors)
    with Connection(bench_service.port) as connection:
        connection.post("indexes/create", {**name, "metric": "cosine"})
        batch = [{"id": str(row), "vector": vector.tolist()} for row, vector in enumerate(vectors)]
        connection.post("vectors/upsert", {**name, "items": batch})
        for row, (vector, true) in enumerate(zip(vectors, truth, strict=True)):
            body = {**name, "query_vectors": vector.tolist(), "top_k": 50, "include": ["distance"]}
            results = connection.post("vectors/query", body)["results"]
            assert results[0] == {"id": str(row), "distance": 0}
            similarity = (vectors[true[:50]] @ vector) / np.linalg.norm(vectors[true[:50]], axis=1)
            expected = 1 - similarity / np.linalg.norm(vector)
            assert [result["distance"] for result in results] == pytest.approx(
                expected.tolist(), abs=1e-5
            )
    report("ada-002", {"n_items": len(vectors), "order": "exact"})


def ada_002() -> Matrix:
    """Return the embeddings that `SEALDEX_BENCH_OPENAI` names, the first 163 rows of which are by
    ada-002.
    """
    directory = os.environ.get("SEALDEX_BENCH_OPENAI")
    if directory is None:
        rng = np.random.default_rng(3)
        # A strong mean direction, as that model's embeddings have.
        rows = rng.standard_normal((163, 1536)) + 2 * rng.standard_normal(1536)
        generated: Matrix = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        return generated
    vectors: Matrix = np.load(Path(directory) / "vectors.f32.npy")[:163]
    return vectors


def real_with_norms(dataset: Data) -> tuple[Matrix, Matrix]:
    rng = np.random.default_rng(5)
    vectors = dataset.vectors * rng.uniform(0.5, 2, (len(dataset.vectors), 1)).astype(np.float32)
    return vectors, dataset.queries[:N_QUERIES] * rng.uniform(0.5, 2, (N_QUERIES, 1)).astype(
        np.float32
    )


def clusters(n: int, d: int) -> tuple[Matrix, Matrix]:
    rng = np.random.default_rng(6)
    centres = rng.standard_normal((200, d))

    def around(count: int) -> Matrix:
        return (
            centres[rng.integers(200, size=count)] + 0.5 * rng.standard_normal((count, d))
        ).astype(np.float32)

    return around(n), around(N_QUERIES)


def nearest(metric: str, vectors: Matrix, queries: Matrix) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Return the rows of the nearest `vectors` to each query, nearest first, at most `N_TRUE`."""
    rows, wanted = vectors.astype(np.float64), queries.astype(np.float64)
    if metric == "cosine":
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    return np.argsort((rows**2).sum(axis=1) - 2 * wanted @ rows.T, axis=1)[:, :N_TRUE]


def share(connection: Connection, name: dict[str, str], query: Matrix, true: Any) -> float:
    body = {**name, "query_vectors": query.tolist(), "top_k": len(true)}
    found = {int(result["id"]) for result in connection.post("vectors/query", body)["results"]}
    return len(found.intersection(true.tolist())) / len(true)


def recall(connection: Connection, name: dict[str, str], dataset: Data, k: int) -> float:
    shares = []
    for position, query in enumerate(dataset.queries):
        results = connection.post(
            "vectors/query", {**name, "query_vectors": query.tolist(), "top_k": k}
        )["results"]
        shares.append(dataset.recall(position, [result["id"] for result in results], k))
    return float(np.mean(shares))


def latencies(connection: Connection, bodies: list[bytes]) -> list[float]:
    taken = []
    for body in bodies[:N_QUERIES]:
        start = time.perf_counter()
        connection.send(body)
        taken.append(time.perf_counter() - start)
        time.sleep(THINK_S)
    return taken


@contextmanager
def load(service: Service, bodies: list[bytes], *, is_on: bool) -> Iterator[list[float]]:
    """Send queries while the block runs, if `is_on`; the list fills with their latencies in
    seconds.
    """
    is_over = threading.Event()
    taken: list[float] = []

    def work() -> None:
        with Connection(service.port) as connection:
            while not is_over.is_set():
                taken.extend(latencies(connection, [bodies[len(taken) % len(bodies)]]))

    thread = threading.Thread(target=work)
    if is_on:
        thread.start()
    yield taken
    is_over.set()
    if is_on:
        thread.join()


@contextmanager
def peak_memory(service: Service) -> Iterator[Callable[[], float]]:
    """Give a function that returns the most memory that service and database took together in the
    block, in MB.
    """
    is_over = threading.Event()
    peaks = [0.0]

    def work() -> None:
        while not is_over.wait(0.1):
            peaks.append(memory_mb(service))

    thread = threading.Thread(target=work)
    thread.start()
    yield lambda: max(peaks)
    is_over.set()
    thread.join()


def memory_mb(service: Service) -> float:
    """Return the memory of all processes, counting what they share once (proportional set size)."""
    assert service.process is not None
    postmaster = int((service.data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0])
    n_bytes = 0
    for root in (service.process.pid, postmaster):
        for process in (psutil.Process(root), *psutil.Process(root).children(recursive=True)):
            try:
                n_bytes += process.memory_full_info().pss
            except psutil.NoSuchProcess:
                continue
    return n_bytes / 1e6


def wait(service: Service) -> None:
    while service.get("indexes/training-status").json()["training_indexes"]:
        time.sleep(0.1)
