"""What those who run the service see of it: metrics, readiness, timing and log."""

import asyncio
import json
import logging
import re

import httpx
import psycopg
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from app.api.around.logs import JSONFormatter
from app.api.around.traces import Traces
from app.observe.stages import Stopwatch, current
from app.settings import Settings
from tests.api.conftest import KEY, ROOT_KEY, RemoteIndex, Serve, serve

Samples = dict[tuple[str, tuple[str, ...]], float]


async def scrape(client: httpx.AsyncClient, **headers: str) -> Samples:
    answer = await client.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_a_scrape_shows_requests_stages_pool_and_indexes(service: Serve) -> None:
    async with service() as client:
        index = RemoteIndex(client, name="books")
        await index.post("indexes/create", dimension=3)
        await index.post("vectors/upsert", items=[{"id": "a", "vector": [1, 2, 3]}])
        for _ in range(3):
            await index.post("vectors/query", query_vectors=[1, 2, 3])
        await index.post("vectors/query", query_vectors=[1, 2])
        await client.get("/v1/nowhere/1")
        samples = await scrape(client)
    assert samples["sealdex_requests_total", ("/v1/vectors/query", "200")] == 3
    assert samples["sealdex_requests_total", ("/v1/vectors/query", "400")] == 1
    assert samples["sealdex_requests_total", ("none", "404")] == 1
    assert samples["sealdex_request_duration_seconds_count", ("/v1/vectors/query",)] == 4
    before = ("dispatch", "receive", "parse", "unwrap", "wait", "pool")
    for stage in (*before, "sketch", "sql", "seal", "open", "rerank", "encode", "other"):
        assert samples["sealdex_stage_duration_seconds_count", (stage,)] >= 1
    assert samples["sealdex_pool_connections_max", ()] == 4
    # The scrape itself has none: it has been given back by then.
    assert samples["sealdex_pool_connections_in_use", ()] == 0
    assert samples["sealdex_database_up", ()] == 1
    assert samples["sealdex_indexes", ()] == 1
    assert samples["sealdex_index_items", ("books",)] == 1
    assert samples["sealdex_index_size_bytes", ("books",)] > 0
    assert samples["sealdex_index_lists", ("books",)] == 1
    assert samples["sealdex_index_trained_timestamp_seconds", ("books",)] == 0
    assert samples["sealdex_sealed_value_failures_total", ()] == 0


async def test_the_stages_add_up_to_the_time_of_the_requests(service: Serve) -> None:
    async with service() as client:
        index = RemoteIndex(client)
        await index.post("indexes/create", dimension=3)
        await index.post("vectors/upsert", items=[{"id": "a", "vector": [1, 2, 3]}])
        samples = await scrape(client)
    stages = sum(
        value
        for (name, _), value in samples.items()
        if name == "sealdex_stage_duration_seconds_sum"
    )
    requests = sum(
        value
        for (name, _), value in samples.items()
        if name == "sealdex_request_duration_seconds_sum"
    )
    assert stages == pytest.approx(requests, rel=1e-6)


async def test_a_value_that_does_not_open_is_counted(settings: Settings, database_dsn: str) -> None:
    async with serve(settings) as client:
        index = RemoteIndex(client)
        await index.post("indexes/create", dimension=3)
        await index.post(
            "vectors/upsert", items=[{"id": "a", "vector": [1, 2, 3], "contents": "x"}]
        )
        with psycopg.connect(database_dsn) as database:
            database.execute("UPDATE items SET sealed_contents = sealed_contents || '\\x00'")
        assert (await index.post("vectors/get", ids=["a"])).status_code == 500
        assert (await scrape(client))["sealdex_sealed_value_failures_total", ()] == 1


@pytest.mark.parametrize(
    ("values", "headers", "status"),
    [
        ({}, {}, 200),
        ({"allow_open": True}, {}, 403),
        ({"allow_open": True, "metrics_open": True}, {}, 200),
        ({"root_key": ROOT_KEY}, {}, 401),
        ({"root_key": ROOT_KEY}, {"X-API-Key": "wrong"}, 401),
        ({"root_key": ROOT_KEY}, {"Authorization": f"Basic {ROOT_KEY}"}, 401),
        ({"root_key": ROOT_KEY}, {"X-API-Key": ROOT_KEY}, 200),
        ({"root_key": ROOT_KEY}, {"Authorization": f"Bearer {ROOT_KEY}"}, 200),
        ({"root_key": ROOT_KEY, "metrics_open": True}, {}, 200),
    ],
)
async def test_metrics_need_the_root_key_unless_told_otherwise(
    database_dsn: str, values: dict[str, object], headers: dict[str, str], status: int
) -> None:
    async with serve(Settings(database_url=database_dsn, pool_size=1, **values)) as client:  # type: ignore[arg-type]  # one of each kind
        assert (await client.get("/metrics", headers=headers)).status_code == status


async def test_a_bearer_token_opens_nothing_but_the_metrics(
    guarded_client: httpx.AsyncClient,
) -> None:
    answer = await guarded_client.get(
        "/v1/indexes/list", headers={"Authorization": f"Bearer {ROOT_KEY}"}
    )
    assert answer.status_code == 401


async def test_ready_depends_on_the_schema_and_health_does_not(
    settings: Settings, database_dsn: str
) -> None:
    async with serve(settings) as client:
        assert (await client.get("/v1/ready")).json() == {"status": "ready"}
        with psycopg.connect(database_dsn) as database:
            database.execute("UPDATE sealdex_alembic_version SET version_num = '0000'")
        async with asyncio.timeout(30):
            # What was seen is good for a second.
            while (answer := await client.get("/v1/ready")).status_code == 200:
                pass
        assert answer.status_code == 503
        assert "0000" in answer.json()["detail"]
        assert "Retry-After" in answer.headers
        assert (await client.get("/v1/health")).status_code == 200


async def test_server_timing_is_told_by_setting_and_adds_up(settings: Settings) -> None:
    async with serve(settings) as client:
        assert "Server-Timing" not in (await client.get("/v1/health")).headers
    async with serve(Settings(database_url=settings.database_url, server_timing=True)) as client:
        index = RemoteIndex(client)
        await index.post("indexes/create", dimension=3)
        answer = await index.post("vectors/num_vectors")
    parts = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["Server-Timing"]))
    total = float(parts.pop("total"))
    assert {"unwrap", "sql", "encode"} <= set(parts)
    assert sum(map(float, parts.values())) == pytest.approx(total, abs=0.05)


def test_a_line_of_the_log_is_json_and_names_the_request() -> None:
    record = logging.LogRecord("app.x", logging.ERROR, __file__, 1, "it %s", ("failed\n",), None)
    token = current.set(Stopwatch("request-7"))
    line = JSONFormatter().format(record)
    current.reset(token)
    assert "\n" not in line
    parsed = json.loads(line)
    assert parsed.pop("time").endswith("+00:00")
    assert parsed == {
        "level": "ERROR",
        "logger": "app.x",
        "message": "it failed\n",
        "request_id": "request-7",
    }


async def test_a_span_has_route_status_and_nothing_that_was_sent(settings: Settings) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with serve(settings, Traces(provider)) as client:
        headers = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", "X-Request-Id": "request-8"}
        body = {"index_name": "none", "index_key": KEY}
        assert (
            await client.post("/v1/indexes/describe?secret=1", json=body, headers=headers)
        ).status_code == 404
    (span,) = exporter.get_finished_spans()
    assert span.name == "/v1/indexes/describe"
    assert dict(span.attributes or {}) == {
        "http.route": "/v1/indexes/describe",
        "http.response.status_code": 404,
        "sealdex.request_id": "request-8",
    }
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}" == "ab" * 16
