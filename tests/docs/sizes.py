"""Measures what docs/sizing.md says: `python -m tests.docs.sizes`, about half an hour.

Each line that it prints is one JSON object. The vectors are random, because ciphertext and sketches
take the same room whatever the vectors are.
"""

import base64
import itertools
import json
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import psycopg

from tests.benchmarks.processes import Peak, postmaster
from tests.service.conftest import Service, new_service, workers_of

KEY = secrets.token_hex(32)
BATCH = 1_000
DIMENSIONS = (384, 768, 1_024, 1_536, 3_072)
CONTENTS = "x" * 200
MB = 1024 * 1024
# Heap, primary key, index of tokens, ivfflat index, and everything.
SIZES = """
SELECT pg_relation_size(partition) AS heap,
    coalesce(pg_total_relation_size(nullif(reltoastrelid, 0)), 0) AS toast,
    (SELECT sum(pg_relation_size(indexrelid)) FROM pg_index JOIN pg_class ON oid = indexrelid
        WHERE indrelid = partition AND relname LIKE '%%_pkey') AS primary_key,
    (SELECT sum(pg_relation_size(indexrelid)) FROM pg_index JOIN pg_class ON oid = indexrelid
        WHERE indrelid = partition AND relname LIKE '%%tokens%%') AS tokens,
    (SELECT sum(pg_relation_size(indexrelid)) FROM pg_index JOIN pg_class ON oid = indexrelid
        WHERE indrelid = partition AND relname LIKE 'ivf_%%') AS ivf,
    pg_total_relation_size(partition) AS total
FROM (
    SELECT to_regclass('items_' || replace(id::text, '-', '')) AS partition
    FROM indexes WHERE name = %s
) AS named JOIN pg_class ON pg_class.oid = partition
"""


def say(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


class Client:
    """Stores items and looks at what they take."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._random = np.random.default_rng(7)

    def post(self, path: str, name: str, **body: Any) -> Any:
        answer = self.service.post(path, {"index_name": name, "index_key": KEY, **body})
        assert answer.status_code == httpx.codes.OK, answer.text
        return answer.json()

    def upsert(self, name: str, start: int, n: int, dimension: int, *, is_rich: bool) -> None:
        vectors = self._random.standard_normal((n, dimension), np.float32)
        batch: dict[str, Any] = {
            "ids": [f"item-{start + number:08}" for number in range(n)],
            "vectors_b64": base64.b64encode(vectors.tobytes()).decode(),
            "dimension": dimension,
        }
        if is_rich:
            batch["contents"] = [CONTENTS] * n
            batch["metadata"] = [
                {"lang": ("en", "fr", "de")[number % 3], "year": 1900 + number % 125}
                for number in range(n)
            ]
        self.post("vectors/upsert_binary", name, batch=batch)

    def query(self, name: str, dimension: int, top_k: int = 10) -> None:
        vector = self._random.standard_normal(dimension).tolist()
        self.post("vectors/query", name, query_vectors=vector, top_k=top_k)

    def settle(self) -> None:
        """Wait until no training is under way."""
        while self.service.get("indexes/training-status").json()["training_indexes"]:
            time.sleep(0.2)

    def sizes(self, name: str) -> dict[str, int]:
        with psycopg.connect(self.service.dsn) as database:
            cursor = database.execute(SIZES, (name,))
            assert cursor.description is not None
            row = cursor.fetchone()
            assert row is not None
            return {
                column.name: int(value)
                for column, value in zip(cursor.description, row, strict=True)
            }

    def memory(self) -> dict[str, Any]:
        """Return the MB of each worker and each connection's process, without what they share."""
        assert self.service.process is not None
        workers = workers_of(self.service.process.pid)
        backends = [
            child
            for child in psutil.Process(postmaster(self.service)).children()
            if "sealdex" in " ".join(child.cmdline())
        ]
        return {
            "workers_mb": [round(one.memory_full_info().uss / MB) for one in workers],
            "backends_mb": [round(one.memory_full_info().uss / MB) for one in backends],
        }


def one_index(client: Client, n: int, dimension: int, precision: str, *, is_rich: bool) -> None:
    """Fill one index, train it with the lists for all its items, and say what it takes."""
    name = f"{dimension}-{n}-{precision}-{is_rich}"
    client.post("indexes/create", name, dimension=dimension, storage_precision=precision)
    for start in range(0, n, BATCH):
        client.upsert(name, start, BATCH, dimension, is_rich=is_rich)
    filled = client.sizes(name)
    client.settle()
    client.post("indexes/train", name)
    trained = client.sizes(name)
    for _ in range(20):
        client.query(name, dimension, 100)
    facts = {
        "filled": {part: round(size / n) for part, size in filled.items()},
        "trained": {part: round(size / n) for part, size in trained.items()},
    }
    say(index=name, total_mb=round(trained["total"] / MB), bytes_an_item=facts, **client.memory())


def many_indexes(client: Client, counts: tuple[int, ...], n: int, dimension: int) -> None:
    """Create small indexes and say what they take together."""
    made = 0
    for count in counts:
        began = time.monotonic()
        for number in range(made, count):
            name = f"small-{number}"
            client.post("indexes/create", name, dimension=dimension)
            client.upsert(name, 0, n, dimension, is_rich=True)
        took_s = time.monotonic() - began
        for number in range(count):
            client.query(f"small-{number}", dimension)
        with psycopg.connect(client.service.dsn) as database:
            size = _one(database, "SELECT pg_database_size(current_database())")
            items = _one(
                database,
                "SELECT sum(pg_total_relation_size(inhrelid))::bigint FROM pg_inherits"
                " WHERE inhparent = 'items'::regclass",
            )
        say(
            indexes=count,
            items_each=n,
            dimension=dimension,
            s_an_index=round(took_s / max(1, count - made), 4),
            database_mb=round(size / MB),
            partitions_mb=round(items / MB),
            kb_an_index=round(items / max(1, count) / 1024),
            **client.memory(),
        )
        made = count


def _one(database: psycopg.Connection, statement: str) -> int:
    row = database.execute(statement).fetchone()
    assert row is not None
    return int(row[0] or 0)


@contextmanager
def _service(**environment: str) -> Iterator[Client]:
    with tempfile.TemporaryDirectory(prefix="sealdex-sizes-") as directory:
        service = new_service(Path(directory), **environment)
        service.start()
        try:
            yield Client(service)
        finally:
            service.stop()


class _Peak(Peak):
    """Looks often enough to see a single upsert."""

    _INTERVAL_S = 0.01


def upserts(client: Client, n: int, dimension: int) -> None:
    """Say how much more memory a worker takes while it stores one batch."""
    name = f"upserts-{n}-{dimension}"
    client.post("indexes/create", name, dimension=dimension)
    vector = np.random.default_rng(7).standard_normal(dimension).tolist()
    items = [{"id": str(number), "vector": vector} for number in range(n)]
    for kind in ("json", "binary"):
        before = client.memory()
        with _Peak(client.service) as peak:
            if kind == "json":
                client.post("vectors/upsert", name, items=items)
            else:
                client.upsert(name, 0, n, dimension, is_rich=False)
        body_mb = round(len(json.dumps(items)) / MB)
        say(upsert=kind, json_mb=body_mb, before=before, peak_mb=round(max(peak.worker_mb)))


def tokens(client: Client, kind: str, n: int = 10_000) -> None:
    """Say what tokens take, of values that each occur once or that occur often."""
    client.post("indexes/create", kind, dimension=3)
    for start in range(0, n, BATCH):
        numbers = range(start, start + BATCH)
        values = [str(number if kind == "unique" else number % 13) for number in numbers]
        items = [
            {"id": str(number), "vector": [1, 2, 3], "metadata": {"value": value}}
            for number, value in zip(numbers, values, strict=True)
        ]
        client.post("vectors/upsert", kind, items=items)
    say(values=kind, bytes_an_item={part: size / n for part, size in client.sizes(kind).items()})


def main() -> None:
    with _service(SEALDEX_WORKERS="1", AUTO_TRAIN_DISABLED="true") as client:
        say(at="start", **client.memory())
        for n, dimension in ((1_000, 1_536), (4_000, 1_536)):
            upserts(client, n, dimension)
        for kind in ("unique", "frequent"):
            tokens(client, kind)
        for dimension, precision in itertools.product(DIMENSIONS, ("float32", "float16")):
            one_index(client, 10_000, dimension, precision, is_rich=False)
        for n, is_rich in ((50_000, False), (50_000, True)):
            one_index(client, n, 384, "float32", is_rich=is_rich)
    with _service(SEALDEX_WORKERS="1") as client:
        # As it comes: the first training is at 10,001 items, and the rest is stored afterwards.
        one_index(client, 50_000, 384, "float32", is_rich=False)
    for counts, n in (((0, 1_000, 2_000), 100), ((0, 1_000, 2_000, 4_000), 1)):
        with _service(SEALDEX_WORKERS="1") as client:
            many_indexes(client, counts, n, 384)


if __name__ == "__main__":
    main()
