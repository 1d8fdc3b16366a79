"""The service under measurement, with real data in a trained index, and where the figures go."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import data
from tests.benchmarks.client import KEY, Connection
from tests.service.conftest import Service, new_service

INDEX = "benchmark"
BATCH = 1_000
_TRAINING_PATIENCE_S = 600

Report = Callable[[str, Any], None]


@pytest.fixture(scope="session")
def report() -> Report:
    """Print a result, and keep it where `plot.py` finds it."""
    directory = Path(os.environ.get("SEALDEX_BENCH_RESULTS", "docs/benchmarks"))

    def write(name: str, result: Any) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result, indent=1)
        (directory / f"{name}.json").write_text(text + "\n")
        print(f"\n{name}\n{text}")

    return write


@pytest.fixture(scope="session")
def dataset() -> data.Data:
    return data.load()


@contextmanager
def running_service(**environment: str) -> Iterator[Service]:
    """Run a service in a directory of its own until the block ends."""
    with tempfile.TemporaryDirectory(prefix="sealdex-bench-") as directory:
        service = new_service(Path(directory), **environment)
        service.start()
        yield service
        service.stop()


@pytest.fixture(scope="session")
def bench_service() -> Iterator[Service]:
    """A service of its own: nothing else must be in its database."""
    with running_service() as service:
        yield service


@pytest.fixture(scope="session")
def trained(bench_service: Service, dataset: data.Data) -> Service:
    """A service whose index holds the data set, trained by the upserts alone."""
    with Connection(bench_service.port) as connection:
        index = {"index_name": INDEX, "index_key": KEY}
        connection.post("indexes/create", {**index, "metric": "cosine"})
        for rows in batched_rows(len(dataset.ids)):
            connection.post("vectors/upsert", {**index, "items": items(dataset, rows)})
        wait_for_training(bench_service)
    return bench_service


def batched_rows(n: int) -> Iterator[range]:
    for start in range(0, n, BATCH):
        yield range(start, min(start + BATCH, n))


def items(dataset: data.Data, rows: range, prefix: str = "") -> list[dict[str, Any]]:
    return [
        {
            "id": prefix + dataset.ids[row],
            "vector": dataset.vectors[row].tolist(),
            "contents": dataset.texts[row],
            "metadata": dataset.metadata[row],
        }
        for row in rows
    ]


def wait_for_training(service: Service, index_name: str = INDEX) -> None:
    """Return when the index is trained and no training is under way."""
    index = {"index_name": index_name, "index_key": KEY}
    deadline = time.monotonic() + _TRAINING_PATIENCE_S
    while time.monotonic() < deadline:
        is_trained = service.post("indexes/describe", index).json()["is_trained"]
        if is_trained and not service.get("indexes/training-status").json()["training_indexes"]:
            return
        time.sleep(0.2)
    raise AssertionError("the training does not end")
