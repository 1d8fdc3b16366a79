"""What holds for every route: paths, methods, limits, request ids."""

import asyncio
from importlib.metadata import version
from typing import Any, cast

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
    answer = await client.get("http://localhost//v1/health/")
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


async def test_health_tells_the_version_of_the_protocol_and_a_header_ours(service: Any) -> None:
    async with service() as client, service(protocol_version="0.18.0") as newer:
        answer = await client.get("/v1/health")
        assert answer.json()["version"].startswith("0.17.")
        assert answer.headers["X-Sealdex-Version"] == version("sealdex")
        assert (await newer.get("/v1/health")).json()["version"] == "0.18.0"


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
    item = {"id": "a", "vector": [1, 2, 3], "contents": "x" * 20_000_000}
    assert (await index.post("vectors/upsert", items=[item])).status_code == 200


@pytest.mark.parametrize("is_announced", [True, False], ids=["with Content-Length", "chunked"])
async def test_only_batches_may_be_large(service: Any, is_announced: bool) -> None:
    async def chunks() -> Any:
        yield b'{"index_name":"' + b"x" * 1_000
        yield b'"}'

    body = b'{"index_name":"' + b"x" * 1_000 + b'"}'
    async with service(max_body_bytes=2_000, max_small_body_bytes=1_000) as client:
        statuses = {}
        for route in ("vectors/upsert", "vectors/query", "vectors/delete", "indexes/describe"):
            answer = await client.post(
                f"/v1/{route}",
                content=body if is_announced else chunks(),
                headers={"Content-Type": "application/json"},
            )
            statuses[route] = answer.status_code
    assert statuses == {
        "vectors/upsert": 422,
        "vectors/query": 413,
        "vectors/delete": 422,
        "indexes/describe": 413,
    }


async def test_a_request_that_takes_too_long_is_given_up(service: Any) -> None:
    async with service(request_timeout_s=0.2, pool_size=1) as client:
        services = cast("Any", client)._transport.app.state.services
        async with services.operations._engine.connect(), asyncio.timeout(30):
            answer = await client.get("/v1/indexes/list")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "took too long" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST.:8000", 200),
        ("app.localhost", 200),
        ("127.0.0.1:8000", 200),
        ("127.8.9.1", 200),
        ("[::1]:8000", 200),
        ("sealdex.example", 200),
        ("sealdex.example:8000", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("192.0.2.1", 403),
        ("evil.example:127", 403),
    ],
)
async def test_an_open_service_answers_to_its_own_names(
    service: Any, host: str, status: int
) -> None:
    async with service(allowed_hosts="sealdex.example, other.example") as client:
        for path in ("/v1/indexes/list", "/v1/health", "/metrics"):
            answer = await client.get(path, headers={"Host": host})
            assert answer.status_code == status, path


async def test_a_service_with_a_key_answers_to_every_name(
    guarded_client: httpx.AsyncClient,
) -> None:
    answer = await guarded_client.get("/v1/health", headers={"Host": "evil.example"})
    assert answer.status_code == 200


async def refusal(client: httpx.AsyncClient) -> httpx.Response:
    """Ask until the service is full; each answer gives the others time to get their places."""
    async with asyncio.timeout(30):
        while True:
            answer = await client.post("/v1/vectors/get")
            if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
                return answer


async def test_requests_beyond_the_limit_are_told_to_wait(service: Any) -> None:
    async with service(max_requests_in_work=2, pool_size=1) as client:
        services = cast("Any", client)._transport.app.state.services
        async with services.operations._engine.connect():
            # They wait for the connection.
            held = [asyncio.create_task(client.get("/v1/indexes/list")) for _ in range(2)]
            refused = await refusal(client)
            healthy = await client.get("/v1/health")
        finished = await asyncio.gather(*held)
        served = await client.get("/v1/indexes/list")
    assert refused.headers["retry-after"] == "1"
    assert list(refused.json()) == ["detail"]
    assert [answer.status_code for answer in (healthy, *finished, served)] == [200] * 4


async def test_bodies_that_arrive_take_no_place_from_others(service: Any) -> None:
    release = asyncio.Event()

    async def slow_body() -> Any:
        yield b"{"
        await release.wait()
        yield b"}"

    async with service(max_requests_in_work=1, max_arriving_bodies=2) as client:
        json_type = {"Content-Type": "application/json"}
        slow = [
            asyncio.create_task(
                client.post("/v1/vectors/get", content=slow_body(), headers=json_type)
            )
            for _ in range(2)
        ]
        refused = await refusal(client)
        served = await client.get("/v1/indexes/list")
        release.set()
        assert {(await one).status_code for one in slow} <= {422, 503}
    assert "not arrived yet" in refused.json()["detail"]
    assert served.status_code == 200
