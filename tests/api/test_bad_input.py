"""Whatever is wrong with a request, its answer is a 4xx of the contract's shape, without a key."""

import json
from typing import Any

import httpx
import pytest

KEY = bytes(range(32)).hex()
OTHER_KEY = "ab" * 32
JSON = {"Content-Type": "application/json"}
ITEM = {"id": "a", "vector": [1, 2, 3]}
ROUTES = [
    "indexes/create",
    "indexes/describe",
    "indexes/delete",
    "indexes/stats",
    "vectors/upsert",
    "vectors/upsert_binary",
    "vectors/query",
    "vectors/query_binary",
    "vectors/get",
    "vectors/delete",
    "vectors/list_ids",
    "vectors/num_vectors",
]


def check_error(answer: httpx.Response, *statuses: int) -> list[dict[str, Any]]:
    """Assert one of `statuses`, the error shape, and no key; return the problems of a 422."""
    assert answer.status_code in statuses, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert KEY not in answer.text.lower()
    assert OTHER_KEY not in answer.text.lower()
    body = answer.json()
    assert list(body) == ["detail"]
    if answer.status_code != 422:
        assert isinstance(body["detail"], str)
        assert body["detail"]
        return []
    for problem in body["detail"]:
        assert list(problem) == ["type", "loc", "msg"]
        assert problem["loc"][0] == "body"
    problems: list[dict[str, Any]] = body["detail"]
    return problems


async def post(
    client: httpx.AsyncClient, route: str, body: bytes, **headers: str
) -> httpx.Response:
    sent = JSON | {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.post(f"/v1/{route}", content=body, headers=sent)


# ---------------------------------------------------------------- bodies that are no JSON

NO_JSON = {
    "open brace": b"{",
    "bare word": b"nonsense",
    "single quotes": b"{'index_name': 'a'}",
    "trailing comma": b'{"index_name": "a",}',
    "trailing text": b'{"index_name": "a"} x',
    "two documents": b'{"index_name": "a"}{}',
    "cut short": b'{"index_name": "a"',
    "comment": b'{"index_name": "a" /* no */}',
    "two byte order marks": b"\xef\xbb\xbf\xef\xbb\xbf{}",
    "UTF-16": '{"index_name": "a"}'.encode("utf-16"),
    "invalid UTF-8": b'{"index_name": "\xff"}',
    "surrogate in UTF-8": b'{"index_name": "\xed\xa0\x80"}',
    "lone surrogate": b'{"index_name": "\\ud800"}',
    "reversed surrogates": b'{"index_name": "\\udc00\\ud800"}',
    "raw control character": b'{"index_name": "a\nb"}',
    "bad escape": b'{"index_name": "\\x41"}',
    "endless array": b'{"index_name": "a", "more": ' + b"[" * 100_000,
    "deep array": b'{"index_name": "a", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "form": b"index_name=a&index_key=b",
}


@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON)
async def test_a_body_that_is_no_json_is_json_invalid(
    client: httpx.AsyncClient, body: bytes
) -> None:
    (problem,) = check_error(await post(client, "indexes/describe", body), 422)
    assert problem["type"] == "json_invalid"


@pytest.mark.parametrize("route", ROUTES)
async def test_every_route_wants_a_body(client: httpx.AsyncClient, route: str) -> None:
    (problem,) = check_error(await post(client, route, b""), 422)
    assert (problem["type"], problem["loc"]) == ("missing", ["body"])


@pytest.mark.parametrize("body", [b"null", b"[]", b"5", b'"text"', b"true"])
async def test_a_body_must_be_an_object(client: httpx.AsyncClient, body: bytes) -> None:
    (problem,) = check_error(await post(client, "vectors/get", body), 422)
    assert (problem["type"], problem["loc"]) == ("model_attributes_type", ["body"])


@pytest.mark.parametrize("route", ROUTES)
async def test_every_route_wants_an_index_name(client: httpx.AsyncClient, route: str) -> None:
    body = {"index_key": KEY, "items": [], "ids": []}
    (problem,) = check_error(await client.post(f"/v1/{route}", json=body), 422)
    assert problem == {"type": "missing", "loc": ["body", "index_name"], "msg": "Field required"}


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "json", "text/json", ""]
)
async def test_json_must_be_announced(client: httpx.AsyncClient, content_type: str) -> None:
    body = json.dumps({"index_name": "a", "index_key": KEY}).encode()
    answer = await client.post(
        "/v1/vectors/list_ids", content=body, headers={"Content-Type": content_type}
    )
    (problem,) = check_error(answer, 422)
    assert problem["type"] == "model_attributes_type"


async def test_a_body_without_content_type_is_refused(client: httpx.AsyncClient) -> None:
    body = json.dumps({"index_name": "a", "index_key": KEY}).encode()
    check_error(await client.post("/v1/vectors/list_ids", content=body), 422)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, identity"])
async def test_a_compressed_body_is_refused(client: httpx.AsyncClient, encoding: str) -> None:
    check_error(await post(client, "vectors/list_ids", b"{}", Content_Encoding=encoding), 400)


# ---------------------------------------------------------------- fields of a wrong type

WRONG_TYPES: dict[str, tuple[str, dict[str, Any], str, list[Any]]] = {
    "name is a number": ("indexes/describe", {"index_name": 5}, "string_type", ["index_name"]),
    "name is null": ("indexes/describe", {"index_name": None}, "string_type", ["index_name"]),
    "name is a list": ("indexes/describe", {"index_name": ["a"]}, "string_type", ["index_name"]),
    "key is a number": ("indexes/describe", {"index_key": 5}, "string_type", ["index_key"]),
    "key is a list": ("indexes/describe", {"index_key": [KEY]}, "string_type", ["index_key"]),
    "dimension is text": ("indexes/create", {"dimension": "3"}, "int_type", ["dimension"]),
    "dimension is true": ("indexes/create", {"dimension": True}, "int_type", ["dimension"]),
    "dimension is a fraction": (
        "indexes/create",
        {"dimension": 2.5},
        "int_from_float",
        ["dimension"],
    ),
    "dimension is a list": ("indexes/create", {"dimension": [3]}, "int_type", ["dimension"]),
    "metric is a number": ("indexes/create", {"metric": 1}, "string_type", ["metric"]),
    "precision is unknown": (
        "indexes/create",
        {"storage_precision": "int8"},
        "literal_error",
        ["storage_precision"],
    ),
    "precision is tq2": (
        "indexes/create",
        {"storage_precision": "tq2"},
        "literal_error",
        ["storage_precision"],
    ),
    "precision is empty": (
        "indexes/create",
        {"storage_precision": ""},
        "literal_error",
        ["storage_precision"],
    ),
    "precision in capitals": (
        "indexes/create",
        {"storage_precision": "FLOAT32"},
        "literal_error",
        ["storage_precision"],
    ),
    "index_config is text": (
        "indexes/create",
        {"index_config": "ivf"},
        "dict_type",
        ["index_config"],
    ),
    "legacy dimension is text": (
        "indexes/create",
        {"index_config": {"dimension": "3"}},
        "int_type",
        ["index_config", "dimension"],
    ),
    "legacy dimension is a fraction": (
        "indexes/create",
        {"index_config": {"dimension": 0.5}},
        "int_from_float",
        ["index_config", "dimension"],
    ),
    "sketch_bits is true": ("indexes/create", {"sketch_bits": True}, "int_type", ["sketch_bits"]),
    "sketch_noise is text": (
        "indexes/create",
        {"sketch_noise": "0.1"},
        "float_type",
        ["sketch_noise"],
    ),
    "no items": ("vectors/upsert", {}, "missing", ["items"]),
    "items is null": ("vectors/upsert", {"items": None}, "list_type", ["items"]),
    "items is an object": ("vectors/upsert", {"items": ITEM}, "list_type", ["items"]),
    "item is null": (
        "vectors/upsert",
        {"items": [ITEM, None]},
        "model_attributes_type",
        ["items", 1],
    ),
    "item is text": ("vectors/upsert", {"items": ["a"]}, "model_attributes_type", ["items", 0]),
    "item without id": (
        "vectors/upsert",
        {"items": [ITEM, {"vector": [1, 2, 3]}]},
        "missing",
        ["items", 1, "id"],
    ),
    "id is a number": (
        "vectors/upsert",
        {"items": [{**ITEM, "id": 5}]},
        "string_type",
        ["items", 0, "id"],
    ),
    "id is null": (
        "vectors/upsert",
        {"items": [{**ITEM, "id": None}]},
        "string_type",
        ["items", 0, "id"],
    ),
    "vector is text": (
        "vectors/upsert",
        {"items": [{**ITEM, "vector": "123"}]},
        "list_type",
        ["items", 0, "vector"],
    ),
    "element is text": (
        "vectors/upsert",
        {"items": [{**ITEM, "vector": [1, 2, "3"]}]},
        "float_type",
        ["items", 0, "vector", 2],
    ),
    "element is true": (
        "vectors/upsert",
        {"items": [{**ITEM, "vector": [1, True, 3]}]},
        "float_type",
        ["items", 0, "vector", 1],
    ),
    "element is null": (
        "vectors/upsert",
        {"items": [{**ITEM, "vector": [None, 2, 3]}]},
        "float_type",
        ["items", 0, "vector", 0],
    ),
    "vector is nested": (
        "vectors/upsert",
        {"items": [{**ITEM, "vector": [[1, 2, 3]]}]},
        "float_type",
        ["items", 0, "vector", 0],
    ),
    "contents is a number": (
        "vectors/upsert",
        {"items": [{**ITEM, "contents": 5}]},
        "string_type",
        ["items", 0, "contents"],
    ),
    "contents is a list": (
        "vectors/upsert",
        {"items": [{**ITEM, "contents": ["x"]}]},
        "string_type",
        ["items", 0, "contents"],
    ),
    "metadata is a list": (
        "vectors/upsert",
        {"items": [{**ITEM, "metadata": [1]}]},
        "dict_type",
        ["items", 0, "metadata"],
    ),
    "metadata is text": (
        "vectors/upsert",
        {"items": [{**ITEM, "metadata": "x"}]},
        "dict_type",
        ["items", 0, "metadata"],
    ),
    "query vector is text": (
        "vectors/query",
        {"query_vectors": "1,2"},
        "list_type",
        ["query_vectors"],
    ),
    "query vector is an object": (
        "vectors/query",
        {"query_vectors": {"0": 1}},
        "list_type",
        ["query_vectors"],
    ),
    "query element is text": (
        "vectors/query",
        {"query_vectors": [1, "2", 3]},
        "float_type",
        ["query_vectors", 1],
    ),
    "query element is true": (
        "vectors/query",
        {"query_vectors": [1, True, 3]},
        "float_type",
        ["query_vectors", 1],
    ),
    "query element of a row": (
        "vectors/query",
        {"query_vectors": [[1, "2", 3]]},
        "float_type",
        ["query_vectors", 0, 1],
    ),
    "rows and numbers": (
        "vectors/query",
        {"query_vectors": [[1, 2, 3], 4]},
        "list_type",
        ["query_vectors", 1],
    ),
    "numbers and rows": (
        "vectors/query",
        {"query_vectors": [4, [1, 2, 3]]},
        "list_type",
        ["query_vectors", 0],
    ),
    "three levels": (
        "vectors/query",
        {"query_vectors": [[[1, 2, 3]]]},
        "float_type",
        ["query_vectors", 0, 0],
    ),
    "query text is a number": (
        "vectors/query",
        {"query_contents": 5},
        "string_type",
        ["query_contents"],
    ),
    "top_k is text": ("vectors/query", {"top_k": "5"}, "int_type", ["top_k"]),
    "top_k is true": ("vectors/query", {"top_k": True}, "int_type", ["top_k"]),
    "top_k is a fraction": ("vectors/query", {"top_k": 1.5}, "int_from_float", ["top_k"]),
    "n_probes is text": ("vectors/query", {"n_probes": "1"}, "int_type", ["n_probes"]),
    "n_probes is a fraction": ("vectors/query", {"n_probes": 0.5}, "int_from_float", ["n_probes"]),
    "rerank_mult is false": ("vectors/query", {"rerank_mult": False}, "int_type", ["rerank_mult"]),
    "rerank_mult is a fraction": (
        "vectors/query",
        {"rerank_mult": 2.5},
        "int_from_float",
        ["rerank_mult"],
    ),
    "greedy is text": ("vectors/query", {"greedy": "yes"}, "bool_type", ["greedy"]),
    "filters is a list": ("vectors/query", {"filters": []}, "dict_type", ["filters"]),
    "filters is text": ("vectors/query", {"filters": "a = 1"}, "dict_type", ["filters"]),
    "include is null": ("vectors/query", {"include": None}, "list_type", ["include"]),
    "include is text": ("vectors/query", {"include": "distance"}, "list_type", ["include"]),
    "include holds a number": (
        "vectors/query",
        {"include": ["distance", 1]},
        "string_type",
        ["include", 1],
    ),
    "get without ids": ("vectors/get", {}, "missing", ["ids"]),
    "get with null": ("vectors/get", {"ids": None}, "list_type", ["ids"]),
    "get with text": ("vectors/get", {"ids": "a"}, "list_type", ["ids"]),
    "get with a number": ("vectors/get", {"ids": ["a", 1]}, "string_type", ["ids", 1]),
    "get with include null": (
        "vectors/get",
        {"ids": ["a"], "include": None},
        "list_type",
        ["include"],
    ),
    "no batch": ("vectors/upsert_binary", {}, "missing", ["batch"]),
    "batch is a list": ("vectors/upsert_binary", {"batch": [ITEM]}, "dict_type", ["batch"]),
    "batch without ids": (
        "vectors/upsert_binary",
        {"batch": {"vectors_b64": "", "dimension": 3}},
        "missing",
        ["batch", "ids"],
    ),
    "packed vectors are a list": (
        "vectors/upsert_binary",
        {"batch": {"ids": ["a"], "vectors_b64": [1], "dimension": 3}},
        "string_type",
        ["batch", "vectors_b64"],
    ),
    "packed dimension is a fraction": (
        "vectors/upsert_binary",
        {"batch": {"ids": ["a"], "vectors_b64": "", "dimension": 1.5}},
        "int_from_float",
        ["batch", "dimension"],
    ),
    "packed contents are a number": (
        "vectors/upsert_binary",
        {"batch": {"ids": ["a"], "vectors_b64": "", "dimension": 3, "contents": [5]}},
        "string_type",
        ["batch", "contents", 0],
    ),
    "query without batch": ("vectors/query_binary", {}, "missing", ["batch"]),
    "batch without dimension": (
        "vectors/query_binary",
        {"batch": {"vectors_b64": ""}},
        "missing",
        ["batch", "dimension"],
    ),
    "packed dimension is null": (
        "vectors/query_binary",
        {"batch": {"vectors_b64": "", "dimension": None}},
        "int_type",
        ["batch", "dimension"],
    ),
    "packed top_k is text": (
        "vectors/query_binary",
        {"batch": {"vectors_b64": "", "dimension": 3}, "top_k": "5"},
        "int_type",
        ["top_k"],
    ),
    "delete without ids": ("vectors/delete", {}, "missing", ["ids"]),
    "delete with null inside": ("vectors/delete", {"ids": [None]}, "string_type", ["ids", 0]),
}


@pytest.mark.parametrize("case", WRONG_TYPES.values(), ids=WRONG_TYPES)
async def test_a_field_of_a_wrong_type_is_named(
    client: httpx.AsyncClient, case: tuple[str, dict[str, Any], str, list[Any]]
) -> None:
    route, fields, kind, loc = case
    body = {"index_name": "any", "index_key": KEY, **fields}
    (problem,) = check_error(await client.post(f"/v1/{route}", json=body), 422)
    assert (problem["type"], problem["loc"]) == (kind, ["body", *loc])


NO_NUMBERS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "-1e400",
    "01",
    "1.",
    ".5",
    "+1",
    "0x10",
    "9" * 400,
]


@pytest.mark.parametrize("number", NO_NUMBERS)
@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("vectors/upsert", '"items":[{"id":"a","vector":[1,%s,3]}]'),
        ("vectors/query", '"query_vectors":[1,%s,3]'),
        ("vectors/query", '"query_vectors":[[1,%s,3]]'),
    ],
)
async def test_a_vector_holds_nothing_but_finite_numbers(
    index: Any, route: str, fields: str, number: str
) -> None:
    check_error(await index.post_text(route, fields % number), 400, 422)
    assert (await index.post("vectors/num_vectors")).json() == {"result": 0}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "9" * 5000])
@pytest.mark.parametrize("metadata", ['{"x":%s}', '{"x":[%s]}', '{"x":{"y":%s}}'])
async def test_metadata_holds_nothing_but_finite_numbers(
    index: Any, metadata: str, number: str
) -> None:
    item = '"items":[{"id":"a","vector":[1,2,3],"metadata":' + metadata % number + "}]"
    check_error(await index.post_text("vectors/upsert", item), 400, 422)


@pytest.mark.parametrize("number", ["NaN", "1e400", "9" * 5000])
@pytest.mark.parametrize("name", ["top_k", "n_probes", "rerank_mult"])
async def test_a_count_is_a_finite_number(index: Any, name: str, number: str) -> None:
    check_error(
        await index.post_text("vectors/query", f'"query_vectors":[1,2,3],"{name}":{number}'),
        400,
        422,
    )


# ---------------------------------------------------------------- well-formed, but refused

BAD_ITEMS: dict[str, list[dict[str, Any]]] = {
    "nothing": [],
    "too short": [{"id": "a", "vector": [1, 2]}],
    "too long": [{"id": "a", "vector": [1, 2, 3, 4]}],
    "empty vector": [{"id": "a", "vector": []}],
    "no vector": [{"id": "a"}],
    "null vector": [{"id": "a", "vector": None}],
    "text alone": [{"id": "a", "contents": "text"}],
    "ragged": [{"id": "a", "vector": [1, 2, 3]}, {"id": "b", "vector": [1, 2]}],
    "one without vector": [{"id": "a", "vector": [1, 2, 3]}, {"id": "b"}],
    "above float32": [{"id": "a", "vector": [1, 1e39, 3]}],
    "below float32": [{"id": "a", "vector": [1, -1e39, 3]}],
    "sum above float32": [{"id": "a", "vector": [3e38, 3e38, 3.5e38]}],
    "huge integer": [{"id": "a", "vector": [1, 10**40, 3]}],
    "empty id": [{"id": "", "vector": [1, 2, 3]}],
    "long id": [{"id": "x" * 1025, "vector": [1, 2, 3]}],
    "long id in bytes": [{"id": "é" * 513, "vector": [1, 2, 3]}],
}


@pytest.mark.parametrize("items", BAD_ITEMS.values(), ids=BAD_ITEMS)
async def test_a_bad_item_refuses_the_whole_upsert(index: Any, items: list[dict[str, Any]]) -> None:
    good = [] if not items else [{"id": "good", "vector": [1, 2, 3]}]
    check_error(await index.post("vectors/upsert", items=[*good, *items]), 400)
    assert (await index.post("vectors/list_ids")).json() == {"ids": [], "count": 0}


BAD_QUERIES: dict[str, dict[str, Any]] = {
    "no vector": {"query_vectors": None},
    "empty vector": {"query_vectors": []},
    "empty row": {"query_vectors": [[]]},
    "text without a model": {"query_vectors": None, "query_contents": "hello"},
    "too short": {"query_vectors": [1, 2]},
    "too long": {"query_vectors": [[1, 2, 3, 4]]},
    "ragged": {"query_vectors": [[1, 2, 3], [1, 2]]},
    "ragged the other way": {"query_vectors": [[1, 2], [1, 2, 3]]},
    "above float32": {"query_vectors": [1e39, 2, 3]},
    "top_k 0": {"top_k": 0},
    "top_k -1": {"top_k": -1},
    "top_k -1.0": {"top_k": -1.0},
    "top_k 2^31": {"top_k": 2**31},
    "top_k 2^63": {"top_k": 2**63},
    "top_k 2^64": {"top_k": 2**64},
    "top_k 1e30": {"top_k": 1e30},
    "n_probes -1": {"n_probes": -1},
    "n_probes 2^63": {"n_probes": 2**63},
    "rerank_mult -1": {"rerank_mult": -1},
    "rerank_mult 2^31": {"rerank_mult": 2**31},
    "text": {"text": "words"},
}


@pytest.mark.parametrize("fields", BAD_QUERIES.values(), ids=BAD_QUERIES)
@pytest.mark.parametrize("is_filled", [False, True], ids=["empty index", "filled index"])
async def test_a_query_that_cannot_be_answered_is_refused(
    index: Any, fields: dict[str, Any], is_filled: bool
) -> None:
    if is_filled:
        assert (await index.post("vectors/upsert", items=[ITEM])).status_code == 200
    check_error(await index.post("vectors/query", **({"query_vectors": [1, 2, 3]} | fields)), 400)


BAD_INDEXES: dict[str, dict[str, Any]] = {
    "empty name": {"index_name": ""},
    "long name": {"index_name": "x" * 256},
    "reserved name": {"index_name": "default"},
    "newline in name": {"index_name": "a\nb"},
    "null character in name": {"index_name": "a\0b"},
    "escape in name": {"index_name": "a\x1bb"},
    "delete in name": {"index_name": "a\x7fb"},
    "no key": {"index_key": None},
    "empty key": {"index_key": ""},
    "key is no hex": {"index_key": "z" * 64},
    "key of odd length": {"index_key": OTHER_KEY[1:]},
    "key too short": {"index_key": OTHER_KEY[2:]},
    "key too long": {"index_key": OTHER_KEY + "00"},
    "key with spaces": {"index_key": " ".join(["ab"] * 32)},
    "key with a newline": {"index_key": OTHER_KEY + "\n"},
    "key with 0x": {"index_key": "0x" + OTHER_KEY},
    "key in other digits": {"index_key": "\uff10" * 64},
    "negative dimension": {"dimension": -1},
    "dimension 65536": {"dimension": 65_536},
    "dimension 2^64": {"dimension": 2**64},
    "dimension 1e20": {"dimension": 1e20},
    "negative legacy dimension": {"index_config": {"dimension": -1}},
    "negative legacy n_lists": {"index_config": {"n_lists": -1}},
    "huge legacy n_lists": {"index_config": {"n_lists": 2**70}},
    "unknown metric": {"metric": "manhattan"},
    "metric in capitals": {"metric": "Cosine"},
    "unknown legacy metric": {"index_config": {"metric": "manhattan"}},
    "kms_name": {"kms_name": "slot"},
    "kms_name alone": {"kms_name": "slot", "index_key": None},
    "embedding model": {"embedding_model": "all-MiniLM-L6-v2"},
    "text_fields": {"text_fields": ["a"]},
    "bm25_k1": {"bm25_k1": 0},
    "bm25_b": {"bm25_b": 0.5},
    "odd sketch_bits": {"sketch_bits": 100},
    "negative sketch_bits": {"sketch_bits": -8},
    "huge sketch_bits": {"sketch_bits": 2**40},
    "too much noise": {"sketch_noise": 0.5},
    "negative noise": {"sketch_noise": -0.1},
}


@pytest.mark.parametrize("precision", ["tq12", "tq8", "tq6", "tq4"])
async def test_a_precision_that_is_not_offered_is_told_which_are(
    client: httpx.AsyncClient, precision: str
) -> None:
    body = {"index_name": "not made", "index_key": KEY, "storage_precision": precision}
    answer = await client.post("/v1/indexes/create", json=body)
    check_error(answer, 400)
    assert answer.json() == {
        "detail": f"storage_precision {precision} is not offered: choose float32 or float16"
    }


@pytest.mark.parametrize("fields", BAD_INDEXES.values(), ids=BAD_INDEXES)
async def test_an_index_that_cannot_be_is_refused(
    client: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    body = {"index_name": "not made", "index_key": OTHER_KEY, **fields}
    check_error(await client.post("/v1/indexes/create", json=body), 400)
    assert body["index_name"] not in (await client.get("/v1/indexes/list")).json()["indexes"]


async def test_a_taken_name_is_a_conflict_whatever_the_key(index: Any) -> None:
    check_error(await index.post("indexes/create", dimension=3), 409)
    check_error(await index.post("indexes/create", index_key=OTHER_KEY), 409)
    assert (await index.post("indexes/describe")).status_code == 200


# Fields that satisfy the schema of every route.
WHOLE = {
    "items": [ITEM],
    "ids": ["a"],
    "query_vectors": [1, 2, 3],
    "batch": {"ids": ["a"], "vectors_b64": "AACAPwAAgD8AAIA/", "dimension": 3},
}
BAD_KEYS = {
    "wrong": (OTHER_KEY, 401),
    "none": (None, 401),
    "empty": ("", 401),
    "no hex": ("z" * 64, 400),
    "odd length": (KEY[1:], 400),
    "31 bytes": (KEY[2:], 400),
    "33 bytes": (KEY + "00", 400),
    "not ASCII": ("é" * 64, 400),
    "null characters": ("\0" * 64, 400),
}


@pytest.mark.parametrize("route", ROUTES[1:])
@pytest.mark.parametrize(("key", "status"), BAD_KEYS.values(), ids=BAD_KEYS)
async def test_a_bad_index_key_opens_nothing(
    index: Any, route: str, key: str | None, status: int
) -> None:
    check_error(await index.post(route, index_key=key, **WHOLE), status)
    assert (await index.post("vectors/num_vectors")).json() == {"result": 0}


async def test_a_key_is_the_same_in_upper_case(index: Any) -> None:
    answer = await index.post("vectors/num_vectors", index_key=KEY.upper())
    assert answer.json() == {"result": 0}


@pytest.mark.parametrize("route", ROUTES[1:])
@pytest.mark.parametrize(
    ("name", "status"),
    [("", 400), ("no such index", 404), ("a\0b", 404), ("x" * 10_000, 404), ("\U0001f512", 404)],
)
async def test_an_unknown_index_is_not_found(
    client: httpx.AsyncClient, route: str, name: str, status: int
) -> None:
    answer = await client.post(f"/v1/{route}", json={"index_name": name, "index_key": KEY, **WHOLE})
    check_error(answer, status)
    # A client's deletion of an index counts this text as done.
    assert status != 404 or "not exist" in answer.text
