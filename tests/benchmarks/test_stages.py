"""Where the time of a query goes, by the service's own figures: the stages of docs/metrics.md."""

import re
from timeit import repeat
from typing import Any

import httpx

from app.observe.figures import Figures
from app.observe.stages import Stopwatch
from tests.benchmarks.client import KEY, Connection, request
from tests.benchmarks.conftest import INDEX, Report
from tests.benchmarks.data import Data
from tests.service.conftest import Service

N_MEASURED = 500
N_TIMED = 2_000
STAGES_OF_A_QUERY = (
    *("receive", "parse", "unwrap", "sketch", "sql"),
    *("pool", "open", "rerank", "encode"),
)
KINDS: dict[str, dict[str, Any]] = {
    "top 10": {"top_k": 10},
    "top 100": {"top_k": 100},
    "top 10 with metadata": {"top_k": 10, "include": ["distance", "metadata"]},
}
_SUM = re.compile(r'^sealdex_stage_duration_seconds_sum\{stage="(\w+)"\} (\S+)$', re.MULTILINE)


def stage_seconds(service: Service) -> dict[str, float]:
    """Return the time of each stage since the start, in all workers."""
    answer = httpx.get(f"{service.url}/metrics")
    assert answer.status_code == httpx.codes.OK
    return {name: float(seconds) for name, seconds in _SUM.findall(answer.text)}


def test_stages_of_a_query(trained: Service, dataset: Data, report: Report) -> None:
    rows: list[dict[str, Any]] = [
        {"query": name, "stages_ms": stages(trained, dataset, options)}
        for name, options in KINDS.items()
    ]
    for row in rows:
        print_table(row["query"], row["stages_ms"])
    report("stages", {"data": dataset.name, "n_items": len(dataset.ids), "rows": rows})


def test_timing_a_request_costs_microseconds() -> None:
    """Print what the stopwatch and the figures of one query cost."""
    figures = Figures(["/v1/vectors/query"])

    def time_a_request() -> None:
        watch = Stopwatch("request")
        for name in STAGES_OF_A_QUERY:
            watch.enter(name)
            watch.leave()
        figures.count_request("/v1/vectors/query", 200)
        figures.observe_request("/v1/vectors/query", watch.total(), watch.seconds)

    best = min(repeat(time_a_request, number=N_TIMED, repeat=5)) / N_TIMED
    print(f"\ntiming a request: {best * 1e6:.1f} µs")


def stages(service: Service, dataset: Data, options: dict[str, Any]) -> dict[str, float]:
    """Return the mean time of each stage of a query with `options`, in milliseconds, longest
    first."""
    name = {"index_name": INDEX, "index_key": KEY}
    bodies = [
        request("vectors/query", {**name, "query_vectors": query.tolist(), **options})
        for query in dataset.queries[:N_MEASURED]
    ]
    with Connection(service.port) as connection:
        # Both rounds on one connection, so that it is one worker that has what it needs.
        for body in bodies[: N_MEASURED // 5]:
            connection.send(body)
        before = stage_seconds(service)
        for body in bodies:
            connection.send(body)
        after = stage_seconds(service)
    means = {stage: (after[stage] - before.get(stage, 0.0)) / len(bodies) * 1e3 for stage in after}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def print_table(name: str, stages_ms: dict[str, float]) -> None:
    total = sum(stages_ms.values())
    print(f"\n{name}: {total:.2f} ms")
    for stage, mean_ms in stages_ms.items():
        print(f"{stage:10s} {mean_ms:7.3f} ms {mean_ms / total:6.1%}")
