"""What holds for every route: paths, methods, limits, request ids."""

import asyncio
from typing import Any

import httpx
import pytest

KEY = bytes(range(32)).hex()


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/v1", "/v1/nope", "/v1/indexes", "/v1/vectors/nope", "/v2/health"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_an_unknown_route_is_not_found_without_any_key(
    guarded_client: httpx.AsyncClient, method: str, path: str
) -> None:
    answer = await guarded_client.request(method, path)
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/v1/health", "GET"),
        ("HEAD", "/v1/health", "GET"),
        ("OPTIONS", "/v1/health", "GET"),
        ("DELETE", "/v1/indexes/list", "GET"),
        ("GET", "/v1/indexes/create", "POST"),
        ("PUT", "/v1/vectors/upsert", "POST"),
        ("OPTIONS", "/v1/vectors/upsert", "POST"),
        ("BREW", "/v1/vectors/upsert", "POST"),
    ],
)
async def test_a_wrong_method_is_told_the_right_one(
    client: httpx.AsyncClient, method: str, path: str, allow: str
) -> None:
    answer = await client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allow)
    assert method == "HEAD" or answer.json() == {"detail": "Method Not Allowed"}


@pytest.mark.parametrize(
    ("method", "path", "location"),
    [
        ("GET", "/v1/health/", "/v1/health"),
        ("GET", "/v1/health/?a=1&b=%20", "/v1/health?a=1&b=%20"),
        ("GET", "/v1/health///", "/v1/health"),
        ("POST", "/v1/indexes/create/", "/v1/indexes/create"),
    ],
)
async def test_a_trailing_slash_is_redirected(
    client: httpx.AsyncClient, method: str, path: str, location: str
) -> None:
    answer = await client.request(method, path)
    assert (answer.status_code, answer.headers["location"], answer.content) == (307, location, b"")


async def test_a_redirect_never_leads_to_another_host(client: httpx.AsyncClient) -> None:
    answer = await client.get("http://sealdex//v1/health/")
    assert answer.status_code == 404 or answer.headers["location"] == "/v1/health"


async def test_a_redirected_post_works_where_it_leads(index: Any) -> None:
    body = {"index_name": index.name, "index_key": index.key}
    answer = await index.client.post("/v1/vectors/num_vectors/", json=body, follow_redirects=True)
    assert answer.json() == {"result": 0}


async def test_unknown_parameters_and_fields_are_ignored(index: Any) -> None:
    answer = await index.post(
        "vectors/num_vectors?verbose=1", surprise={"a": [1]}, query_vectors="later"
    )
    assert answer.json() == {"result": 0}


async def test_the_last_of_two_equal_fields_counts(index: Any) -> None:
    answer = await index.post_text(
        "vectors/num_vectors", '"index_key":5,"index_key":"' + index.key + '"'
    )
    assert answer.status_code == 422
    answer = await index.post_text(
        "vectors/num_vectors", '"index_key":"00","index_key":"' + index.key + '"'
    )
    assert answer.json() == {"result": 0}


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.sealdex+json"],
)
async def test_json_has_several_names(index: Any, content_type: str) -> None:
    body = f'{{"index_name":"{index.name}","index_key":"{index.key}"}}'
    answer = await index.client.post(
        "/v1/vectors/num_vectors",
        content=body,
        headers={"Content-Type": content_type, "Content-Encoding": "identity"},
    )
    assert answer.json() == {"result": 0}


async def test_health_has_exactly_its_three_fields(guarded_client: httpx.AsyncClient) -> None:
    answer = (await guarded_client.get("/v1/health")).json()
    assert list(answer) == ["status", "api_version", "version"]
    assert (answer["status"], answer["api_version"]) == ("healthy", "v1")


# ---------------------------------------------------------------- request ids


@pytest.mark.parametrize("path", ["/v1/health", "/v1/nope", "/v1/indexes/create", "/v1/health/"])
async def test_every_answer_is_named_as_the_client_names_it(
    client: httpx.AsyncClient, path: str
) -> None:
    answer = await client.get(path, headers={"X-Request-Id": "Trace_1.2-3"})
    assert answer.headers.get_list("x-request-id") == ["Trace_1.2-3"]


@pytest.mark.parametrize("sent", ["", "x" * 129, "a b", "a\tb", "é", '<script>"', "a;b"])
async def test_a_strange_request_id_is_replaced(client: httpx.AsyncClient, sent: str) -> None:
    answer = await client.get("/v1/health", headers={b"X-Request-Id": sent.encode()})
    assert len(answer.headers["x-request-id"]) == 32
    assert answer.headers["x-request-id"].isalnum()


async def test_requests_get_different_ids(client: httpx.AsyncClient) -> None:
    ids = {(await client.get("/v1/health")).headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize("is_announced", [True, False], ids=["with Content-Length", "chunked"])
async def test_a_body_above_the_limit_is_too_large(service: Any, is_announced: bool) -> None:
    body = b'{"index_name":"' + b"x" * 2000 + b'"}'

    async def chunks() -> Any:
        for start in range(0, len(body), 100):
            yield body[start : start + 100]

    async with service(max_body_bytes=1000) as client:
        answer = await client.post(
            "/v1/indexes/describe",
            content=body if is_announced else chunks(),
            headers={"Content-Type": "application/json"},
        )
    assert answer.status_code == 413
    assert list(answer.json()) == ["detail"]


async def test_a_body_above_the_frameworks_own_limit_is_read(index: Any) -> None:
    answer = await index.post("vectors/num_vectors", surprise="x" * 20_000_000)
    assert answer.json() == {"result": 0}


async def test_requests_beyond_the_limit_are_told_to_wait(service: Any) -> None:
    release = asyncio.Event()

    async def slow_body() -> Any:
        yield b"{"
        await release.wait()
        yield b"}"

    async with service(max_requests_in_work=2) as client:
        json_type = {"Content-Type": "application/json"}
        slow = [
            asyncio.create_task(
                client.post("/v1/vectors/get", content=slow_body(), headers=json_type)
            )
            for _ in range(2)
        ]
        await asyncio.sleep(0.05)
        refused = await client.get("/v1/indexes/list")
        healthy = await client.get("/v1/health")
        release.set()
        finished = await asyncio.gather(*slow)
        served = await client.get("/v1/indexes/list")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert list(refused.json()) == ["detail"]
    assert [answer.status_code for answer in (healthy, *finished, served)] == [200, 422, 422, 200]
