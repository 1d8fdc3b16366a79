"""Vectors a second, with contents and metadata, from four clients."""

import base64
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.client import KEY, Connection, request
from tests.benchmarks.conftest import BATCH, Report, batched_rows, items
from tests.benchmarks.data import Data, generated
from tests.service.conftest import Service, new_service

N_CLIENTS = 4


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """A service that trains on request only, so that no training runs while the clock does."""
    with tempfile.TemporaryDirectory(prefix="sealdex-bench-") as directory:
        service = new_service(Path(directory), AUTO_TRAIN_DISABLED="true")
        service.start()
        yield service
        service.stop()


def upserts(dataset: Data, index_name: str, prefix: str, *, is_binary: bool) -> list[bytes]:
    """The requests that store `dataset`, made before the clock starts."""
    index = {"index_name": index_name, "index_key": KEY}
    return [
        request("vectors/upsert_binary", {**index, "batch": binary_batch(dataset, rows, prefix)})
        if is_binary
        else request("vectors/upsert", {**index, "items": items(dataset, rows, prefix)})
        for rows in batched_rows(len(dataset.ids))
    ]


def binary_batch(dataset: Data, rows: range, prefix: str) -> dict[str, Any]:
    part = slice(rows.start, rows.stop)
    return {
        "ids": [prefix + item_id for item_id in dataset.ids[part]],
        "vectors_b64": base64.b64encode(dataset.vectors[part].astype("<f4").tobytes()).decode(),
        "dimension": dataset.vectors.shape[1],
        "contents": dataset.texts[part],
        "metadata": dataset.metadata[part],
    }


def ingest(service: Service, requests: list[bytes]) -> tuple[float, float]:
    """Send the requests from `N_CLIENTS` connections; return vectors/s overall and last third ÷ first third."""
    waiting = list(enumerate(requests))[::-1]
    done_at = [0.0] * len(requests)

    def work() -> None:
        with Connection(service.port) as connection:
            while waiting:
                number, data = waiting.pop()
                connection.send(data)
                done_at[number] = time.perf_counter()

    threads = [threading.Thread(target=work) for _ in range(N_CLIENTS)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ends = sorted(done_at)
    third = len(ends) // 3
    first, last = ends[third - 1] - start, ends[-1] - ends[-third - 1]
    return BATCH * len(requests) / (ends[-1] - start), first / last


@pytest.mark.parametrize("dimension", [384, 1536])
def test_ingest(service: Service, dataset: Data, report: Report, dimension: int) -> None:
    stored = dataset if dimension == dataset.vectors.shape[1] else generated(20_000, dimension, 100)
    rows = []
    for is_binary in (True, False):
        index = {"index_name": f"ingest-{dimension}-{is_binary}", "index_key": KEY}
        assert service.post("indexes/create", {**index, "metric": "cosine"}).status_code == 200
        untrained, flatness = ingest(service, upserts(stored, index["index_name"], "", is_binary=is_binary))
        assert service.post("indexes/train", index).json()["status"] == "success"
        trained, _ = ingest(service, upserts(stored, index["index_name"], "more-", is_binary=is_binary))
        assert service.post("vectors/num_vectors", index).json() == {"result": 2 * len(stored.ids)}
        service.post("indexes/delete", index)
        rows.append(
            {
                "format": "binary" if is_binary else "JSON",
                "per_second": untrained,
                "last_third_to_first": flatness,
                "per_second_trained": trained,
            }
        )
    report(f"ingest_{dimension}", {"data": stored.name, "n_clients": N_CLIENTS, "rows": rows})
