"""Items over HTTP: what is stored comes back, in exactly the contract's fields."""

import json
from typing import Any

import numpy as np
import pytest

METADATA = {
    "empty": {},
    "empty key": {"": 1, "a": {"": {}}},
    "dots and dollars": {"a.b": 1, "$gt": 2, "a": {"$in": [1]}},
    "integers": {"a": 10**20, "b": 2**53 + 1, "c": -(2**63), "d": 2**64, "e": -(10**30), "f": 0},
    "floats": {"a": 1.0, "b": 0.1, "c": 1e300, "d": 5e-324, "e": -0.0, "f": 1.7976931348623157e308},
    "null character": {"a\0b": "c\0d"},
    "unicode": {"ключ": "🔒 ünïcödé \u2028", "\U0001f511": "\uffff"},
    "constants": {"t": True, "f": False, "n": None},
    "lists": {"a": [], "b": [1, "x", None, [2, [3]], {"c": [4]}]},
    "long text": {"a": "x" * 100_000},
    "many keys": {f"key{i}": i for i in range(2000)},
}


@pytest.mark.parametrize("metadata", METADATA.values(), ids=METADATA)
async def test_metadata_comes_back_as_it_was(index: Any, metadata: dict[str, Any]) -> None:
    item = {"id": "a", "vector": [1, 2, 3], "metadata": metadata}
    assert (await index.post("vectors/upsert", items=[item])).status_code == 200
    got = (await index.post("vectors/get", ids=["a"], include=["metadata"])).json()["results"]
    found = (
        await index.post("vectors/query", query_vectors=[1, 2, 3], include=["metadata"])
    ).json()["results"]
    for results in (got, found):
        assert results == [{"id": "a", "metadata": metadata}]
        # Python counts 1, 1.0 and true as equal; their spelling tells them apart.
        assert json.dumps(results[0]["metadata"]) == json.dumps(metadata)


@pytest.mark.parametrize(("wrap", "depth"), [(list, 125), (dict, 250)])
async def test_metadata_may_be_deep_up_to_a_bound(index: Any, wrap: type[Any], depth: int) -> None:
    metadata: Any = "bottom"
    for _ in range(depth):
        metadata = {"a": [metadata]} if wrap is list else {"a": metadata}
    item = {"id": "a", "vector": [1, 2, 3], "metadata": metadata}
    assert (await index.post("vectors/upsert", items=[item])).status_code == 200
    query = {"query_vectors": [1, 2, 3], "include": ["metadata"]}
    for route, fields in (("get", {"ids": ["a"]}), ("query", query)):
        answer = await index.post(f"vectors/{route}", **fields)
        assert answer.json()["results"][0]["metadata"] == metadata
    item["metadata"] = {"b": metadata}
    refused = await index.post("vectors/upsert", items=[{**item, "metadata": {}}, item])
    assert refused.status_code == 400
    assert refused.json()["detail"] == "Item 1: metadata can be nested at most 250 deep"


@pytest.mark.parametrize("depth", [*range(900, 1000, 5), 2000])
async def test_metadata_too_deep_to_give_back_is_not_taken(index: Any, depth: int) -> None:
    item = (
        '"items":[{"id":"a","vector":[1,2,3],"metadata":'
        + '{"a":' * depth
        + "1"
        + "}" * depth
        + "}]"
    )
    stored = await index.post_text("vectors/upsert", item)
    assert stored.status_code in {200, 400, 422}
    answer = await index.post("vectors/get", ids=["a"])
    assert answer.status_code == 200
    assert len(answer.json()["results"]) == (stored.status_code == 200)


@pytest.mark.parametrize(
    "contents", ["", "Hello!", "AP/+", "a\0b", "🔒\u2028", " \n\t ", "x" * 1_000_000]
)
async def test_contents_come_back_as_they_were(index: Any, contents: str) -> None:
    item = {"id": "a", "vector": [1, 2, 3], "contents": contents}
    assert (await index.post("vectors/upsert", items=[item])).status_code == 200
    answer = await index.post("vectors/get", ids=["a"], include=["contents"])
    assert answer.json() == {"results": [{"id": "a", "contents": contents}]}


@pytest.mark.parametrize(
    "item_id", ["a", " ", "a/b", "é" * 512, "x" * 1024, "null\0character", "🔒", "%2F", "'; --"]
)
async def test_ids_come_back_as_they_were(index: Any, item_id: str) -> None:
    assert (
        await index.post("vectors/upsert", items=[{"id": item_id, "vector": [1, 2, 3]}])
    ).status_code == 200
    assert (await index.post("vectors/list_ids")).json() == {"ids": [item_id], "count": 1}
    assert (await index.post("vectors/query", query_vectors=[1, 2, 3])).json() == {
        "results": [{"id": item_id}]
    }


async def test_vectors_come_back_as_float32(index: Any) -> None:
    vector = [0.1, 16777217, -3.4e38]
    await index.post("vectors/upsert", items=[{"id": "a", "vector": vector}])
    answer = await index.post("vectors/get", ids=["a"], include=["vector"])
    assert answer.json()["results"][0]["vector"] == np.array(vector, np.float32).tolist()


async def test_get_answers_in_the_contracts_order_and_with_empty_values(index: Any) -> None:
    await index.post("vectors/upsert", items=[{"id": "a", "vector": [1, 2, 3]}])
    answer = await index.post("vectors/get", ids=["no", "a", "a"])
    assert answer.text == (
        '{"results":['
        + ",".join(['{"id":"a","vector":[1.0,2.0,3.0],"contents":"","metadata":{}}'] * 2)
        + "]}"
    )


@pytest.mark.parametrize(
    ("include", "fields"),
    [
        ([], ["id"]),
        (["metadata"], ["id", "metadata"]),
        (["contents", "vector", "vector"], ["id", "vector", "contents"]),
        (["distance", "bogus"], ["id"]),
    ],
)
async def test_get_answers_only_what_is_included(
    index: Any, include: list[str], fields: list[str]
) -> None:
    await index.post(
        "vectors/upsert",
        items=[{"id": "a", "vector": [1, 2, 3], "contents": "c", "metadata": {"m": 1}}],
    )
    answer = await index.post("vectors/get", ids=["a"], include=include)
    assert [list(result) for result in answer.json()["results"]] == [fields]


@pytest.mark.parametrize(
    ("include", "fields"),
    [
        ([], ["id"]),
        (["metadata"], ["id", "metadata"]),
        (["metadata", "distance"], ["id", "distance", "metadata"]),
        (["contents", "vector", "bogus"], ["id"]),
    ],
)
async def test_query_answers_only_what_is_included(
    index: Any, include: list[str], fields: list[str]
) -> None:
    await index.post("vectors/upsert", items=[{"id": "a", "vector": [1, 2, 3], "contents": "c"}])
    answer = await index.post("vectors/query", query_vectors=[1, 2, 3], include=include)
    assert [list(result) for result in answer.json()["results"]] == [fields]


async def test_one_query_vector_gives_a_flat_list_and_two_give_lists(index: Any) -> None:
    await index.post(
        "vectors/upsert", items=[{"id": "a", "vector": [1, 2, 3]}, {"id": "b", "vector": [3, 2, 1]}]
    )
    for vectors in ([1, 2, 3], [[1, 2, 3]], [1.0, 2, 3]):
        answer = await index.post("vectors/query", query_vectors=vectors, top_k=1)
        assert answer.json() == {"results": [{"id": "a"}]}
    answer = await index.post("vectors/query", query_vectors=[[1, 2, 3], [3, 2, 1]], top_k=1)
    assert answer.json() == {"results": [[{"id": "a"}], [{"id": "b"}]]}


async def test_a_query_of_an_empty_index_finds_nothing(index: Any) -> None:
    assert (await index.post("vectors/query", query_vectors=[1, 2, 3])).json() == {"results": []}
    assert (await index.post("vectors/query", query_vectors=[[1, 2, 3]] * 2)).json() == {
        "results": [[], []]
    }


async def test_what_was_just_written_is_found(client: Any) -> None:
    body = {"index_name": "just made", "index_key": "00" * 32, "dimension": 2}
    await client.post("/v1/indexes/create", json=body)
    await client.post("/v1/vectors/upsert", json={**body, "items": [{"id": "a", "vector": [1, 2]}]})
    answer = await client.post("/v1/vectors/query", json={**body, "query_vectors": [1, 2]})
    assert answer.json() == {"results": [{"id": "a"}]}


async def test_numbers_of_a_query_may_be_floats_and_null_means_not_given(index: Any) -> None:
    await index.post(
        "vectors/upsert", items=[{"id": "a", "vector": [1, 2, 3]}, {"id": "b", "vector": [3, 2, 1]}]
    )
    unset = dict.fromkeys(
        ["n_probes", "greedy", "rerank_mult", "query_contents", "filters", "text"]
    )
    answer = await index.post("vectors/query", query_vectors=[1, 2, 3], top_k=1.0, **unset)
    assert answer.json() == {"results": [{"id": "a"}]}
    answer = await index.post(
        "vectors/query", query_vectors=[1, 2, 3], top_k=None, filters={}, rerank_mult=0, n_probes=0
    )
    assert len(answer.json()["results"]) == 2


async def test_the_last_of_two_items_with_one_id_is_kept_and_both_are_counted(index: Any) -> None:
    items = [{"id": "a", "vector": [1, 2, 3], "contents": "old"}, {"id": "a", "vector": [3, 2, 1]}]
    answer = await index.post("vectors/upsert", items=items)
    assert answer.json() == {"status": "success", "message": "Upserted 2 vectors"}
    answer = await index.post("vectors/get", ids=["a"])
    assert answer.json()["results"] == [
        {"id": "a", "vector": [3.0, 2.0, 1.0], "contents": "", "metadata": {}}
    ]


async def test_delete_counts_what_was_sent(index: Any) -> None:
    await index.post(
        "vectors/upsert", items=[{"id": "a", "vector": [1, 2, 3]}, {"id": "b", "vector": [1, 2, 3]}]
    )
    answer = await index.post("vectors/delete", ids=["a", "a", "unknown", ""])
    assert answer.json() == {"status": "success", "message": "Deleted 4 vectors"}
    assert (await index.post("vectors/delete", ids=[])).json()["message"] == "Deleted 0 vectors"
    assert (await index.post("vectors/num_vectors")).json() == {"result": 1}


async def test_a_large_batch_goes_in_and_comes_out(index: Any) -> None:
    vectors = np.random.default_rng(1).normal(size=(3000, 3)).astype(np.float32)
    items = [
        {"id": f"item {i}", "vector": row, "metadata": {"n": i}}
        for i, row in enumerate(vectors.tolist())
    ]
    answer = await index.post("vectors/upsert", items=items)
    assert answer.json() == {"status": "success", "message": "Upserted 3000 vectors"}
    got = (await index.post("vectors/get", ids=[item["id"] for item in items])).json()["results"]
    assert got == [{**item, "contents": ""} for item in items]
    found = await index.post(
        "vectors/query", query_vectors=vectors[:5].tolist(), top_k=1, include=["distance"]
    )
    assert found.json()["results"] == [[{"id": f"item {i}", "distance": 0.0}] for i in range(5)]
