"""The scenario with releases of the vendor's SDKs, unmodified, and LangChain's suite on their
store.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compat import releases
from tests.service.conftest import Service, new_service

# Older releases do not work without an API key.
API_KEY = "a root key of the tests"
IN_CI = ["0.13.0", "0.16.0", "0.17.0", "0.18.0"]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="sealdex-test-") as directory:
        service = new_service(Path(directory), SEALDEX_WORKERS="2", SEALDEX_ROOT_KEY=API_KEY)
        service.start()
        yield service
        service.stop()


def failures(outcome: releases.Outcome) -> dict[str, str]:
    return {step: result for step, result in outcome.items() if result.startswith("fail")}


@pytest.mark.parametrize("release", IN_CI)
def test_the_scenario_passes_with_a_python_release(service: Service, release: str) -> None:
    outcome = releases.run_python(release, service.url, API_KEY)
    assert failures(outcome) == {}
    assert list(outcome.values()).count("pass") >= 16


@pytest.mark.skipif(not releases.has_node(), reason="Node or npm is not installed")
def test_the_scenario_passes_with_the_javascript_release(service: Service) -> None:
    outcome = releases.run_js(releases.JS_RELEASE, service.url, API_KEY)
    assert failures(outcome) == {}
    assert list(outcome.values()).count("pass") >= 10


def test_the_langchain_suite_passes(service: Service) -> None:
    outcome = releases.run_langchain("0.17.0", service.url, API_KEY)
    assert outcome["suite"].startswith("pass")
