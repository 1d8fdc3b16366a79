"""Filters and metadata schemas over HTTP."""

from typing import Any

import pytest

from tests.api.conftest import KEY, RemoteIndex
from tests.api.test_binary import packed

ITEMS = [
    {
        "id": "a",
        "vector": [1, 2, 3],
        "metadata": {"name": "Alice", "tags": ["x", "y"], "age": 30, "loc": {"city": "Oslo"}},
    },
    {
        "id": "b",
        "vector": [2, 2, 3],
        "metadata": {"name": "Bob", "tags": ["y"], "age": 40, "ok": False, "none": None},
    },
    {"id": "c", "vector": [3, 2, 3], "metadata": {"born": 1_767_225_600_000}},
    {"id": "d", "vector": [4, 2, 3]},
]
QUERY = {"query_vectors": [0, 0, 0]}


@pytest.fixture
async def filled(index: RemoteIndex) -> RemoteIndex:
    assert (await index.post("vectors/upsert", items=ITEMS)).status_code == 200
    return index


async def ids(index: RemoteIndex, **fields: Any) -> Any:
    answer = await index.post("vectors/query", **{**QUERY, **fields})
    assert answer.status_code == 200, answer.text
    return [result["id"] for result in answer.json()["results"]]


async def test_a_filter_narrows_a_query_and_changes_neither_order_nor_distances(
    filled: RemoteIndex,
) -> None:
    include = ["distance", "metadata"]
    every = (await filled.post("vectors/query", **QUERY, include=include)).json()["results"]
    some = (
        await filled.post(
            "vectors/query", **QUERY, include=include, filters={"name": {"$exists": True}}
        )
    ).json()
    assert some["results"] == every[:2]


async def test_each_query_of_a_batch_is_filtered(filled: RemoteIndex) -> None:
    answer = await filled.post(
        "vectors/query", query_vectors=[[0, 0, 0], [9, 9, 9]], filters={"tags": "y"}
    )
    assert answer.json() == {"results": [[{"id": "a"}, {"id": "b"}], [{"id": "b"}, {"id": "a"}]]}


async def test_packed_queries_are_filtered_alike(filled: RemoteIndex) -> None:
    batch = {"vectors_b64": packed([[0, 0, 0], [9, 9, 9]]), "dimension": 3}
    answer = await filled.post("vectors/query_binary", batch=batch, filters={"tags": "y"})
    assert answer.json() == {"results": [[{"id": "a"}, {"id": "b"}], [{"id": "b"}, {"id": "a"}]]}
    refused = await filled.post(
        "vectors/query_binary", batch=batch, filters={"tags": {"$like": "y"}}
    )
    assert (refused.status_code, "$like" in refused.text) == (400, True)


async def test_dates_are_compared_as_epoch_milliseconds(filled: RemoteIndex) -> None:
    assert await ids(
        filled, filters={"born": {"$gte": 1_767_225_600_000, "$lt": 1_798_761_600_000}}
    ) == ["c"]


@pytest.mark.parametrize("filters", [None, {}])
async def test_no_filter_is_no_filter(filled: RemoteIndex, filters: Any) -> None:
    assert await ids(filled, filters=filters) == ["a", "b", "c", "d"]
    assert (await filled.post("vectors/num_vectors", filters=filters)).json() == {"result": 4}


async def test_a_count_takes_a_filter(filled: RemoteIndex) -> None:
    for filters, n_items in (
        ({"tags": "y"}, 2),
        ({"age": {"$lt": 35}}, 1),
        ({"$not": {"name": "Bob"}}, 3),
    ):
        assert (await filled.post("vectors/num_vectors", filters=filters)).json() == {
            "result": n_items
        }


async def test_a_count_of_an_empty_index_is_0(index: RemoteIndex) -> None:
    assert (await index.post("vectors/num_vectors", filters={"a": 1})).json() == {"result": 0}
    assert await ids(index, filters={"a": 1}) == []


async def test_what_is_replaced_or_deleted_is_no_longer_found(filled: RemoteIndex) -> None:
    await filled.post(
        "vectors/upsert", items=[{"id": "a", "vector": [1, 2, 3], "metadata": {"name": "Carol"}}]
    )
    assert await ids(filled, filters={"name": "Alice"}) == []
    assert await ids(filled, filters={"name": "Carol"}) == ["a"]
    await filled.post("vectors/delete", ids=["a"])
    assert await ids(filled, filters={"name": "Carol"}) == []


@pytest.mark.parametrize("depth", [100, 900])
async def test_a_filter_may_be_nested_900_deep(filled: RemoteIndex, depth: int) -> None:
    answer = await filled.post_text("vectors/query", nested(depth))
    assert answer.json() == {"results": [{"id": "b"}]}


@pytest.mark.parametrize("depth", [1_000, 1_100, 5_000, 100_000])
async def test_a_filter_cannot_be_nested_deeper_than_1000(index: RemoteIndex, depth: int) -> None:
    answer = await index.post_text("vectors/query", nested(depth))
    assert answer.status_code == 400, answer.text
    assert "nested" in answer.json()["detail"]


def nested(depth: int) -> str:
    return (
        '"query_vectors":[0,0,0],"filters":' + '{"$not":' * depth + '{"name":"Bob"}' + "}" * depth
    )


# What is wrong → filter, a part of the answer.
MALFORMED: dict[str, tuple[Any, str]] = {
    "unknown operator": ({"f": {"$near": 1}}, "filters.f.$near"),
    "$all": ({"f": {"$all": [1]}}, "filters.f.$all"),
    "$size": ({"f": {"$size": 1}}, "filters.f.$size"),
    "$elemMatch": ({"f": {"$elemMatch": {"a": 1}}}, "filters.f.$elemMatch"),
    "$options": ({"f": {"$regex": "a", "$options": "i"}}, "filters.f.$options"),
    "$mod": ({"f": {"$mod": [2, 0]}}, "filters.f.$mod"),
    "$and on a field": ({"f": {"$and": [{"$gt": 1}]}}, "filters.f.$and"),
    "$or on a field": ({"f": {"$or": []}}, "filters.f.$or"),
    "$where": ({"$where": "this.f"}, "filters.$where"),
    "$text": ({"$text": {"$search": "a"}}, "filters.$text"),
    "$eq at the top": ({"$eq": 1}, "filters.$eq"),
    "$in at the top": ({"$in": [1]}, "filters.$in"),
    "$ alone": ({"$": 1}, "filters.$"),
    "upper case": ({"$AND": []}, "filters.$AND"),
    "$and is an object": ({"$and": {"f": 1}}, "filters.$and: takes a list"),
    "$or is null": ({"$or": None}, "filters.$or: takes a list"),
    "$nor is text": ({"$nor": "f"}, "filters.$nor: takes a list"),
    "$and of numbers": ({"$and": [1]}, "filters.$and[0]: a filter must be an object"),
    "$or of lists": ({"$or": [{"f": 1}, []]}, "filters.$or[1]: a filter must be an object"),
    "$nor of null": ({"$nor": [None]}, "filters.$nor[0]: a filter must be an object"),
    "$not is a list": ({"$not": [{"f": 1}]}, "filters.$not: takes a filter"),
    "$not is null": ({"$not": None}, "filters.$not: takes a filter"),
    "$not of a value": ({"f": {"$not": 1}}, "filters.f.$not: takes an object of operators"),
    "$not of nothing": ({"f": {"$not": {}}}, "filters.f.$not: takes an object of operators"),
    "empty condition": ({"f": {}}, "filters.f: an empty condition"),
    "mixed": ({"f": {"$gt": 1, "a": 2}}, "filters.f: operators"),
    "operator in a value": (
        {"f": {"a": {"$gt": 1}}},
        "filters.f.a.$gt: an operator cannot stand inside a value",
    ),
    "$gt text": ({"f": {"$gt": "2026-01-01"}}, "filters.f.$gt: takes a finite number"),
    "$gte true": ({"f": {"$gte": True}}, "filters.f.$gte: takes a finite number"),
    "$lt null": ({"f": {"$lt": None}}, "filters.f.$lt: takes a finite number"),
    "$lte list": ({"f": {"$lte": [1]}}, "filters.f.$lte: takes a finite number"),
    "$gt object": ({"f": {"$gt": {"a": 1}}}, "filters.f.$gt: takes a finite number"),
    "$in null": ({"f": {"$in": None}}, "filters.f.$in: takes a list"),
    "$in object": ({"f": {"$in": {"a": 1}}}, "filters.f.$in: takes a list"),
    "$nin null": ({"f": {"$nin": None}}, "filters.f.$nin: takes a list"),
    "$exists number": ({"f": {"$exists": 1}}, "filters.f.$exists: takes true or false"),
    "$exists null": ({"f": {"$exists": None}}, "filters.f.$exists: takes true or false"),
    "$exists text": ({"f": {"$exists": "yes"}}, "filters.f.$exists: takes true or false"),
    "$type unknown": ({"f": {"$type": "int"}}, "filters.f.$type: takes one of"),
    "$type null": ({"f": {"$type": None}}, "filters.f.$type: takes one of"),
    "$type list": ({"f": {"$type": ["string"]}}, "filters.f.$type: takes one of"),
    "$contains number": ({"f": {"$contains": 1}}, "filters.f.$contains: takes a string"),
    "$contains null": ({"f": {"$contains": None}}, "filters.f.$contains: takes a string"),
    "$regex number": ({"f": {"$regex": 1}}, "filters.f.$regex: takes a regular expression"),
    "$regex null": ({"f": {"$regex": None}}, "filters.f.$regex: takes a regular expression"),
    "$regex open group": ({"f": {"$regex": "(a"}}, "filters.f.$regex: no regular expression"),
    "$regex bad range": ({"f": {"$regex": "[z-a]"}}, "filters.f.$regex: no regular expression"),
    "$regex lookahead": ({"f": {"$regex": "a(?=b)"}}, "filters.f.$regex: no regular expression"),
    "$regex huge": (
        {"f": {"$regex": "(a{1000}){1000}"}},
        "filters.f.$regex: no regular expression",
    ),
    "deep inside": (
        {"$and": [{"$or": [{"$nor": [{"a.b": {"$foo": 1}}]}]}]},
        "filters.$and[0].$or[0].$nor[0].a.b.$foo",
    ),
}


@pytest.mark.parametrize(("filters", "message"), MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("route", ["query", "num_vectors"])
async def test_a_malformed_filter_is_refused_and_told_why(
    index: RemoteIndex, route: str, filters: dict[str, Any], message: str
) -> None:
    answer = await index.post(f"vectors/{route}", **QUERY, filters=filters)
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["detail"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 5_000])
@pytest.mark.parametrize(
    "filters", ['{"f":%s}', '{"f":{"$gt":%s}}', '{"$and":[{"f":{"$in":[1,%s]}}]}']
)
async def test_a_number_that_is_none_is_a_400(
    index: RemoteIndex, filters: str, number: str
) -> None:
    answer = await index.post_text(
        "vectors/query", '"query_vectors":[1,2,3],"filters":' + filters % number
    )
    assert answer.status_code == 400, answer.text
    assert answer.json() == {"detail": "filters: every number must be finite"}


@pytest.mark.parametrize(
    "fields", ['"query_vectors":[NaN],"filters":{"f":1}', '"other":NaN,"filters":{"f":NaN}']
)
async def test_a_number_that_is_none_elsewhere_is_a_422(index: RemoteIndex, fields: str) -> None:
    assert (await index.post_text("vectors/query", fields)).status_code == 422


@pytest.mark.parametrize("filters", [[], "a = 1", 5, True])
@pytest.mark.parametrize("route", ["query", "num_vectors"])
async def test_filters_that_are_no_object_are_a_422(
    index: RemoteIndex, route: str, filters: Any
) -> None:
    assert (await index.post(f"vectors/{route}", **QUERY, filters=filters)).status_code == 422


# ---------------------------------------------------------------- metadata_schema


async def create(client: Any, schema: Any) -> tuple[RemoteIndex, Any]:
    index = RemoteIndex(client, KEY)
    return index, await index.post("indexes/create", dimension=3, metadata_schema=schema)


async def test_a_schema_is_reported_with_every_key(client: Any) -> None:
    index, answer = await create(
        client, {"a.b": {}, "c": {"filterable": False}, "d": {"pattern": True}}
    )
    assert answer.status_code == 200, answer.text
    expected = {
        "a.b": {"filterable": True, "pattern": False, "full_text": False},
        "c": {"filterable": False, "pattern": False, "full_text": False},
        "d": {"filterable": True, "pattern": True, "full_text": False},
    }
    described = (await index.post("indexes/describe")).json()
    assert described == {
        "index_name": index.name,
        "is_trained": False,
        "dimension": 3,
        "metric": "euclidean",
        "n_lists": 1,
        "metadata_schema": expected,
        "bm25": None,
    }
    assert (await index.post("indexes/stats")).json()["metadata_schema"] == expected


@pytest.mark.parametrize("schema", [None, {}])
async def test_an_index_without_a_schema_is_described_as_ever(client: Any, schema: Any) -> None:
    index, answer = await create(client, schema)
    assert answer.status_code == 200
    described = (await index.post("indexes/describe")).json()
    assert list(described) == ["index_name", "is_trained", "dimension", "metric", "n_lists"]
    assert (await index.post("indexes/stats")).json()["metadata_schema"] == {}


async def test_a_schema_never_changes_the_results_of_a_query(client: Any) -> None:
    schema = {
        "name": {"filterable": False},
        "tags": {"pattern": True},
        "loc": {"filterable": False},
    }
    index, _ = await create(client, schema)
    await index.post("vectors/upsert", items=ITEMS)
    assert await ids(index, filters={"name": "Bob"}) == ["b"]
    assert await ids(index, filters={"loc.city": "Oslo", "tags": "x"}) == ["a"]
    assert await ids(index, filters={"tags": {"$regex": "^[xz]$"}}) == ["a"]
    assert (await index.post("vectors/num_vectors", filters={"name": {"$ne": "Bob"}})).json() == {
        "result": 1
    }


BAD_SCHEMAS: dict[str, Any] = {
    "a list": [],
    "text": "a",
    "policy is null": {"a": None},
    "policy is true": {"a": True},
    "policy is a list": {"a": []},
    "unknown key": {"a": {"filterable": True, "sortable": True}},
    "filterable is text": {"a": {"filterable": "yes"}},
    "filterable is null": {"a": {"filterable": None}},
    "pattern is a number": {"a": {"pattern": 1}},
    "pattern without filterable": {"a": {"filterable": False, "pattern": True}},
    "full_text with pattern": {"a": {"full_text": True, "pattern": True}},
    "full_text with filterable": {"a": {"full_text": True, "filterable": True}},
    "empty name": {"": {}},
    "blank name": {" \t": {}},
}


@pytest.mark.parametrize("schema", BAD_SCHEMAS.values(), ids=BAD_SCHEMAS)
async def test_a_schema_that_does_not_fit_is_a_422(client: Any, schema: Any) -> None:
    index, answer = await create(client, schema)
    assert answer.status_code == 422, answer.text
    (problem,) = answer.json()["detail"]
    assert problem["loc"][:2] == ["body", "metadata_schema"]
    assert (await index.post("indexes/describe")).status_code == 404


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"a": {"full_text": True}}, "full_text is not supported"),
        ({f"f{number}": {} for number in range(1_001)}, "at most 1000 fields"),
        ({"a" * 1_025: {}}, "at most 1024 characters"),
    ],
    ids=["full_text", "fields", "name"],
)
async def test_a_schema_that_cannot_be_honoured_is_a_400(
    client: Any, schema: Any, message: str
) -> None:
    _, answer = await create(client, schema)
    assert answer.status_code == 400
    assert message in answer.json()["detail"]
