"""Clients in a process of their own, so that their Python does not wait for that of the benchmark.

`python -m tests.benchmarks.senders PORT FILE N_CLIENTS` sends the requests of a file and prints
what came of it.

    file      request, one after the other
    request   length in bytes (8, big-endian) ‖ head and body of a POST
"""

import json
import mmap
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.client import Connection

_LENGTH_BYTES = 8


@dataclass(frozen=True)
class Sent:
    """When the requests were answered, in seconds since the first was sent, and the CPU seconds of
    the clients.
    """

    answered_at: list[float]
    cpu_seconds: float

    @property
    def seconds(self) -> float:
        return self.answered_at[-1]


def write(path: Path, requests: Iterable[bytes]) -> None:
    """Write a file of requests."""
    with path.open("wb") as file:
        for request in requests:
            file.write(len(request).to_bytes(_LENGTH_BYTES, "big"))
            file.write(request)


def send(port: int, path: Path, n_clients: int) -> Sent:
    """Send the requests of a file from `n_clients` connections, each the next when it has its
    answer.
    """
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.senders",
        str(port),
        str(path),
        str(n_clients),
    ]
    return Sent(**json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


def _read(data: memoryview) -> list[memoryview]:
    requests, start = [], 0
    while start < len(data):
        begin = start + _LENGTH_BYTES
        start = begin + int.from_bytes(data[start:begin], "big")
        requests.append(data[begin:start])
    return requests


def _send(port: int, waiting: list[memoryview], n_clients: int) -> Sent:
    answered_at: list[float] = []
    start, cpu = time.perf_counter(), time.process_time()

    def work() -> None:
        with Connection(port) as connection:
            while waiting:
                connection.send(waiting.pop(0))
                answered_at.append(time.perf_counter() - start)

    threads = [threading.Thread(target=work) for _ in range(n_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Sent(sorted(answered_at), time.process_time() - cpu)


def main() -> None:
    port, path, n_clients = sys.argv[1:]
    with (
        Path(path).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        requests = _read(memoryview(data))
        n_requests = len(requests)
        sent = _send(int(port), requests, int(n_clients))
        requests.clear()
    # A client that fails takes its request with it.
    assert len(sent.answered_at) == n_requests
    print(json.dumps(vars(sent)))


if __name__ == "__main__":
    main()
