"""Training over HTTP: the contract's words."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

from tests.api.conftest import ROOT_KEY, RemoteIndex, Serve

THRESHOLD = 1_000


@pytest.fixture(scope="module")
async def eager_client(service: Serve) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service that trains early."""
    async with service(retrain_threshold=THRESHOLD, root_key=ROOT_KEY) as client:
        client.headers["X-API-Key"] = ROOT_KEY
        yield client


@pytest.fixture
async def eager_index(eager_client: httpx.AsyncClient) -> RemoteIndex:
    index = RemoteIndex(eager_client)
    assert (await index.post("indexes/create", dimension=8)).status_code == 200
    return index


def batch(n: int, start: int = 0) -> list[dict[str, Any]]:
    vectors = np.random.default_rng(start).standard_normal((n, 8)).round(3)
    return [
        {"id": str(start + row), "vector": vector.tolist()} for row, vector in enumerate(vectors)
    ]


async def status(client: httpx.AsyncClient) -> dict[str, Any]:
    answer: dict[str, Any] = (await client.get("/v1/indexes/training-status")).json()
    return answer


async def settle(client: httpx.AsyncClient) -> None:
    """Wait until nothing is trained any more."""
    for _ in range(1_000):
        if not (await status(client))["training_indexes"]:
            return
        await anyio.sleep(0.05)
    pytest.fail("a training does not end")


async def test_an_upsert_above_the_threshold_says_that_it_triggers_a_training(
    eager_index: RemoteIndex,
) -> None:
    answer = await eager_index.post("vectors/upsert", items=batch(THRESHOLD))
    assert answer.json() == {"status": "success", "message": f"Upserted {THRESHOLD} vectors"}
    answer = await eager_index.post("vectors/upsert", items=batch(500, THRESHOLD))
    assert answer.json() == {
        "status": "success",
        "message": "Upserted 500 vectors",
        "training_triggered": True,
        "training_message": "Index training has been triggered (vectors: 1500, threshold: 1000)",
    }
    state = await status(eager_index.client)
    assert eager_index.name in state["training_indexes"]
    # While it is trained nothing is triggered again.
    answer = await eager_index.post("vectors/upsert", items=batch(1, THRESHOLD))
    assert answer.json() == {"status": "success", "message": "Upserted 1 vectors"}
    await settle(eager_index.client)
    description = (await eager_index.post("indexes/describe")).json()
    assert description == {
        "index_name": eager_index.name,
        "is_trained": True,
        "dimension": 8,
        "metric": "euclidean",
        "n_lists": 32,
    }


async def test_train_answers_when_it_is_done(eager_index: RemoteIndex) -> None:
    await eager_index.post("vectors/upsert", items=batch(THRESHOLD - 1))
    # One below what the service trains: success, and still exact.
    answer = await eager_index.post("indexes/train", n_lists=4)
    assert answer.json() == {
        "status": "success",
        "message": f"Index '{eager_index.name}' trained successfully",
    }
    assert not (await eager_index.post("indexes/describe")).json()["is_trained"]
    await eager_index.post("vectors/upsert", items=batch(1, THRESHOLD - 1))
    nulls: dict[str, Any] = dict.fromkeys(
        ["n_lists", "batch_size", "max_iters", "tolerance", "max_memory"]
    )
    old = {"batch_size": 2048, "max_iters": 100, "tolerance": 1e-6, "max_memory": 0}
    for fields, n_lists in ((nulls, 32), ({**old, "n_lists": 5.0}, 5)):
        answer = await eager_index.post("indexes/train", **fields)
        assert answer.json() == {
            "status": "success",
            "message": f"Index '{eager_index.name}' trained successfully",
        }
        assert (await eager_index.post("indexes/describe")).json()["n_lists"] == n_lists


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"n_lists": -1}, 400),
        ({"n_lists": 1.5}, 422),
        ({"n_lists": "many"}, 422),
        ({"max_memory": 0.5}, 422),
        ({"index_key": "00" * 32}, 401),
        ({"index_key": None}, 401),
        ({"index_name": "no such index"}, 404),
    ],
)
async def test_what_cannot_be_trained_is_refused(
    eager_index: RemoteIndex, fields: dict[str, Any], expected: int
) -> None:
    assert (await eager_index.post("indexes/train", **fields)).status_code == expected


async def test_a_failed_training_is_told_with_status_200(eager_index: RemoteIndex) -> None:
    await eager_index.post("vectors/upsert", items=batch(THRESHOLD + 1))
    await settle(eager_index.client)
    answer = await eager_index.post("indexes/train", n_lists=500)
    assert answer.json()["status"] == "success", answer.json()
    answer = await eager_index.post("indexes/train", n_lists=2**40)
    # More lists than half of the vectors: nothing to do.
    assert answer.json()["status"] == "success", answer.json()
    assert (await eager_index.post("indexes/describe")).json()["n_lists"] == 500


async def test_the_status_has_the_seven_fields_of_the_contract(client: httpx.AsyncClient) -> None:
    assert await status(client) == {
        "training_indexes": [],
        "currently_training": None,
        "queued_indexes": [],
        "retrain_threshold": 10_000,
        "worker_running": False,
        "worker_pid": 0,
        "global_training": {},
    }


@pytest.mark.parametrize("route", ["indexes/train", "indexes/training-status"])
async def test_training_needs_the_root_key(guarded_client: httpx.AsyncClient, route: str) -> None:
    method = "POST" if route == "indexes/train" else "GET"
    assert (await guarded_client.request(method, f"/v1/{route}")).status_code == 401


@pytest.mark.parametrize("target", [0.49, 1.5, -1, 0])
async def test_a_target_recall_out_of_range_is_refused(index: RemoteIndex, target: float) -> None:
    answer = await index.post("vectors/query", query_vectors=[1, 2, 3], target_recall=target)
    assert answer.status_code == 400
    assert "target_recall" in answer.json()["detail"]
    answer = await index.post("vectors/query", query_vectors=[1, 2, 3], target_recall="high")
    assert answer.status_code == 422


async def test_stats_of_an_index_that_was_never_trained(index: RemoteIndex) -> None:
    answer = (await index.post("indexes/stats")).json()
    assert answer["training"] is None
    assert answer["profile"] is None
    assert (answer["is_trained"], answer["is_drifted"], answer["drift_reasons"]) == (
        False,
        False,
        [],
    )
