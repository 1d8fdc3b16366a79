"""Models over HTTP: which there are, what they are called, and what happens when they change."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.settings import Settings
from tests.api.conftest import RemoteIndex, serve

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
LISTED = {"name": MODEL, "dimension": 384, "max_seq_length": 256}
ITEM = {"id": "a", "contents": "a text"}

Serve = Callable[..., Any]


@pytest.fixture
def own(database_dsn: str) -> Serve:
    """Starts an application with a models directory on a database of this test's own."""
    return lambda models_dir, **values: serve(
        Settings(database_url=database_dsn, workers=1, pool_size=4, models_dir=models_dir, **values)
    )


@pytest.fixture
def own_models(tmp_path: Path, weights_dir: Path) -> Path:
    """A models directory with a copy that a test may change."""
    shutil.copytree(weights_dir, tmp_path / "all-MiniLM-L6-v2")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["all-MiniLM-L6-v2", MODEL, "ALL-minilm-l6-V2", "Sentence-Transformers/all-minilm-l6-v2"],
)
async def test_a_model_answers_to_its_names(client: httpx.AsyncClient, name: str) -> None:
    index = RemoteIndex(client)
    answer = await index.post("indexes/create", embedding_model=name, dimension=384)
    assert answer.status_code == 200, answer.text
    assert (await index.post("indexes/stats")).json()["embedding"]["model"] == MODEL


@pytest.mark.parametrize(
    "name",
    [
        "no-such-model",
        "BAAI/all-MiniLM-L6-v2",
        "../all-MiniLM-L6-v2",
        ".",
        "/etc",
        "a/b/c",
        " ",
        "é\0\n",
    ],
)
async def test_an_unknown_model_is_answered_with_the_known_ones(
    client: httpx.AsyncClient, name: str
) -> None:
    index = RemoteIndex(client)
    answer = await index.post("indexes/create", embedding_model=name)
    assert answer.status_code == 400
    assert f"Available: {MODEL}." in answer.json()["detail"]
    assert (await index.post("indexes/describe")).status_code == 404


async def test_a_name_without_end_is_refused_without_repeating_it(
    client: httpx.AsyncClient,
) -> None:
    answer = await RemoteIndex(client).post("indexes/create", embedding_model="x" * 100_000)
    assert answer.status_code == 400
    assert len(answer.content) < 200


@pytest.mark.parametrize("fields", [{"dimension": 3}, {"index_config": {"dimension": 768}}])
async def test_a_dimension_that_is_not_the_models_is_refused(
    client: httpx.AsyncClient, fields: Any
) -> None:
    index = RemoteIndex(client)
    answer = await index.post("indexes/create", embedding_model=MODEL, **fields)
    assert (answer.status_code, "384" in answer.text) == (400, True)
    assert (await index.post("indexes/describe")).status_code == 404


async def test_the_models_are_listed(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/embedding-models")).json() == {"models": [LISTED]}


async def test_the_list_needs_an_api_key_where_there_is_one(own: Serve, models_dir: Path) -> None:
    async with own(models_dir, root_key="root") as client:
        assert (await client.get("/v1/embedding-models")).status_code == 401
        answer = await client.get("/v1/embedding-models", headers={"X-API-Key": "root"})
        assert answer.json() == {"models": [LISTED]}


async def test_facts_that_the_configuration_does_not_tell_are_learnt_by_loading(
    own: Serve, own_models: Path
) -> None:
    (own_models / "all-MiniLM-L6-v2" / "sentence_bert_config.json").unlink()
    bare = own_models / "me--bare-transformer"
    shutil.copytree(own_models / "all-MiniLM-L6-v2", bare)
    (bare / "modules.json").unlink()
    broken = own_models / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    (broken / "model.safetensors").write_bytes(b"no weights")
    (own_models / "no model").mkdir()
    async with own(own_models) as client:
        models = (await client.get("/v1/embedding-models")).json()["models"]
        assert [(model["name"], model["dimension"]) for model in models] == [
            ("me/bare-transformer", 384),
            (MODEL, 384),
        ]
        assert all(model["max_seq_length"] > 0 for model in models)


async def test_prompts_of_the_model_are_put_before_queries_only(
    own: Serve, own_models: Path, weights_dir: Path
) -> None:
    configuration = own_models / "all-MiniLM-L6-v2" / "config_sentence_transformers.json"
    configuration.write_text(json.dumps({"prompts": {"query": "question: ", "document": ""}}))
    async with own(own_models) as client:
        index = RemoteIndex(client)
        await index.post("indexes/create", embedding_model=MODEL, metric="cosine")
        items = [
            {"id": "bare", "contents": "stars"},
            {"id": "with prompt", "contents": "question: stars"},
        ]
        await index.post("vectors/upsert", items=items)
        answer = await index.post("vectors/query", query_contents="stars", include=["distance"])
        assert answer.json()["results"][0] == {
            "id": "with prompt",
            "distance": pytest.approx(0, abs=1e-5),
        }


async def test_a_model_that_does_not_load_is_for_later(own: Serve, own_models: Path) -> None:
    weights = own_models / "all-MiniLM-L6-v2" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    async with own(own_models) as client:
        index = RemoteIndex(client)
        answer = await index.post("indexes/create", embedding_model=MODEL)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "30"
        assert (await index.post("indexes/describe")).status_code == 404
        weights.write_bytes(whole)
        assert (await index.post("indexes/create", embedding_model=MODEL)).status_code == 200


async def test_code_that_comes_with_a_model_is_not_run(own: Serve, own_models: Path) -> None:
    directory = own_models / "all-MiniLM-L6-v2"
    trace = own_models / "was-here"
    (directory / "own_module.py").write_text(
        f"open({str(trace)!r}, 'w').close()\nclass Own: pass\n"
    )
    modules = json.loads((directory / "modules.json").read_text())
    modules[2]["type"] = "own_module.Own"
    (directory / "modules.json").write_text(json.dumps(modules))
    async with own(own_models) as client:
        answer = await RemoteIndex(client).post("indexes/create", embedding_model=MODEL)
        assert answer.status_code == 503
    assert not trace.exists()


async def test_other_weights_under_the_same_name_are_noticed(own: Serve, own_models: Path) -> None:
    weights = own_models / "all-MiniLM-L6-v2" / "model.safetensors"
    whole = weights.read_bytes()
    vector = [1.0] + [0.0] * 383
    async with own(own_models) as client:
        index = RemoteIndex(client)
        await index.post("indexes/create", embedding_model=MODEL)
        assert (await index.post("vectors/upsert", items=[ITEM])).status_code == 200

    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    async with own(own_models) as client:
        index = RemoteIndex(client, name=index.name)
        for route, fields in (("upsert", {"items": [ITEM]}), ("query", {"query_contents": "text"})):
            answer = await index.post(f"vectors/{route}", **fields)
            assert answer.status_code == 503
            assert answer.headers["Retry-After"] == "30"
            assert "weights" in answer.text
        assert (await index.post("indexes/stats")).json()["embedding"]["status"] == "changed"
        assert (
            await index.post("vectors/upsert", items=[{"id": "b", "vector": vector}])
        ).status_code == 200
        answer = await index.post("vectors/query", query_vectors=vector, top_k=1)
        assert answer.json() == {"results": [{"id": "b"}]}

        weights.write_bytes(whole)
        assert (await index.post("vectors/query", query_contents="text")).status_code == 200
        assert (await index.post("indexes/stats")).json()["embedding"]["status"] == "available"


async def test_a_model_that_is_gone_is_missed(own: Serve, own_models: Path) -> None:
    async with own(own_models) as client:
        index = RemoteIndex(client)
        await index.post("indexes/create", embedding_model=MODEL)
    (own_models / "all-MiniLM-L6-v2").rename(own_models / "another")
    async with own(own_models) as client:
        index = RemoteIndex(client, name=index.name)
        answer = await index.post("vectors/upsert", items=[ITEM])
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "30")
        assert (await index.post("indexes/stats")).json()["embedding"]["status"] == "missing"


async def test_as_many_models_stay_in_memory_as_are_allowed(own: Serve, own_models: Path) -> None:
    shutil.copytree(own_models / "all-MiniLM-L6-v2", own_models / "me--second")
    async with own(own_models, max_loaded_models=1) as client:
        indexes = []
        for name in (MODEL, "me/second"):
            indexes.append(RemoteIndex(client))
            assert (
                await indexes[-1].post("indexes/create", embedding_model=name)
            ).status_code == 200
        for index in indexes * 2:
            assert (await index.post("vectors/upsert", items=[ITEM])).status_code == 200
            assert (await index.post("vectors/query", query_contents="a text")).json() == {
                "results": [{"id": "a"}]
            }
