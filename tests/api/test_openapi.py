"""The OpenAPI document and its page: open to all, whole, and in the protocol's words."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

# From the document that the vendor's SDK 0.17 was generated from.
NAMES = {
    "BatchQueryRequest",
    "BinaryQueryBatch",
    "BinaryQueryRequest",
    "BinaryUpsertRequest",
    "BinaryVectorBatch",
    "CreateIndexRequest",
    "CreateUserRequest",
    "CreateUserResponse",
    "DeleteRequest",
    "ErrorResponseModel",
    "GetRequest",
    "GetResponseModel",
    "GetResultItemModel",
    "HTTPValidationError",
    "IndexInfoResponseModel",
    "IndexListResponseModel",
    "IndexOperationRequest",
    "IndexTrainingStatusResponseModel",
    "ListIDsRequest",
    "ListIDsResponse",
    "ListUsersResponse",
    "QueryRequest",
    "QueryResponse",
    "QueryResultItem",
    "TrainRequest",
    "UpsertRequest",
    "UserInfo",
    "ValidationError",
    "VectorItem",
}
OPERATIONS = {
    "create_index_v1_indexes_create_post",
    "create_user_v1_indexes_index_name_users_post",
    "delete_index_v1_indexes_delete_post",
    "delete_user_v1_indexes_index_name_users_user_id_delete",
    "delete_vectors_v1_vectors_delete_post",
    "get_index_info_v1_indexes_describe_post",
    "get_index_size_v1_vectors_num_vectors_post",
    "get_training_status_v1_indexes_training_status_get",
    "get_vectors_v1_vectors_get_post",
    "health_check_v1_health_get",
    "list_ids_v1_vectors_list_ids_post",
    "list_indexes_v1_indexes_list_get",
    "list_users_v1_indexes_index_name_users_get",
    "query_vectors_binary_v1_vectors_query_binary_post",
    "query_vectors_v1_vectors_query_post",
    "train_index_v1_indexes_train_post",
    "upsert_vectors_binary_v1_vectors_upsert_binary_post",
    "upsert_vectors_v1_vectors_upsert_post",
}


@pytest.fixture
async def document(guarded_client: httpx.AsyncClient) -> Any:
    answer = await guarded_client.get("/v1/openapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    return answer.json()


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from references(inner)


async def test_schemas_and_operations_have_the_protocols_names(document: Any) -> None:
    assert set(document["components"]["schemas"]) >= NAMES
    assert {operation["operationId"] for _, _, operation in operations(document)} >= OPERATIONS


async def test_operations_have_names_of_their_own(document: Any) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in names)


async def test_every_reference_leads_somewhere(document: Any) -> None:
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    found = set(references(document))
    assert found <= known
    assert len(found) > 20


async def test_bodies_are_described_with_what_they_require(document: Any) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["UpsertRequest"]["required"] == ["index_name", "items"]
    assert schemas["VectorItem"]["required"] == ["id"]
    assert {"type": "integer"} in schemas["QueryRequest"]["properties"]["top_k"]["anyOf"]
    for path, method, operation in operations(document):
        assert ("requestBody" in operation) == (method == "post"), path


async def test_errors_are_described(document: Any) -> None:
    for path, method, operation in operations(document):
        expected = {"400", "401", "403", "404", "409", "429", "503"}
        if path in {"/v1/health", "/v1/ready"}:
            expected = {"503"} if path == "/v1/ready" else set()
            assert operation["security"] == []
        if method == "post":
            expected |= {"408", "413", "422"}
        assert set(operation["responses"]) - {"200", "204"} == expected, path


async def test_no_schema_name_of_ours_is_left(document: Any) -> None:
    assert not [name for name in document["components"]["schemas"] if name.endswith("Answer")]


@pytest.mark.parametrize("path", ["/v1/docs", "/v1/redoc"])
async def test_the_page_is_open_and_needs_nothing_from_elsewhere(
    guarded_client: httpx.AsyncClient, path: str
) -> None:
    answer = await guarded_client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert 'fetch("openapi.json")' in answer.text
    assert "//" not in re.sub(r"/\*.*?\*/", "", answer.text)
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)", answer.text)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
