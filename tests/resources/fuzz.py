"""Mutated raw connections to a server of the tests, with memory and a neighbour watched.

`python -m tests.resources.fuzz SECONDS SEED` goes on for so long; `make fuzz` calls it.
"""

import random
import socket
import sys
import time
from contextlib import suppress
from dataclasses import replace

import psutil

from tests.raw_http import BOUNDS, CHUNKED, HEAD, MB, Running, running, until

_BODY = (HEAD % b"one").replace(b": 0", b": 11") + b"hello world"
CORPUS = [
    HEAD % b"one",
    _BODY,
    CHUNKED % b"one" + b"5\r\nhello\r\n0\r\nX-Trailer: 1\r\n\r\n",
    CHUNKED % b"early" + b"5;a=b\r\nhello\r\n",
    (HEAD % b"early").replace(b": 0", b": 500000"),
    b"GET /one HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    (HEAD % b"one")[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    (HEAD % b"one")[:-2] + b"Expect: 100-continue\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"CONNECT here:1 HTTP/1.1\r\nHost: here\r\n\r\n",
]
_PIECES = [
    b"\r\n",
    b"\r",
    b"\n",
    b"\0",
    b": ",
    b"0\r\n",
    b"ffffffff\r\n",
    b" ",
    b"Host: b\r\n",
    b";",
]
_STATUSES = {b"100", b"200", b"400", b"408", b"414", b"431"}
_LIMIT = 64 * MB


def mutated(random_: random.Random) -> bytes:
    """Return some of the corpus, changed in a few places and sometimes repeated."""
    data = bytearray(b"".join(random_.choices(CORPUS, k=random_.randint(1, 4))))
    for _ in range(random_.randint(0, 6)):
        place = random_.randrange(len(data) + 1)
        change = random_.randrange(4)
        if change == 0:
            data[place:place] = random_.choice(_PIECES) * random_.choice([1, 1, 3, 5_000])
        elif change == 1:
            del data[place : place + random_.randint(1, 40)]
        elif change == 2:
            data[place : place + 1] = random_.randbytes(1)
        else:
            data[place:place] = data[place : place + random_.randint(1, 200)]
    return bytes(data) * random_.choice([1, 1, 1, 50])


def attack(server: Running, random_: random.Random) -> None:
    """Send a mutated connection in pieces, and look at what comes back."""
    data = mutated(random_)
    answer = b""
    with suppress(OSError), server.connect("127.0.0.2") as client:
        client.settimeout(5)
        while data:
            size = random_.choice([1, 10, 100, 100_000])
            client.sendall(data[:size])
            data = data[size:] if len(data) < 10_000 else data[max(size, 5_000) :]
        if random_.random() < 0.5:
            client.shutdown(socket.SHUT_WR)
        while more := client.recv(65_536):
            answer += more
    for part in answer.split(b"HTTP/1.1 ")[1:]:
        assert part[:3] in _STATUSES, answer


def fuzz(seconds: float, seed: int, at_least: int = 1) -> int:
    """Attack for so long; return how often. A neighbour is served after each, memory bounded."""
    random_ = random.Random(seed)
    n_attacks, ends_at = 0, time.monotonic() + seconds
    with running(replace(BOUNDS, receive_timeout_s=0.3, idle_timeout_s=0.3)) as server:
        before = psutil.Process().memory_info().rss
        while n_attacks < at_least or time.monotonic() < ends_at:
            attack(server, random_)
            n_attacks += 1
            with server.connect() as neighbour:
                neighbour.sendall(HEAD % b"neighbour")
                assert until(neighbour, b"<neighbour:>").startswith(b"HTTP/1.1 200 ")
            server.application.requests.clear()
            assert psutil.Process().memory_info().rss < before + _LIMIT
    return n_attacks


if __name__ == "__main__":
    print(fuzz(float(sys.argv[1]), int(sys.argv[2])), "connections")
