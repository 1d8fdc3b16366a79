import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.observe.figures import BUCKETS, Figures

ROUTES = ["/v1/a", "/v1/b"]


def test_figures_of_all_workers_are_added_and_the_dead_have_no_gauges(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from app.observe.figures import Figures
figures = Figures({ROUTES!r}, Path({str(tmp_path)!r}))
figures.count_request("/v1/a", 200)
figures.observe_request("/v1/a", 0.003, {{"sql": 0.002, "wait": 0.001}})
figures.set_pool(3, 8)
"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())}
    )
    own = Figures(ROUTES, tmp_path)
    own.count_request("/v1/a", 200)
    own.count_request("/v1/b", 503)
    own.observe_request("/v1/a", 20.0, {"sql": 20.0, "wait": 0.0})
    own.observe_request("/v1/a", 0.1, {"sql": 0.0, "seal": 0.1})
    own.count_sealed_failure()
    own.set_pool(1, 8)
    totals = own.read()
    assert totals.requests() == {("/v1/a", "200"): 2, ("/v1/b", "503"): 1}
    assert totals.pool() == (1, 8)
    assert totals.sealed_failures() == 1
    sql = totals.stages()["sql"]
    assert sql.total_s == pytest.approx(20.002)
    counts = dict(sql.buckets())
    assert (counts["0.001"], counts["0.0025"], counts["10.0"], counts["+Inf"]) == (1, 2, 2, 3)
    assert own.n_searches() == 2
    assert set(totals.durations()) == {"/v1/a"}


def test_an_unknown_route_or_status_has_a_bounded_label() -> None:
    figures = Figures(ROUTES)
    for number in range(100):
        figures.count_request(f"/v1/{number}", 600 + number)
        figures.observe_request(f"/v1/{number}", 0.1, {})
    assert figures.read().requests() == {("none", "other"): 100}
    assert set(figures.read().durations()) == {"none"}


def test_a_duration_on_the_edge_of_a_bucket_belongs_to_it() -> None:
    figures = Figures(ROUTES)
    for edge in BUCKETS[:-1]:
        figures.observe_request("/v1/a", edge, {})
    assert [count for _, count in figures.read().durations()["/v1/a"].buckets()] == [
        *range(1, 17),
        16,
    ]
