"""Filtered search over HTTP against the unfiltered one: latency in turn, and recall of the true
filtered neighbours.
"""

import json
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.benchmarks.client import KEY, Connection, milliseconds, request
from tests.benchmarks.conftest import Report, batched_rows, items
from tests.benchmarks.data import Data
from tests.service.conftest import Service, new_service

INDEX = {"index_name": "filtered", "index_key": KEY}
TOP_K = 10
N_MEASURED = 100
# Those that read all metadata take longer.
N_MEASURED_SCANS = 20
N_CHANGES = 20
MAX_RATIO = 1.5
MIN_RECALL = 0.95
MAX_SCAN_MS = 1_000

Filter = dict[str, Any]


def tokenised(dataset: Data) -> dict[str, Filter]:
    """Filters on the share of the items that their name says, as near as the data has it."""
    lemmas = [metadata["lemma"] for metadata in dataset.metadata]
    rare = sorted(set(lemmas))
    one = next(lemma for lemma in rare if lemmas.count(lemma) == 1)
    return {
        "50 %": {"category": {"$in": _categories(dataset, 0.5)}},
        "10 %": {"category": {"$in": _categories(dataset, 0.1)}},
        "1 %": {"lemma": {"$in": rare[:: max(1, len(rare) // (len(lemmas) // 100))]}},
        "0.1 %": {"lemma": {"$in": rare[:: max(1, len(rare) // (len(lemmas) // 1_000))]}},
        "1 item": {"lemma": one},
        "none": {"lemma": "no such lemma"},
        "two filters": {"pos": "noun", "words": 1},
        "two filters, one rare": {"pos": "noun", "category": _categories(dataset, 0.07)[0]},
    }


def scanned(dataset: Data) -> dict[str, Filter]:
    """Filters that no token answers."""
    lengths = sorted(metadata["gloss_length"] for metadata in dataset.metadata)
    return {
        "range, 23 %": {"gloss_length": {"$gte": 100}},
        "range, 0.1 %": {"gloss_length": {"$gt": lengths[-len(lengths) // 1_000]}},
        "regex, few": {"lemma": {"$regex": "^qu.*ing$"}},
        "regex, none": {"lemma": {"$regex": "(x+x+)+y$"}},
        "token and range": {"pos": "verb", "gloss_length": {"$lt": 40}},
    }


def _categories(dataset: Data, share: float) -> list[str]:
    """Return categories that together have about `share` of the items, the largest that fit
    first."""
    names = [metadata["category"] for metadata in dataset.metadata]
    wanted, chosen = share * len(names), []
    for name in sorted(set(names), key=names.count, reverse=True):
        if names.count(name) <= 1.1 * wanted:
            chosen.append(name)
            wanted -= names.count(name)
    return chosen


def matches(condition: Filter, metadata: dict[str, Any]) -> bool:
    """A matcher of its own for the filters above."""
    return all(_meets(metadata[field], wanted) for field, wanted in condition.items())


def _meets(value: Any, wanted: Any) -> bool:
    if not isinstance(wanted, dict):
        return bool(value == wanted)
    (operator, operand), *_ = wanted.items()
    match operator:
        case "$in":
            return value in operand
        case "$gte":
            return bool(value >= operand)
        case "$gt":
            return bool(value > operand)
        case "$lt":
            return bool(value < operand)
    return re.search(operand, value) is not None


@pytest.fixture(scope="module")
def filled(dataset: Data) -> Iterator[Service]:
    """A service with the data set in an index that is trained on request only."""
    with tempfile.TemporaryDirectory(prefix="sealdex-bench-") as directory:
        service = new_service(Path(directory), AUTO_TRAIN_DISABLED="true")
        service.start()
        with Connection(service.port) as connection:
            connection.post("indexes/create", {**INDEX, "metric": "cosine"})
            for rows in batched_rows(len(dataset.ids)):
                connection.post("vectors/upsert", {**INDEX, "items": items(dataset, rows)})
        yield service
        service.stop()


# In this order: the second trains what the first has searched.
@pytest.mark.parametrize("state", ["untrained", "trained"])
def test_filtered_search(filled: Service, dataset: Data, report: Report, state: str) -> None:
    if state == "trained":
        assert filled.post("indexes/train", INDEX).json()["status"] == "success"
    tokens, scans = tokenised(dataset), scanned(dataset)
    with Connection(filled.port) as connection:
        rows = [
            measured(
                connection,
                dataset,
                name,
                wanted,
                N_MEASURED if name in tokens else N_MEASURED_SCANS,
            )
            for name, wanted in (tokens | scans).items()
        ]
    report(
        f"filters_{state}",
        {"data": dataset.name, "n_items": len(dataset.ids), "top_k": TOP_K, "rows": rows},
    )
    for row in rows:
        assert row["recall"] >= MIN_RECALL, row
        assert row["is_complete"], row
        assert row["p50_ms"] <= (
            MAX_RATIO * row["unfiltered_p50_ms"] if row["filter"] in tokens else MAX_SCAN_MS
        ), row


def measured(
    connection: Connection, dataset: Data, name: str, wanted: Filter, n_queries: int
) -> dict[str, Any]:
    """Send each query without and with the filter, in turn, and compare with the true filtered
    neighbours.
    """
    found_at = np.array(
        [row for row, metadata in enumerate(dataset.metadata) if matches(wanted, metadata)], np.intp
    )
    assert connection.post("vectors/num_vectors", {**INDEX, "filters": wanted})["result"] == len(
        found_at
    )
    times, recalls, lengths = [], [], []
    for position in range(n_queries):
        query = dataset.queries[position]
        plain = {**INDEX, "query_vectors": query.tolist(), "top_k": TOP_K}
        unfiltered_s, _ = timed(connection, plain)
        filtered_s, ids = timed(connection, {**plain, "filters": wanted})
        times.append((unfiltered_s, filtered_s))
        lengths.append(len(ids))
        nearest = found_at[np.argsort(-(dataset.vectors[found_at] @ query), kind="stable")[:TOP_K]]
        true = {dataset.ids[row] for row in nearest}
        recalls.append(len(true.intersection(ids)) / len(true) if true else float(not ids))
    unfiltered, filtered = (milliseconds(column) for column in zip(*times, strict=True))
    return {
        "filter": name,
        "share": len(found_at) / len(dataset.ids),
        "recall": float(np.mean(recalls)),
        "is_complete": set(lengths) == {min(TOP_K, len(found_at))},
        "p50_ms": filtered[0],
        "p99_ms": filtered[1],
        "unfiltered_p50_ms": unfiltered[0],
        "ratio": filtered[0] / unfiltered[0],
        "changing_p50_ms": changing(connection, dataset, wanted),
    }


def changing(connection: Connection, dataset: Data, wanted: Filter) -> float:
    """Return p50 in ms of queries before each of which an item has changed."""
    times = []
    for row in range(N_CHANGES):
        connection.post("vectors/upsert", {**INDEX, "items": items(dataset, range(row, row + 1))})
        query = {
            **INDEX,
            "query_vectors": dataset.queries[row].tolist(),
            "top_k": TOP_K,
            "filters": wanted,
        }
        times.append(timed(connection, query)[0])
    return milliseconds(times)[0]


def timed(connection: Connection, body: dict[str, Any]) -> tuple[float, list[str]]:
    data = request("vectors/query", body)
    start = time.perf_counter()
    answer = connection.send(data)
    elapsed = time.perf_counter() - start
    return elapsed, [match["id"] for match in json.loads(answer)["results"]]
