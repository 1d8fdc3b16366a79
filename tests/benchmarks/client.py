"""A client that costs almost nothing, so that a measurement on few cores is one of the service."""

import json
import socket
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

KEY = "5ea1" * 16


def request(path: str, body: dict[str, Any]) -> bytes:
    """Return the bytes of a POST."""
    content = json.dumps(body).encode()
    head = f"POST /v1/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return head.encode() + f"Content-Length: {len(content)}\r\n\r\n".encode() + content


class Connection:
    """One kept-alive connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes | memoryview) -> bytes:
        """Send one request; return the body of its answer, which must be a 200."""
        self._socket.sendall(data)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._more()
        head, _, body = answer.partition(b"\r\n\r\n")
        head = head.lower()
        assert head.startswith(b"http/1.1 200"), answer[:500]
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        parts = [body]
        missing = length - len(body)
        while missing > 0:
            parts.append(self._more())
            missing -= len(parts[-1])
        return b"".join(parts)

    def _more(self) -> bytes:
        data = self._socket.recv(1 << 18)
        assert data, "the service closed the connection"
        return data

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send a body and return the decoded answer."""
        return json.loads(self.send(request(path, body)))


@dataclass(frozen=True)
class Load:
    """How a number of clients fared."""

    n_clients: int
    per_second: float
    p50_ms: float
    p99_ms: float


def run_clients(port: int, requests: Sequence[bytes], n_clients: int, seconds: float) -> Load:
    """Let clients send the requests in turn, each the next when it has its answer, until the time
    is over.
    """
    latencies: list[float] = []
    stop_at = time.perf_counter() + seconds

    def work(number: int) -> None:
        own = []
        with Connection(port) as connection:
            position = number
            while (start := time.perf_counter()) < stop_at:
                connection.send(requests[position % len(requests)])
                own.append(time.perf_counter() - start)
                position += n_clients
        latencies.extend(own)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(n_clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - start
    return Load(n_clients, len(latencies) / elapsed, *milliseconds(latencies))


def milliseconds(latencies_s: Sequence[float]) -> tuple[float, float]:
    """Return p50 and p99 in ms."""
    return statistics.median(latencies_s) * 1e3, float(np.quantile(latencies_s, 0.99)) * 1e3
