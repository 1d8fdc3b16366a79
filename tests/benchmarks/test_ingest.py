"""Vectors a second, with contents and metadata, from four clients, and the CPU time that each part
takes for it.
"""

import base64
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import senders
from tests.benchmarks.client import KEY, request
from tests.benchmarks.conftest import BATCH, Report, batched_rows, items, running_service
from tests.benchmarks.data import Data, generated
from tests.benchmarks.processes import Cpu
from tests.service.conftest import Service

N_CLIENTS = 4
N_STRETCHES = 6


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """A service that trains on request only, so that no training runs while the clock does."""
    with running_service(AUTO_TRAIN_DISABLED="true") as service:
        yield service


def upserts(dataset: Data, index_name: str, prefix: str, *, is_binary: bool) -> Iterator[bytes]:
    """The requests that store `dataset`."""
    index = {"index_name": index_name, "index_key": KEY}
    for rows in batched_rows(len(dataset.ids)):
        if is_binary:
            yield request(
                "vectors/upsert_binary", {**index, "batch": binary_batch(dataset, rows, prefix)}
            )
        else:
            yield request("vectors/upsert", {**index, "items": items(dataset, rows, prefix)})


def binary_batch(dataset: Data, rows: range, prefix: str) -> dict[str, Any]:
    part = slice(rows.start, rows.stop)
    return {
        "ids": [prefix + item_id for item_id in dataset.ids[part]],
        "vectors_b64": base64.b64encode(dataset.vectors[part].astype("<f4").tobytes()).decode(),
        "dimension": dataset.vectors.shape[1],
        "contents": dataset.texts[part],
        "metadata": dataset.metadata[part],
    }


def ingest(service: Service, requests: Iterator[bytes], path: Path) -> dict[str, Any]:
    """Send the requests from `N_CLIENTS` connections; return what came of it."""
    senders.write(path, requests)
    before = Cpu.of(service)
    sent = senders.send(service.port, path, N_CLIENTS)
    cpu = Cpu.of(service) - before
    n_requests = len(sent.answered_at)
    ends = [0.0, *sent.answered_at][:: n_requests // N_STRETCHES]
    n_items = BATCH * n_requests
    return {
        "per_second": n_items / sent.seconds,
        "per_second_in_stretches": [
            BATCH * (n_requests // N_STRETCHES) / (end - start) for start, end in pairwise(ends)
        ],
        "cpu_ms_per_1000": {
            "service": cpu.service / n_items * 1e6,
            "database": cpu.database / n_items * 1e6,
            "clients": sent.cpu_seconds / n_items * 1e6,
        },
    }


@pytest.mark.parametrize("is_binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("dimension", [384, 1536])
def test_ingest(
    service: Service,
    dataset: Data,
    report: Report,
    tmp_path: Path,
    dimension: int,
    *,
    is_binary: bool,
) -> None:
    stored = dataset if dimension == dataset.vectors.shape[1] else generated(20_000, dimension, 100)
    name = f"ingest_{dimension}_{'binary' if is_binary else 'json'}"
    index = {"index_name": name, "index_key": KEY}
    assert service.post("indexes/create", {**index, "metric": "cosine"}).status_code == 200
    path = tmp_path / "requests"
    untrained = ingest(service, upserts(stored, name, "", is_binary=is_binary), path)
    assert service.post("indexes/train", index).json()["status"] == "success"
    trained = ingest(service, upserts(stored, name, "more-", is_binary=is_binary), path)
    assert service.post("vectors/num_vectors", index).json() == {"result": 2 * len(stored.ids)}
    service.post("indexes/delete", index)
    report(
        name,
        {
            "data": stored.name,
            "n_items": len(stored.ids),
            "dimension": dimension,
            "format": "binary" if is_binary else "JSON",
            "n_clients": N_CLIENTS,
            "batch": BATCH,
            "untrained": untrained,
            "trained": trained,
        },
    )
