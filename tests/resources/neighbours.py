"""Clients at work beside an attack: each sends one query after the other and notes how long."""

import asyncio
import json
import sys
import time
from typing import Any


async def client(port: int, request: bytes, ends_at: float, durations: list[float]) -> None:
    """Send `request` again and again over one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.monotonic() < ends_at:
        started = time.monotonic()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
        assert head.startswith(b"HTTP/1.1 200 "), head
        durations.append(time.monotonic() - started)
    writer.close()


async def work(port: int, n_clients: int, seconds: float, request: bytes) -> list[float]:
    """Return the durations of all requests of `n_clients` for `seconds`."""
    durations: list[float] = []
    ends_at = time.monotonic() + seconds
    await asyncio.gather(*(client(port, request, ends_at, durations) for _ in range(n_clients)))
    return durations


def main(arguments: Any) -> None:
    """Print the durations as JSON; the request comes on standard input."""
    port, n_clients, seconds = int(arguments[0]), int(arguments[1]), float(arguments[2])
    request = sys.stdin.buffer.read()
    print(json.dumps(asyncio.run(work(port, n_clients, seconds, request))))


if __name__ == "__main__":
    main(sys.argv[1:])
