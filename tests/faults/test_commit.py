"""The connection to the database is cut at the worst moment.

The client is told, and may repeat what it sent.
"""

from typing import Any

import pytest

from tests.api.conftest import RemoteIndex
from tests.faults.postgres import COMMIT, Way

ITEMS = [
    {"id": str(number), "vector": [number, 1], "contents": f"item {number}"} for number in range(50)
]
# What is new goes straight to its place, what may be stored by way of a temporary table.
COPY, COPY_KNOWN = b"COPY items_", b"COPY incoming"
IN_DOUBT = (
    "The connection to the database was lost while it was told to commit: "
    "whether the change was made is not known. "
    "It is safe to send the same items again"
)


async def ids(index: RemoteIndex) -> set[str]:
    answer = await index.post("vectors/list_ids")
    assert answer.status_code == 200, answer.text
    found = answer.json()["ids"]
    assert (await index.post("vectors/num_vectors")).json() == {"result": len(found)}
    return set(found)


@pytest.mark.parametrize(
    "is_passed_on", [False, True], ids=["before it was done", "after it was done"]
)
async def test_a_commit_that_is_cut_is_in_doubt_and_may_be_repeated(
    index_on_the_way: RemoteIndex, way: Way, is_passed_on: bool
) -> None:
    with way.cutting(COPY, COMMIT, is_passed_on=is_passed_on):
        answer = await index_on_the_way.post("vectors/upsert", items=ITEMS)
    assert (answer.status_code, answer.json(), answer.headers["Retry-After"]) == (
        503,
        {"detail": IN_DOUBT},
        "1",
    )
    wanted = {item["id"] for item in ITEMS}
    assert await ids(index_on_the_way) == {"before"} | (wanted if is_passed_on else set())
    assert (await index_on_the_way.post("vectors/upsert", items=ITEMS)).status_code == 200
    assert await ids(index_on_the_way) == {"before"} | wanted


@pytest.mark.parametrize(
    "is_passed_on", [False, True], ids=["before it was done", "after it was done"]
)
async def test_a_delete_whose_commit_is_cut_may_be_repeated(
    index_on_the_way: RemoteIndex, way: Way, is_passed_on: bool
) -> None:
    with way.cutting(b"DELETE FROM items_", COMMIT, is_passed_on=is_passed_on):
        answer = await index_on_the_way.post("vectors/delete", ids=["before"])
    assert (answer.status_code, answer.json()) == (503, {"detail": IN_DOUBT})
    assert await ids(index_on_the_way) == (set() if is_passed_on else {"before"})
    assert (await index_on_the_way.post("vectors/delete", ids=["before"])).status_code == 200
    assert await ids(index_on_the_way) == set()


@pytest.mark.parametrize(("is_passed_on", "repeated"), [(False, 200), (True, 409)])
async def test_an_index_whose_creation_was_in_doubt_is_there_or_is_made_when_asked_for_again(
    index_on_the_way: RemoteIndex, way: Way, is_passed_on: bool, repeated: int
) -> None:
    other = RemoteIndex(index_on_the_way.client)
    with way.cutting(b"INSERT INTO indexes", COMMIT, is_passed_on=is_passed_on):
        answer = await other.post("indexes/create", dimension=2)
    assert (answer.status_code, answer.json()) == (503, {"detail": IN_DOUBT})
    assert (await other.post("indexes/create", dimension=2)).status_code == repeated
    assert (await other.post("vectors/upsert", items=ITEMS)).status_code == 200
    assert len(await ids(other)) == len(ITEMS)


STATEMENTS: dict[str, tuple[bytes, str, dict[str, Any]]] = {
    "in the middle of an upsert": (COPY, "vectors/upsert", {"items": ITEMS}),
    "in the middle of an update": (
        COPY_KNOWN,
        "vectors/upsert",
        {"items": [{"id": "before", "vector": [7, 1]}]},
    ),
    "in a delete": (b"DELETE FROM items_", "vectors/delete", {"ids": ["before"]}),
    "in a query": (b"<~>", "vectors/query", {"query_vectors": [1, 2]}),
    "in a query with a filter": (
        b"tokens",
        "vectors/query",
        {"query_vectors": [1, 2], "filters": {"a": "x"}},
    ),
    "in a list": (b"sealed_ids", "vectors/list_ids", {}),
    "in a get": (b"sealed_vector", "vectors/get", {"ids": ["before"]}),
}


@pytest.mark.parametrize(("statement", "route", "fields"), STATEMENTS.values(), ids=STATEMENTS)
@pytest.mark.parametrize("is_passed_on", [False, True])
async def test_a_statement_that_is_cut_changes_nothing(
    index_on_the_way: RemoteIndex,
    way: Way,
    statement: bytes,
    route: str,
    fields: dict[str, Any],
    is_passed_on: bool,
) -> None:
    with way.cutting(statement, statement, is_passed_on=is_passed_on):
        answer = await index_on_the_way.post(route, **fields)
    assert (answer.status_code, answer.json()) == (503, {"detail": "The database does not answer"})
    assert await ids(index_on_the_way) == {"before"}
    assert (await index_on_the_way.post(route, **fields)).status_code == 200
