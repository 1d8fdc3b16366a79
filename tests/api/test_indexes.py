"""Indexes over HTTP, as clients of all ages make and read them."""

import uuid
from typing import Any

import httpx
import pytest

from app.settings import Settings
from tests.api.conftest import RemoteIndex, Serve, serve

KEY = bytes(range(32)).hex()


async def create(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    """Create an index with `fields`; return what describe says."""
    body = {"index_name": f"index-{uuid.uuid4().hex}", "index_key": KEY}
    answer = await client.post("/v1/indexes/create", json={**body, **fields})
    message = f"Index '{body['index_name']}' created successfully"
    assert answer.json() == {"status": "success", "message": message}
    description: dict[str, Any] = (await client.post("/v1/indexes/describe", json=body)).json()
    assert description.pop("index_name") == body["index_name"]
    return description


PLAIN = {"is_trained": False, "dimension": 0, "metric": "euclidean", "n_lists": 1}
NULLS = dict.fromkeys(
    [
        "dimension",
        "metric",
        "embedding_model",
        "storage_precision",
        "kms_name",
        "metadata_schema",
        "text_fields",
        "bm25_k1",
        "bm25_b",
    ]
)


@pytest.mark.parametrize(
    ("fields", "description"),
    [
        ({}, PLAIN),
        (NULLS, PLAIN),
        ({"embedding_model": "", "kms_name": "", "text_fields": [], "metadata_schema": {}}, PLAIN),
        ({"dimension": 0}, PLAIN),
        ({"dimension": 3.0, "metric": "cosine"}, PLAIN | {"dimension": 3, "metric": "cosine"}),
        (
            {"storage_precision": "float16", "metric": "squared_euclidean"},
            PLAIN | {"metric": "squared_euclidean"},
        ),
        ({"dimension": 65_535}, PLAIN | {"dimension": 65_535}),
        ({"dimension": 8, "sketch_bits": 512, "sketch_noise": 0}, PLAIN | {"dimension": 8}),
    ],
)
async def test_an_index_is_described_in_exactly_five_fields(
    client: httpx.AsyncClient, fields: dict[str, Any], description: dict[str, Any]
) -> None:
    assert await create(client, **fields) == description


@pytest.mark.parametrize(
    ("fields", "kind", "dimension", "metric"),
    [
        ({"index_config": {"type": "ivfflat", "dimension": 3}}, "ivfflat", 3, "euclidean"),
        (
            {"index_config": {"type": "ivf", "dimension": 3, "metric": "cosine", "n_lists": 64}},
            "ivf",
            3,
            "cosine",
        ),
        (
            {"index_config": {"type": "ivfpq", "pq_dim": 8, "pq_bits": 8, "dimension": 3}},
            "ivfpq",
            3,
            "euclidean",
        ),
        (
            {
                "index_config": {"type": "ivfsq", "sq_bits": 8, "dimension": None},
                "metric": "cosine",
            },
            "ivfsq",
            0,
            "cosine",
        ),
        ({"index_config": {"dimension": 3}, "dimension": 4}, "ivfflat", 4, "euclidean"),
        ({"index_config": {}}, "ivfflat", 0, "euclidean"),
        # So 0.12 creates an index without a configuration, and its describe fails without one all
        # the same.
        ({"index_config": None}, "ivfflat", 0, "euclidean"),
        ({"index_config": {"type": "something new"}}, "ivfflat", 0, "euclidean"),
    ],
)
async def test_an_older_client_finds_its_index_config(
    client: httpx.AsyncClient, fields: dict[str, Any], kind: str, dimension: int, metric: str
) -> None:
    facts = {"dimension": dimension, "metric": metric, "n_lists": 1}
    expected = {
        "is_trained": False,
        **facts,
        "index_type": kind,
        "index_config": {**facts, "type": kind, "index_type": kind},
    }
    description = await create(client, **fields)
    for name in ("pq_dim", "pq_bits", "sq_bits"):
        description["index_config"].pop(name, None)
    assert description == expected


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ({"type": "ivfpq", "pq_dim": 32, "pq_bits": 8}, {"pq_dim": 32, "pq_bits": 8}),
        ({"type": "ivfpq"}, {}),
        ({"type": "ivfsq"}, {"sq_bits": 16}),
        ({"type": "ivfsq", "sq_bits": 8.0}, {"sq_bits": 8}),
        ({"type": "ivfflat", "pq_dim": 32, "sq_bits": 8}, {}),
    ],
)
async def test_an_older_client_reads_back_what_its_type_has(
    client: httpx.AsyncClient, sent: dict[str, Any], told: dict[str, int]
) -> None:
    config = (await create(client, index_config=sent))["index_config"]
    names = {"pq_dim", "pq_bits", "sq_bits"}
    assert {name: value for name, value in config.items() if name in names} == told


@pytest.mark.parametrize(
    "name", ["with space", "a/b", "a.b", "ünïcödé 🔒", "x" * 255, "é" * 255, "'; DROP TABLE x"]
)
async def test_names_may_hold_almost_anything(client: httpx.AsyncClient, name: str) -> None:
    body = {"index_name": name, "index_key": KEY}
    assert (await client.post("/v1/indexes/create", json=body)).status_code == 200
    assert name in (await client.get("/v1/indexes/list")).json()["indexes"]
    answer = await client.post("/v1/indexes/delete", json=body)
    assert answer.json() == {"status": "success", "message": f"Index '{name}' deleted successfully"}
    assert name not in (await client.get("/v1/indexes/list")).json()["indexes"]


async def test_a_deleted_name_can_be_used_again_with_another_key(index: Any) -> None:
    await index.post("vectors/upsert", items=[{"id": "a", "vector": [1, 2, 3]}])
    assert (await index.post("indexes/delete")).status_code == 200
    assert (await index.post("indexes/describe")).status_code == 404
    again = {"index_key": "ff" * 32}
    assert (
        await index.post("indexes/create", dimension=2, metric="cosine", **again)
    ).status_code == 200
    assert (await index.post("vectors/num_vectors", **again)).json() == {"result": 0}
    assert (await index.post("vectors/num_vectors")).status_code == 401


@pytest.mark.parametrize("key", [None, KEY, "ff" * 32])
async def test_an_index_that_another_worker_has_deleted_is_not_found(
    database_dsn: str, key: str | None
) -> None:
    settings = Settings(database_url=database_dsn, pool_size=2)
    async with serve(settings) as client, serve(settings) as other_worker:
        index = RemoteIndex(client)
        assert (await index.post("indexes/create", dimension=3)).status_code == 200
        seen_elsewhere = RemoteIndex(other_worker, name=index.name)
        assert (await seen_elsewhere.post("vectors/num_vectors")).json() == {"result": 0}
        assert (await index.post("indexes/delete")).status_code == 200
        assert (await seen_elsewhere.post("vectors/num_vectors", index_key=key)).status_code == 404


async def test_stats_tell_what_describe_must_not(index: Any) -> None:
    await index.post("vectors/upsert", items=[{"id": "a", "vector": [1, 2, 3]}])
    answer = (await index.post("indexes/stats")).json()
    assert answer["index_name"] == index.name
    assert answer["encoder"]["sketch_bits"] == 512
    assert index.key not in str(answer)


async def test_all_indexes_can_be_described_to_older_clients(service: Serve) -> None:
    async with service(legacy_describe=True) as client:
        facts = {"dimension": 3, "metric": "cosine", "n_lists": 1}
        expected = {
            "is_trained": False,
            **facts,
            "index_type": "ivfflat",
            "index_config": facts | {"type": "ivfflat", "index_type": "ivfflat"},
        }
        assert await create(client, dimension=3, metric="cosine") == expected
        kept = await create(client, index_config={"type": "ivfpq", "dimension": 3})
        assert kept["index_type"] == "ivfpq"
