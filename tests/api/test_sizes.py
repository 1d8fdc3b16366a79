"""How much one request may ask for, and large bodies and answers within these bounds."""

from typing import Any

import httpx
import pytest

from tests.api.conftest import RemoteIndex, Serve

BOM = b"\xef\xbb\xbf"


async def new_index(client: httpx.AsyncClient, n_items: int = 3, **fields: Any) -> RemoteIndex:
    index = RemoteIndex(client)
    assert (await index.post("indexes/create", dimension=3)).status_code == 200
    items = [{"id": str(number), "vector": [number, 0, 0], **fields} for number in range(n_items)]
    assert (await index.post("vectors/upsert", items=items)).status_code == 200
    return index


@pytest.mark.parametrize("route", ["vectors/get", "vectors/delete"])
async def test_ids_are_bounded(service: Serve, route: str) -> None:
    async with service(max_batch_items=5) as client:
        index = await new_index(client)
        assert (await index.post(route, ids=["1"] * 5)).status_code == 200
        refused = await index.post(route, ids=["1"] * 6)
    assert refused.status_code == 413
    assert refused.json() == {"detail": "A batch can hold at most 5 items"}


async def test_an_id_may_be_named_again(client: httpx.AsyncClient) -> None:
    index = await new_index(client)
    ids = ["2", "x", "1", "2", *["0"] * 20]
    results = (await index.post("vectors/get", ids=ids, include=["vector"])).json()["results"]
    assert [item["id"] for item in results] == ["2", "1", "2", *["0"] * 20]
    assert results[1] == {"id": "1", "vector": [1, 0, 0]}
    few = (await index.post("vectors/get", ids=ids[:4], include=[])).json()["results"]
    assert few == [{"id": "2"}, {"id": "1"}, {"id": "2"}]
    deleted = await index.post("vectors/delete", ids=["0", "0", "x"])
    assert deleted.json()["message"] == "Deleted 3 vectors"


async def test_query_vectors_and_results_are_bounded(service: Serve) -> None:
    async with service(max_query_vectors=3, max_results=40) as client:
        index = await new_index(client)
        for n_vectors, top_k, status in ((3, 10, 200), (4, 1, 400), (3, 14, 400), (1, 40, 200)):
            query = {"query_vectors": [[1, 0, 0]] * n_vectors, "top_k": top_k}
            assert (await index.post("vectors/query", **query)).status_code == status
        refused = await index.post("vectors/query", query_vectors=[[1, 0, 0]] * 3)
        assert "SEALDEX_MAX_RESULTS" in refused.json()["detail"]
        batch = {"vectors_b64": "AAAA" * 16, "dimension": 3}
        assert (await index.post("vectors/query_binary", batch=batch)).status_code == 400


async def test_an_answer_has_a_longest_length(service: Serve) -> None:
    async with service(max_answer_bytes=20_000) as client:
        index = await new_index(client, 15, contents="c" * 1_000, metadata={"m": "m" * 2_000})
        assert (await index.post("vectors/get", ids=["1"])).status_code == 200
        for route, fields in (
            ("get", {"ids": ["1"] * 15, "include": ["contents", "metadata"]}),
            ("get", {"ids": ["1"] * 10}),
            ("query", {"query_vectors": [1, 0, 0], "include": ["metadata"]}),
        ):
            refused = await index.post(f"vectors/{route}", **fields)
            assert refused.status_code == 413
            assert "SEALDEX_MAX_ANSWER_BYTES" in refused.json()["detail"]


async def test_many_results_are_as_few_are(client: httpx.AsyncClient) -> None:
    index = await new_index(client, 1_200, metadata={"a": 1})
    ids = (await index.post("vectors/list_ids")).json()
    assert (len(set(ids["ids"])), ids["count"]) == (1_200, 1_200)
    query = {"top_k": 1_200, "include": ["distance", "metadata"]}
    answer = (await index.post("vectors/query", query_vectors=[0, 0, 0], **query)).json()
    assert [item["id"] for item in answer["results"]] == [str(number) for number in range(1_200)]
    assert answer["results"][7] == {"id": "7", "distance": 7, "metadata": {"a": 1}}
    two = await index.post("vectors/query", query_vectors=[[0, 0, 0], [1, 0, 0]], **query)
    assert [len(one) for one in two.json()["results"]] == [1_200, 1_200]


async def test_a_byte_order_mark_is_skipped(client: httpx.AsyncClient) -> None:
    index = await new_index(client)
    body = f'{{"index_name":"{index.name}","index_key":"{index.key}"}}'.encode()
    answer = await index.post_bytes("vectors/num_vectors", BOM + body)
    assert answer.json() == {"result": 3}


# ---------------------------------------------------------------- above a megabyte

PADDING = "p" * 1_100_000


async def test_a_large_upsert_is_taken_as_a_small_one(client: httpx.AsyncClient) -> None:
    index = await new_index(client)
    items = [
        {"id": "a", "vector": [1, 2.5, -3], "contents": PADDING, "metadata": {"x": [1, "y"]}},
        {"id": "b", "vector": [4, 5, 6], "metadata": None},
        {"id": "c", "vector": [0, 0, 1e-3], "contents": None},
    ]
    assert (await index.post("vectors/upsert", items=items)).status_code == 200
    got = (await index.post("vectors/get", ids=["a", "b", "c"])).json()["results"]
    assert got[0] == items[0]
    assert got[1] == {"id": "b", "vector": [4, 5, 6], "contents": "", "metadata": {}}


LARGE_FAULTS: dict[str, tuple[str, int, list[Any]]] = {
    "number is text": ('[{"id":"a","vector":[1,"2",3]}]', 422, ["items", 0, "vector", 1]),
    "vector is text": ('[{"id":"a","vector":"1"}]', 422, ["items", 0, "vector"]),
    "no id": ('[{"id":"a","vector":[1,2,3]},{}]', 422, ["items", 1, "id"]),
    "metadata is a list": (
        '[{"id":"a","vector":[1],"metadata":[]}]',
        422,
        ["items", 0, "metadata"],
    ),
    "vector too short": ('[{"id":"a","vector":[1,2]}]', 400, []),
    "vector is missing": ('[{"id":"a"}]', 400, []),
    "vector is null": ('[{"id":"a","vector":null}]', 400, []),
    "number beyond float32": ('[{"id":"a","vector":[1,2,1e39]}]', 400, []),
    "number beyond float64": ('[{"id":"a","vector":[1,2,1e999]}]', 422, ["items", 0, "vector", 2]),
    "no JSON": ('[{"id":"a","vector":[1,2,NaN]}]', 422, []),
}


@pytest.mark.parametrize("fault", LARGE_FAULTS)
async def test_what_is_wrong_with_a_large_upsert_is_said_as_of_a_small_one(
    client: httpx.AsyncClient, fault: str
) -> None:
    index = await new_index(client)
    items, status, loc = LARGE_FAULTS[fault]
    small = await index.post_text("vectors/upsert", f'"items":{items}')
    large = await index.post_text("vectors/upsert", f'"items":{items},"padding":"{PADDING}"')
    assert (small.status_code, large.status_code) == (status, status)
    if loc:
        assert small.json() == large.json()
        assert large.json()["detail"][0]["loc"] == ["body", *loc]


QUERIES = [
    "[0.7,2,3]",
    "[[0.7,2,3]]",
    " [ [0.7,2,3] , [ 4,5,6 ] ] ",
    "[]",
    "null",
    "[[]]",
    "[[1,2,3],4]",
    "[4,[1,2,3]]",
    "[[1,2,3],[1,2]]",
    '[[1,2,"3]"]]',
    "[[[1,2,3]]]",
    '"[[1]]"',
    "{}",
    "[[1,2,1e39]]",
    "[[1,2,3]4]",
    "[true]",
]


FILTERS = ["null", '{"a":1}', '{"a":{"$gt":1e999}}', "[]", '{"$x":1}']


@pytest.mark.parametrize(
    ("vectors", "filters"),
    [*((one, '{"a":1}') for one in QUERIES), *((QUERIES[2], one) for one in FILTERS)],
)
async def test_a_large_query_is_answered_as_a_small_one(
    client: httpx.AsyncClient, vectors: str, filters: str
) -> None:
    index = await new_index(client, metadata={"a": 1})
    fields = f'"query_vectors":{vectors},"filters":{filters},"include":["distance"]'
    small = await index.post_text("vectors/query", fields)
    large = await index.post_text("vectors/query", f'{fields},"padding":"{PADDING}"')
    assert small.status_code == large.status_code, (small.text, large.text)
    if small.status_code == 200:
        assert small.json() == large.json()


async def test_values_of_a_large_body_are_bounded(service: Serve) -> None:
    async with service(max_body_values=1_000) as client:
        index = await new_index(client)
        ones = ",".join(["1"] * 2_000)
        texts = ",".join(['"1"'] * 2_000)
        for route, fields in (
            ("query", f'"query_vectors":[1,2,3],"filters":{{"a":{{"$in":[{ones}]}}}}'),
            ("get", f'"ids":[{texts}]'),
            ("query", f'"query_vectors":[1,2,3],"include":[{texts}]'),
            ("upsert", f'"items":[{{"id":"a","vector":[1,2,3],"metadata":{{"a":[{ones}]}}}}]'),
        ):
            refused = await index.post_text(f"vectors/{route}", f'{fields},"padding":"{PADDING}"')
            assert refused.status_code == 413, refused.text
            assert "SEALDEX_MAX_BODY_VALUES" in refused.json()["detail"]
        vectors = ",".join(["[1,2,3]"] * 2_000)
        answer = await index.post_text(
            "vectors/query", f'"query_vectors":[{vectors}],"top_k":1,"padding":"{PADDING}"'
        )
        assert len(answer.json()["results"]) == 2_000
