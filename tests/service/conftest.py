"""The service as its users run it: a process of its own, with the embedded PostgreSQL."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

# Two seconds on a machine at rest; a machine whose processors are all taken may need so long.
_PATIENCE_S = 180
# A training answers when it is done.
_ANSWER_PATIENCE_S = 600
_JSON = dict[str, Any]


def workers_of(supervisor: int) -> list[psutil.Process]:
    """Return the workers of a service; its supervisor has other children, too, and dead ones for a
    moment.
    """
    workers = []
    for child in psutil.Process(supervisor).children():
        with suppress(psutil.NoSuchProcess):
            if any("spawn_main" in argument for argument in child.cmdline()):
                workers.append(child)
    return workers


@dataclass
class Service:
    """A running `sealdex serve`, its log and its data."""

    data_dir: Path
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    verify: ssl.SSLContext | None = None

    @property
    def url(self) -> str:
        return f"http{'s' if self.verify else ''}://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.data_dir / "service.log"

    @property
    def dsn(self) -> str:
        """Address of the embedded database."""
        info = (self.data_dir / "postgres" / "postmaster.pid").read_text().splitlines()
        return f"postgresql://postgres@/sealdex?host={info[4]}&port={info[3]}"

    def start(self) -> None:
        environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("SEALDEX_", "DATABASE_"))
            },
            "SEALDEX_DATA_DIR": str(self.data_dir),
            "PORT": str(self.port),
            **self.environment,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app", "serve"],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            try:
                if (
                    httpx.get(f"{self.url}/v1/health", verify=self.verify or True).status_code
                    == httpx.codes.OK
                ):
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(_PATIENCE_S)

    def kill(self) -> None:
        """Kill the supervisor and its workers with no time to say goodbye; the database stays
        behind.
        """
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(_PATIENCE_S)

    def post(self, path: str, body: _JSON, **headers: str) -> httpx.Response:
        return httpx.post(
            f"{self.url}/v1/{path}", json=body, headers=headers, timeout=_ANSWER_PATIENCE_S
        )

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(f"{self.url}/v1/{path}", headers=headers, timeout=_ANSWER_PATIENCE_S)


def new_service(data_dir: Path, **environment: str) -> Service:
    data_dir.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Service(data_dir, port, environment)


@pytest.fixture
def own_service() -> Iterator[Service]:
    """A service of this test's own, not yet started."""
    with tempfile.TemporaryDirectory(prefix="sealdex-test-") as directory:
        service = new_service(Path(directory))
        yield service
        if service.process is not None and service.process.poll() is None:
            service.stop()


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    """A service that tests share; each uses indexes of its own."""
    with tempfile.TemporaryDirectory(prefix="sealdex-test-") as directory:
        service = new_service(Path(directory), SEALDEX_WORKERS="2")
        service.start()
        yield service
        service.stop()
