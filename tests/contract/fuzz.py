"""Schemathesis against the running service: no 5xx, and every answer as its schema says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx

from tests.contract.hooks import DIMENSION, INDEX
from tests.service.conftest import Service

ROOT_KEY = "root key of the fuzzed service"
_ROOT = Path(__file__).parents[2]
_CHECKS = (
    "not_a_server_error,status_code_conformance,"
    "content_type_conformance,response_schema_conformance"
)


def prepare(service: Service) -> None:
    """Start `service` with an index that has some items."""
    service.environment = {"SEALDEX_ROOT_KEY": ROOT_KEY, "SEALDEX_WORKERS": "1"}
    service.start()
    items = [
        {
            "id": str(number),
            "vector": [float(number), 1.0, 0.0],
            "contents": "text",
            "metadata": {"number": number},
        }
        for number in range(20)
    ]
    for route, fields in (
        ("indexes/create", {"dimension": DIMENSION}),
        ("vectors/upsert", {"items": items}),
    ):
        answer = service.post(route, {**INDEX, **fields}, **{"X-API-Key": ROOT_KEY})
        assert answer.status_code == httpx.codes.OK, answer.text


def fuzz(service: Service, n_examples: int, seed: int) -> int:
    """Return how many cases passed, about `n_examples` a route and phase.

    Fails with the report of Schemathesis.
    """
    command = [
        *(
            str(Path(sys.executable).with_name("schemathesis")),
            "run",
            f"{service.url}/v1/openapi.json",
        ),
        *(
            "--checks",
            _CHECKS,
            "--max-examples",
            str(n_examples),
            "--seed",
            str(seed),
            "--no-shrink",
        ),
        *(
            "--header",
            f"X-API-Key: {ROOT_KEY}",
            "--suppress-health-check",
            "all",
            "--warnings",
            "off",
        ),
    ]
    environment = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": "tests.contract.hooks",
        "PYTHONPATH": str(_ROOT),
        "NO_COLOR": "1",
    }
    run = subprocess.run(
        command, env=environment, cwd=service.data_dir, check=False, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-10_000:] + run.stderr[-2_000:]
    passed = re.search(r"([\d,]+) generated, ([\d,]+) passed", run.stdout)
    assert passed is not None, run.stdout[-2_000:]
    assert passed[1] == passed[2]
    return int(passed[2].replace(",", ""))
