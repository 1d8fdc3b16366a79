"""Replays the exchanges recorded from the service whose protocol this is."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

EXAMPLES = json.loads((Path(__file__).parent / "examples.json").read_text())

# Exchanges of what is not served yet, by the start of their id. Whoever serves one deletes its
# line.
NOT_SERVED = {
    "upsert-train": "its body is described only; test_training.py sends one",
}

SERVED = [
    exchange
    for exchange in EXAMPLES["exchanges"]
    if not exchange["id"].startswith(tuple(NOT_SERVED))
]


@pytest.fixture(scope="module")
def servers(
    client: httpx.AsyncClient, guarded_client: httpx.AsyncClient
) -> dict[str, httpx.AsyncClient]:
    return {"open": client, "root-key": guarded_client}


@pytest.fixture(scope="module")
def remembered() -> dict[str, str]:
    """What {{NAME}} stands for, from earlier answers."""
    return {}


# They build on each other: run all of them, in this order.
@pytest.mark.parametrize("exchange", SERVED, ids=lambda exchange: exchange["id"])
async def test_exchange(
    exchange: dict[str, Any], servers: dict[str, httpx.AsyncClient], remembered: dict[str, str]
) -> None:
    answer = await send(servers[exchange["server"]], fill_in(exchange["request"], remembered))
    body: Any = answer.json() if answer.content else None
    want = exchange.get("want", {})
    if {"status", "body", "ids"} & set(want):
        check_wanted(want, answer.status_code, body)
    else:
        recorded = fill_in(exchange["response"], remembered)
        assert answer.status_code == recorded["status"], answer.text
        check_body(exchange, recorded["body"], body)
        remember(recorded["body"], body, remembered)
    assert want.get("must_not_contain", EXAMPLES["keys"]["index_key"]) not in answer.text
    for name, value in want.get("body_field", {}).items():
        assert body[name] == value


def test_every_exchange_is_replayed_or_has_a_reason_not_to_be() -> None:
    assert len(SERVED) >= 70
    unused = [
        prefix
        for prefix in NOT_SERVED
        if not any(one["id"].startswith(prefix) for one in EXAMPLES["exchanges"])
    ]
    assert not unused


async def send(client: httpx.AsyncClient, request: dict[str, Any]) -> httpx.Response:
    body: dict[str, Any] = {}
    if "raw_body" in request:
        body["content"] = request["raw_body"].encode()
    elif "body" in request:
        body["content"] = json.dumps(request["body"]).encode()
    return await client.request(
        request["method"], request["path"], headers=request["headers"], **body
    )


def check_wanted(want: dict[str, Any], status: int, body: Any) -> None:
    assert status == want.get("status", 200), body
    if "body" in want:
        assert body == want["body"]
    elif "ids" in want:
        assert [result["id"] for result in body["results"]] == want["ids"]
    elif status >= 400:
        assert_error(body)


def check_body(exchange: dict[str, Any], recorded: Any, body: Any) -> None:
    match exchange["compare"]:
        case "exact":
            assert body == recorded
        case "status":
            assert_error(body)
            assert isinstance(body["detail"], str)
        case "shape":
            assert shape(body) == shape(recorded)
        case "float":
            assert_close(body, recorded, exchange["tolerance"])
        case "unordered":
            assert ordered(body) == ordered(recorded)
        case mode:
            pytest.fail(f"no way to compare: {mode}")


def assert_error(body: Any) -> None:
    assert list(body) == ["detail"]
    assert isinstance(body["detail"], str | list)


def shape(value: Any) -> Any:
    """Field names and types, without `input` and `ctx` of a problem, which echo what was sent."""
    match value:
        case dict():
            return {
                name: shape(inner) for name, inner in value.items() if name not in {"input", "ctx"}
            }
        case list():
            return [shape(inner) for inner in value[:1]]
        case _:
            return type(value)


def assert_close(value: Any, recorded: Any, tolerance: float) -> None:
    match recorded:
        case dict():
            assert value.keys() == recorded.keys()
            for name in recorded:
                assert_close(value[name], recorded[name], tolerance)
        case list():
            assert len(value) == len(recorded)
            for inner, recorded_inner in zip(value, recorded, strict=True):
                assert_close(inner, recorded_inner, tolerance)
        case float():
            assert value == pytest.approx(recorded, abs=tolerance)
        case _:
            assert value == recorded


def ordered(value: Any) -> Any:
    match value:
        case dict():
            return {name: ordered(inner) for name, inner in value.items()}
        case list():
            return sorted((ordered(inner) for inner in value), key=json.dumps)
        case _:
            return value


def remember(recorded: Any, body: Any, remembered: dict[str, str]) -> None:
    match recorded:
        case dict():
            for name in recorded.keys() & body.keys():
                remember(recorded[name], body[name], remembered)
        case list():
            for recorded_inner, inner in zip(recorded, body, strict=False):
                remember(recorded_inner, inner, remembered)
        case str() if recorded.startswith("{{"):
            remembered[recorded] = body


def fill_in(value: Any, remembered: dict[str, str]) -> Any:
    text = json.dumps(value)
    for name, replacement in remembered.items():
        text = text.replace(name, replacement)
    return json.loads(text)
