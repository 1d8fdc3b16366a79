"""Packed vectors over HTTP do what lists of numbers do; what is packed wrongly is refused."""

import base64
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import ArrayLike

from tests.api.conftest import KEY, RemoteIndex, Serve


def packed(vectors: ArrayLike) -> str:
    return base64.b64encode(np.asarray(vectors, "<f4").tobytes()).decode()


async def upsert(
    index: RemoteIndex, ids: list[str], vectors: ArrayLike, **fields: Any
) -> httpx.Response:
    batch = {
        "ids": ids,
        "vectors_b64": packed(vectors),
        "dimension": np.shape(vectors)[1],
        **fields,
    }
    return await index.post("vectors/upsert_binary", batch=batch)


async def query(index: RemoteIndex, vectors: ArrayLike, **fields: Any) -> Any:
    batch = {"vectors_b64": packed(vectors), "dimension": np.shape(vectors)[1]}
    answer = await index.post("vectors/query_binary", batch=batch, **fields)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


async def test_packed_vectors_come_back_bit_by_bit(index: RemoteIndex) -> None:
    vectors = np.array([[0.1, -0.0, 1e-45], [3.4e38, 1.17549435e-38, -3.4e38]], np.float32)
    answer = await upsert(index, ["a", "b"], vectors)
    assert answer.json() == {"status": "success", "message": "Upserted 2 vectors"}
    got = (await index.post("vectors/get", ids=["a", "b"], include=["vector"])).json()["results"]
    assert np.array([item["vector"] for item in got], np.float32).tobytes() == vectors.tobytes()


async def test_packed_and_listed_vectors_are_the_same_item(index: RemoteIndex) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((50, 3)).astype(np.float32)
    ids = [f"{n}" for n in range(50)]
    await upsert(index, ids, vectors)
    listed = await index.post(
        "vectors/query", query_vectors=vectors[:4].tolist(), top_k=5, include=["distance"]
    )
    assert listed.json()["results"] == await query(
        index, vectors[:4], top_k=5, include=["distance"]
    )
    one = await index.post(
        "vectors/query", query_vectors=vectors[:1].tolist(), top_k=5, include=["distance"]
    )
    assert one.json()["results"] == await query(index, vectors[:1], top_k=5, include=["distance"])


async def test_the_first_packed_batch_fixes_the_dimension(client: httpx.AsyncClient) -> None:
    index = RemoteIndex(client)
    await index.post("indexes/create")
    assert (await upsert(index, ["a"], [[1, 2, 3, 4, 5]])).status_code == 200
    assert (await index.post("indexes/describe")).json()["dimension"] == 5


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [("", {}), ("", {})]),
        ({"contents": None, "metadata": None}, [("", {}), ("", {})]),
        ({"contents": [], "metadata": []}, [("", {}), ("", {})]),
        ({"contents": ["", None], "metadata": [{}, None]}, [("", {}), ("", {})]),
        ({"contents": ["x"], "metadata": [{"n": 1}]}, [("x", {"n": 1}), ("", {})]),
        ({"contents": [None, "y"], "metadata": [None, {"n": 2}]}, [("", {}), ("y", {"n": 2})]),
        ({"contents": ["x", "y", "z"], "metadata": [{}, {}, {"n": 3}]}, [("x", {}), ("y", {})]),
    ],
)
async def test_what_the_parallel_lists_lack_is_absent(
    index: RemoteIndex, fields: dict[str, Any], expected: list[tuple[str, dict[str, Any]]]
) -> None:
    assert (await upsert(index, ["a", "b"], [[1, 2, 3], [4, 5, 6]], **fields)).status_code == 200
    got = (
        await index.post("vectors/get", ids=["a", "b"], include=["contents", "metadata"])
    ).json()["results"]
    assert [(item["contents"], item["metadata"]) for item in got] == expected


async def test_a_packed_item_replaces_the_old_one_completely(index: RemoteIndex) -> None:
    await upsert(index, ["a"], [[1, 2, 3]], contents=["old"], metadata=[{"old": True}])
    answer = await upsert(index, ["a", "a"], [[4, 5, 6], [7, 8, 9]])
    assert answer.json()["message"] == "Upserted 2 vectors"
    (got,) = (await index.post("vectors/get", ids=["a"])).json()["results"]
    assert got == {"id": "a", "vector": [7.0, 8.0, 9.0], "contents": "", "metadata": {}}


BAD_VECTORS: dict[str, dict[str, Any]] = {
    "dimension of another index": {"vectors_b64": packed([[1, 2]]), "dimension": 2},
    "dimension 0": {"vectors_b64": packed([[1, 2, 3]]), "dimension": 0},
    "dimension -3": {"vectors_b64": packed([[1, 2, 3]]), "dimension": -3},
    "dimension 2^70": {"vectors_b64": packed([[1, 2, 3]]), "dimension": 2**70},
    "half a row": {"vectors_b64": packed([1, 2, 3, 4])},
    "half a number": {"vectors_b64": base64.b64encode(bytes(11)).decode()},
    "nothing": {"vectors_b64": ""},
    "text": {"vectors_b64": "no base64!"},
    "no padding": {"vectors_b64": base64.b64encode(bytes(10)).decode().rstrip("=")},
    "padding in the middle": {"vectors_b64": "AAA=" * 4},
    "padding alone": {"vectors_b64": "===="},
    "line break": {"vectors_b64": packed([[1, 2, 3]])[:8] + "\n" + packed([[1, 2, 3]])[8:]},
    "space at the end": {"vectors_b64": packed([[1, 2, 3]]) + " "},
    "URL-safe alphabet": {"vectors_b64": "_-" * 8},
    "not ASCII": {"vectors_b64": "é" * 16},
    "null characters": {"vectors_b64": "\0" * 16},
    "not a number": {"vectors_b64": packed([[1, np.nan, 3]])},
    "infinity": {"vectors_b64": packed([[1, 2, np.inf]])},
    "opposite infinities": {"vectors_b64": packed([[-np.inf, 2, np.inf]])},
}


@pytest.mark.parametrize("route", ["vectors/upsert_binary", "vectors/query_binary"])
@pytest.mark.parametrize("batch", BAD_VECTORS.values(), ids=BAD_VECTORS)
async def test_what_is_packed_wrongly_is_refused(
    index: RemoteIndex, route: str, batch: dict[str, Any]
) -> None:
    answer = await index.post(route, batch={"ids": ["a"], "dimension": 3, **batch})
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == ["detail"]
    assert (await index.post("vectors/num_vectors")).json() == {"result": 0}


@pytest.mark.parametrize("ids", [[], ["a", "b", "c"], ["a"], [""], ["x" * 1025, "b"]])
async def test_ids_must_fit_the_vectors(index: RemoteIndex, ids: list[str]) -> None:
    answer = await upsert(index, ids, [[1, 2, 3], [4, 5, 6]])
    assert answer.status_code == 400, answer.text
    assert (await index.post("vectors/num_vectors")).json() == {"result": 0}


async def test_the_index_key_is_looked_at_before_the_vectors(index: RemoteIndex) -> None:
    batch = {"ids": ["a"], "vectors_b64": "no base64!", "dimension": 0}
    for route in ("vectors/upsert_binary", "vectors/query_binary"):
        assert (await index.post(route, batch=batch, index_key="ab" * 32)).status_code == 401
        assert (await index.post(route, batch=batch, index_name="no such index")).status_code == 404
    assert KEY not in (await index.post("vectors/query_binary", batch=batch)).text


async def test_numbers_too_large_for_float16_are_refused(client: httpx.AsyncClient) -> None:
    index = RemoteIndex(client)
    await index.post("indexes/create", storage_precision="float16")
    assert (await upsert(index, ["a"], [[70_000, 0]])).status_code == 400
    assert (await upsert(index, ["a"], [[65_504, 0.1]])).status_code == 200
    (got,) = (await index.post("vectors/get", ids=["a"], include=["vector"])).json()["results"]
    assert got["vector"] == [65_504, float(np.float16(0.1))]


async def test_a_packed_batch_above_the_limit_is_too_large(service: Serve) -> None:
    async with service(max_batch_items=2) as client:
        index = RemoteIndex(client)
        await index.post("indexes/create", dimension=1)
        assert (await upsert(index, ["a", "b", "c"], [[1], [2], [3]])).status_code == 413
        assert (await upsert(index, ["a", "b"], [[1], [2]])).status_code == 200
