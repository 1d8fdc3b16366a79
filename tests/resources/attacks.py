"""Attacks on the memory, the connections and the time of a worker, one generator each.

Each sends from an address of its own, so that a bound per address leaves others alone. Run as
`python -m tests.resources.attacks` it prints what each attack does to a worker beside 64 clients.
"""

import json
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

from tests.service.conftest import Service, new_service, workers_of

ROOT_KEY = "root key of the attacked service"
INDEX = {"index_name": "attacked", "index_key": secrets.token_hex(32)}
MB = 1024 * 1024
_HEAD = "POST /v1/vectors/{} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
_CHUNKED = _HEAD.format("query") + "Transfer-Encoding: chunked\r\n\r\n"


@dataclass
class Target:
    """One worker, with an index of a few large items."""

    service: Service
    reader: str = ""
    revoked: str = ""

    @property
    def worker(self) -> psutil.Process:
        assert self.service.process is not None
        (worker,) = workers_of(self.service.process.pid)
        return worker

    def rss(self) -> int:
        return int(self.worker.memory_info().rss)

    def settled(self, wanted: int) -> int:
        """Return the memory of the worker when it is as small as `wanted`, or after 20 s."""
        ends_at = time.monotonic() + 20
        while self.rss() > wanted and time.monotonic() < ends_at:
            time.sleep(0.1)
        return self.rss()

    def connect(self, source: str = "127.0.0.2") -> socket.socket:
        return socket.create_connection(
            ("127.0.0.1", self.service.port), timeout=5, source_address=(source, 0)
        )

    def post(self, route: str, body: Any, key: str = ROOT_KEY) -> httpx.Response:
        return self.service.post(route, {**INDEX, **body}, **{"X-API-Key": key})


def send(target: Target, head: str, piece: bytes, n_bytes: int) -> None:
    """Send `head`, and then `piece` until so many bytes are sent or the other side has enough."""
    with suppress(OSError), target.connect() as client:
        client.sendall(head.encode())
        for _ in range(n_bytes // len(piece)):
            client.sendall(piece)


def many_trailers(target: Target) -> None:
    send(target, _CHUNKED + "0\r\n", b"x0000001: y\r\n" * 1_000, 100 * MB)


def endless_trailer(target: Target) -> None:
    send(target, _CHUNKED + "0\r\nx: ", b"y" * 64_000, 150 * MB)


def chunk_extensions(target: Target) -> None:
    send(target, _CHUNKED, b"1;" + b"e" * 64_000, 100 * MB)


def pipelined(target: Target) -> None:
    send(target, "", b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n" * 10_000, 20 * MB)


def idle_connections(target: Target) -> None:
    """Take as many connections as there are, from three addresses."""
    with ExitStack() as stack:
        for number in range(1_500):
            with suppress(OSError):
                client = stack.enter_context(target.connect(f"127.0.0.{2 + number % 3}"))
                client.sendall(b"POST /v1/vectors/get HTTP/1.1\r\nHost: a\r\n")


def repeated_ids(target: Target) -> None:
    target.post("vectors/get", {"ids": ["large"] * 2_500}, target.reader)


def many_results(target: Target) -> None:
    query = {"query_vectors": [[1.0, 2.0]] * 150, "top_k": 10_000, "include": ["metadata"]}
    target.post("vectors/query", query, target.reader)


def commas(target: Target, key: str | None = None) -> None:
    body = json.dumps({**INDEX, "query_vectors": []}).encode()[:-2] + b"1," * 8_000_000 + b"1]}"
    head = _HEAD.format("query") + f"X-API-Key: {key or target.reader}\r\n"
    send(target, head + f"Content-Length: {len(body)}\r\n\r\n", body, len(body))


def revoked_commas(target: Target) -> None:
    commas(target, target.revoked)


ATTACKS: list[Callable[[Target], None]] = [
    many_trailers,
    endless_trailer,
    chunk_extensions,
    pipelined,
    idle_connections,
    repeated_ids,
    many_results,
    commas,
    revoked_commas,
]


@contextmanager
def attacked(**environment: str) -> Iterator[Target]:
    """A service with one worker, a root key, an index, a reader and a user that was revoked."""
    with tempfile.TemporaryDirectory(prefix="sealdex-test-") as directory:
        service = new_service(
            Path(directory),
            SEALDEX_WORKERS="1",
            SEALDEX_ROOT_KEY=ROOT_KEY,
            SEALDEX_ALLOW_MODEL_DOWNLOADS="false",
            **environment,
        )
        service.start()
        try:
            yield _prepared(Target(service))
        finally:
            service.stop()


def _prepared(target: Target) -> Target:
    assert target.post("indexes/create", {"dimension": 2}).status_code == httpx.codes.OK
    items: list[Any] = [{"id": str(n), "vector": [n % 97, n % 89]} for n in range(2_000)]
    items.append({"id": "large", "vector": [0, 0], "contents": "c" * MB})
    assert target.post("vectors/upsert", {"items": items}).status_code == httpx.codes.OK
    users = f"indexes/{INDEX['index_name']}/users"
    body = {"permissions": ["read"], "index_key": INDEX["index_key"]}
    reader, revoked = (target.post(users, body).json() for _ in range(2))
    target.reader, target.revoked = reader["api_key"], revoked["api_key"]
    url = f"{target.service.url}/v1/{users}/{revoked['user_id']}"
    keys = {"X-API-Key": ROOT_KEY, "X-Index-Key": INDEX["index_key"]}
    assert httpx.delete(url, headers=keys).status_code == httpx.codes.NO_CONTENT
    return target


class Watch:
    """The largest memory of a worker while the block runs."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.before = self.peak = target.rss()

    def _look(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, self._target.rss())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def grown(self) -> int:
        return self.peak - self.before


def neighbours(target: Target, n_clients: int, seconds: float) -> "subprocess.Popen[bytes]":
    """Start clients beside the attacks."""
    body = json.dumps({**INDEX, "query_vectors": [3, 4], "top_k": 10}).encode()
    head = _HEAD.format("query") + f"X-API-Key: {ROOT_KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    arguments = ["-m", "tests.resources.neighbours", str(target.service.port)]
    process = subprocess.Popen(
        [sys.executable, *arguments, str(n_clients), str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(head.encode() + body)
    process.stdin.close()
    process.stdin = None
    return process


def durations_of(process: "subprocess.Popen[bytes]") -> list[float]:
    output, _ = process.communicate(timeout=300)
    return sorted(json.loads(output))


def p99(durations: list[float]) -> float:
    return durations[int(0.99 * len(durations))]


def main() -> None:
    """Print a line for each attack."""
    with attacked(SEALDEX_MAX_REQUESTS_IN_WORK="128") as target:
        durations_of(neighbours(target, 64, 3))
        quiet = durations_of(neighbours(target, 64, 5))
        print(f"without an attack: {len(quiet)} queries, p99 {p99(quiet) * 1000:.0f} ms")
        for attack in ATTACKS:
            with Watch(target) as watch:
                clients = neighbours(target, 64, 5)
                ends_at = time.monotonic() + 5.5
                while time.monotonic() < ends_at:
                    attack(target)
                found = durations_of(clients)
            after = target.settled(watch.before + 16 * MB)
            print(
                f"{attack.__name__:18} rss {watch.before / MB:4.0f} MB, at most "
                f"+{watch.grown() / MB:4.0f}, after {(after - watch.before) / MB:+4.0f}; "
                f"{len(found)} queries, p99 {p99(found) * 1000:.0f} ms"
                f" ({p99(found) / p99(quiet):.1f} x)",
                flush=True,
            )


if __name__ == "__main__":
    main()
