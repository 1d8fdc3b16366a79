"""The API key: who gets in, and what those outside are told."""

import httpx
import pytest

KEY = bytes(range(32)).hex()
ROOT_KEY = "example-root-key"
ROUTES = [
    ("GET", "indexes/list"),
    ("POST", "indexes/create"),
    ("POST", "indexes/describe"),
    ("POST", "indexes/delete"),
    ("POST", "indexes/stats"),
    ("POST", "vectors/upsert"),
    ("POST", "vectors/upsert_binary"),
    ("POST", "vectors/query"),
    ("POST", "vectors/query_binary"),
    ("POST", "vectors/get"),
    ("POST", "vectors/delete"),
    ("POST", "vectors/list_ids"),
    ("POST", "vectors/num_vectors"),
]


@pytest.mark.parametrize(("method", "route"), ROUTES)
@pytest.mark.parametrize("body", [b"", b"{bad", b'{"index_name":"a"}'])
async def test_the_api_key_goes_before_everything_else(
    guarded_client: httpx.AsyncClient, method: str, route: str, body: bytes
) -> None:
    answer = await guarded_client.request(method, f"/v1/{route}", content=body)
    assert (answer.status_code, answer.json()) == (401, {"detail": "API Key is required"})
    answer = await guarded_client.request(
        method, f"/v1/{route}", content=body, headers={"X-API-Key": "wrong"}
    )
    assert (answer.status_code, answer.json()) == (401, {"detail": "Invalid API Key"})


@pytest.mark.parametrize(
    "key",
    [
        b"cdbk_1_AAAA",
        "schlüssel".encode(),
        b"\xff\xfe",
        ROOT_KEY.encode() + b"x",
        ROOT_KEY[:-1].encode(),
        ROOT_KEY.upper().encode(),
        b"x" * 10_000,
    ],
)
async def test_any_other_key_is_rejected(guarded_client: httpx.AsyncClient, key: bytes) -> None:
    answer = await guarded_client.get("/v1/indexes/list", headers={b"X-API-Key": key})
    assert (answer.status_code, answer.json()) == (401, {"detail": "Invalid API Key"})


@pytest.mark.parametrize(
    "headers", [{"X-API-Key": ""}, {"Authorization": f"Bearer {ROOT_KEY}"}, {}]
)
async def test_without_a_key_one_is_required(
    guarded_client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    answer = await guarded_client.get("/v1/indexes/list", headers=headers)
    assert (answer.status_code, answer.json()) == (401, {"detail": "API Key is required"})


async def test_the_root_key_opens_everything(guarded_client: httpx.AsyncClient) -> None:
    headers = {"X-API-Key": ROOT_KEY}
    body = {"index_name": "kept", "index_key": KEY}
    assert (
        await guarded_client.post("/v1/indexes/create", json=body, headers=headers)
    ).status_code == 200
    assert (await guarded_client.get("/v1/indexes/list", headers=headers)).json() == {
        "indexes": ["kept"]
    }
    assert (
        await guarded_client.post("/v1/indexes/delete", json=body, headers=headers)
    ).status_code == 200


@pytest.mark.parametrize("key", ["anything", "cdbk_1_AAAA", ""])
async def test_an_open_service_does_not_look_at_the_key(
    client: httpx.AsyncClient, key: str
) -> None:
    assert (await client.get("/v1/indexes/list", headers={"X-API-Key": key})).status_code == 200


async def test_health_is_open_to_everybody(guarded_client: httpx.AsyncClient) -> None:
    assert (
        await guarded_client.get("/v1/health", headers={"X-API-Key": "wrong"})
    ).status_code == 200
