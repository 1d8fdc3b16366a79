"""The command `sealdex serve` as a process, from its start to its end."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.service.conftest import workers_of

TIMEOUT_S = 60.0
ROOT_KEY = "5ea1" * 16


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        number: int = probe.getsockname()[1]
    return number


@contextmanager
def service(port: int, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Start the service; kill it and its workers at the end, if they are still there."""
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SEALDEX_", "CYBORGDB_"))
    }
    own |= {"PORT": str(port), "SEALDEX_WORKERS": "2", "SEALDEX_ROOT_KEY": ROOT_KEY, **env}
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "serve"],
        env=own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            with suppress(psutil.NoSuchProcess):
                for one in [*psutil.Process(process.pid).children(), psutil.Process(process.pid)]:
                    one.kill()


def wait_until_healthy(port: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/v1/health").status_code == 200:
                return
        time.sleep(0.05)
    pytest.fail("the service did not become healthy")


def test_a_terminated_service_takes_its_database_along(port: int, open_path: Path) -> None:
    with service(port, DATABASE_URL="", SEALDEX_DATA_DIR=str(open_path / "data")) as process:
        wait_until_healthy(port)
        assert (open_path / "data" / "postgres" / "postmaster.pid").exists()
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    assert f"http://127.0.0.1:{port} · embedded PostgreSQL" in output
    assert "workers 2 · API key on" in output
    assert ROOT_KEY not in output
    assert not (open_path / "data" / "postgres" / "postmaster.pid").exists()


def test_the_workers_of_a_killed_service_end_and_another_can_start(
    port: int, database_dsn: str
) -> None:
    with service(port, DATABASE_URL=database_dsn) as process:
        wait_until_healthy(port)
        workers = workers_of(process.pid)
        assert len(workers) == 2
        process.kill()
        gone, alive = psutil.wait_procs(workers, timeout=TIMEOUT_S)
        assert not alive, gone
    with service(port, DATABASE_URL=database_dsn):
        wait_until_healthy(port)


def test_workers_end_that_were_starting_when_the_service_was_killed(
    port: int, database_dsn: str
) -> None:
    with service(port, DATABASE_URL=database_dsn) as process:
        deadline = time.monotonic() + TIMEOUT_S
        while len(workers := workers_of(process.pid)) < 2:
            assert time.monotonic() < deadline
        process.kill()
        gone, alive = psutil.wait_procs(workers, timeout=TIMEOUT_S)
        assert not alive, gone


def test_a_worker_that_dies_is_replaced(port: int, database_dsn: str) -> None:
    with service(port, DATABASE_URL=database_dsn) as process:
        wait_until_healthy(port)
        victim = workers_of(process.pid)[0]
        victim.kill()
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            survivors = {worker.pid for worker in workers_of(process.pid)}
            if len(survivors) == 2 and victim.pid not in survivors:
                break
            time.sleep(0.05)
        assert process.poll() is None
        wait_until_healthy(port)


def test_a_schema_that_is_not_at_head_is_refused_unless_told_to_migrate(
    port: int, empty_dsn: str
) -> None:
    with service(port, DATABASE_URL=empty_dsn) as process:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 2
    assert "sealdex migrate" in output
    with service(port, DATABASE_URL=empty_dsn, SEALDEX_MIGRATE="true"):
        wait_until_healthy(port)


def test_a_port_that_is_taken_is_refused(database_dsn: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with service(port, DATABASE_URL=database_dsn) as process:
            output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 2
    assert f"Cannot listen on 127.0.0.1:{port}" in output
