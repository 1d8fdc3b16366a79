"""Clients that dawdle or go away are cut off, store nothing, and keep nobody else waiting."""

import json
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest

from tests.faults.conftest import ARRIVING_BODIES, RECEIVE_TIMEOUT_S, REQUESTS_IN_WORK
from tests.service.conftest import Service

INDEX = {"index_name": "clients", "index_key": secrets.token_hex(32)}
ITEMS = [{"id": f"slow {number}", "vector": [number, 1]} for number in range(500)]
KEPT = [
    {"id": str(number), "vector": [number, 1], "contents": "c" * 2_000} for number in range(2_000)
]
# How late a timer may be on a busy machine.
_LATE_S = 20


@pytest.fixture(scope="module")
def service(running: Service) -> Service:
    running.post("indexes/delete", INDEX)
    assert running.post("indexes/create", {**INDEX, "dimension": 2}).status_code == 200
    assert running.post("vectors/upsert", {**INDEX, "items": KEPT}).status_code == 200
    return running


def request(route: str, **fields: Any) -> tuple[bytes, bytes]:
    """Head and body of a request."""
    body = json.dumps({**INDEX, **fields}).encode()
    head = (
        f"POST /v1/{route} HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}"
    )
    return head.encode() + b"\r\n\r\n", body


@contextmanager
def connected(service: Service) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as client:
        yield client


def reset(client: socket.socket) -> None:
    """Go away without a word: the other side gets a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def dribble(client: socket.socket, data: bytes) -> tuple[bytes, float]:
    """Send a byte at a time; return the answer or the end, and how long that took."""
    stop = threading.Event()
    start = time.monotonic()

    def send() -> None:
        with suppress(OSError):
            for byte in data:
                client.sendall(bytes([byte]))
                if stop.wait(0.05):
                    return

    sender = threading.Thread(target=send)
    sender.start()
    try:
        return answer_to(client), time.monotonic() - start
    except ConnectionResetError:
        return b"", time.monotonic() - start
    finally:
        stop.set()
        sender.join()


def answer_to(client: socket.socket) -> bytes:
    """Return an answer, whose head and body may come one after the other."""
    answer = b""
    while more := client.recv(65_536):
        answer += more
        head, _, body = answer.partition(b"\r\n\r\n")
        if body.endswith(b"}") or b"content-length: 0" in head:
            break
    return answer


def assert_unharmed(service: Service) -> None:
    """The service answers, and holds what it held."""
    assert service.get("ready").status_code == 200
    assert service.post("vectors/num_vectors", INDEX).json() == {"result": len(KEPT)}
    found = service.post("vectors/query", {**INDEX, "query_vectors": [7, 1], "top_k": 1})
    assert found.json() == {"results": [{"id": "7"}]}


def n_requests(service: Service, status: str) -> float:
    """How many requests to upsert were answered so."""
    metrics = httpx.get(f"{service.url}/metrics").text.splitlines()
    name = f'sealdex_requests_total{{route="/v1/vectors/upsert",status="{status}"}} '
    return sum(float(line.removeprefix(name)) for line in metrics if line.startswith(name))


def test_a_head_that_dribbles_in_is_cut_off(service: Service) -> None:
    head, _ = request("vectors/upsert", items=ITEMS)
    with connected(service) as client:
        answer, duration = dribble(client, head + b"X-More: " + b"x" * 1_000)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 408")
    assert RECEIVE_TIMEOUT_S * 0.9 < duration < RECEIVE_TIMEOUT_S + _LATE_S
    assert_unharmed(service)


def test_a_body_that_dribbles_in_is_cut_off_and_the_places_are_free_again(service: Service) -> None:
    head, body = request("vectors/upsert", items=ITEMS)
    answers: list[tuple[bytes, float]] = []

    def dawdle() -> None:
        with connected(service) as client:
            client.sendall(head)
            answers.append(dribble(client, body))

    threads = [threading.Thread(target=dawdle) for _ in range(REQUESTS_IN_WORK - 1)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        # Others are served meanwhile: one place is left.
        assert service.post("vectors/num_vectors", INDEX).json() == {"result": len(KEPT)}
    assert len(answers) == REQUESTS_IN_WORK - 1
    for answer, duration in answers:
        assert answer.startswith(b"HTTP/1.1 408 "), answer
        assert answer.endswith(b'{"detail":"the body of the request did not arrive in time"}')
        assert RECEIVE_TIMEOUT_S * 0.9 < duration < RECEIVE_TIMEOUT_S + _LATE_S
    assert_unharmed(service)


def test_bodies_that_do_not_come_keep_nobody_out_but_their_own_sender(service: Service) -> None:
    head, body = request("vectors/upsert", items=ITEMS)
    slow = []
    for _ in range(ARRIVING_BODIES + 1):
        client = socket.create_connection(
            ("127.0.0.1", service.port), source_address=("127.0.0.2", 0)
        )
        client.sendall(head + body[:100])
        slow.append(client)
    answers = [answer_to(client) for client in slow]
    refused = [answer for answer in answers if answer.startswith(b"HTTP/1.1 503 ")]
    # Whoever comes after the first were cut off has a place.
    assert len(refused) <= 1
    assert all(b"retry-after: 1" in answer for answer in refused)
    assert all(answer.startswith((b"HTTP/1.1 408 ", b"HTTP/1.1 503 ")) for answer in answers)
    for client in slow:
        client.close()
    assert_unharmed(service)


def test_others_are_served_while_bodies_do_not_come(service: Service) -> None:
    head, body = request("vectors/upsert", items=ITEMS)
    slow = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(ARRIVING_BODIES)]
    for client in slow:
        client.sendall(head + body[:100])
    # GET has no body, and needs a place.
    assert service.get("indexes/list").status_code == 200
    assert service.get("health").status_code == 200
    for client in slow:
        client.close()
    assert_unharmed(service)


def test_a_large_body_has_more_time(service: Service) -> None:
    head, body = request("vectors/get", ids=["1"], padding="p" * 1_000_000)
    with connected(service) as client:
        client.sendall(head)
        for start in range(0, len(body), 250_000):
            client.sendall(body[start : start + 250_000])
            time.sleep(RECEIVE_TIMEOUT_S / 3)
        assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["closed", "reset"])
def test_a_client_that_goes_away_in_its_body_leaves_nothing(service: Service, leave: Any) -> None:
    head, body = request("vectors/upsert", items=ITEMS)
    n_gone, n_failed = n_requests(service, "499"), n_requests(service, "500")
    for share in (0.0, 0.5, 0.999):
        client = socket.create_connection(("127.0.0.1", service.port))
        client.sendall(head + body[: int(share * len(body))])
        leave(client)
    deadline = time.monotonic() + _LATE_S
    while n_requests(service, "499") < n_gone + 3:
        assert time.monotonic() < deadline, "the service does not notice"
        time.sleep(0.02)
    assert n_requests(service, "500") == n_failed
    assert_unharmed(service)


@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["closed", "reset"])
def test_a_client_that_goes_away_in_its_answer_harms_nobody(service: Service, leave: Any) -> None:
    head, body = request("vectors/get", ids=[item["id"] for item in KEPT])
    for n_bytes in (0, 1, 10_000):
        client = socket.create_connection(("127.0.0.1", service.port))
        client.sendall(head + body)
        if n_bytes:
            assert client.recv(n_bytes)
        leave(client)
    assert_unharmed(service)


def test_a_client_that_goes_away_before_its_answer_has_written_all_or_nothing(
    service: Service,
) -> None:
    written = [{"id": f"written {number}", "vector": [number, 2]} for number in range(100)]
    client = socket.create_connection(("127.0.0.1", service.port))
    client.sendall(b"".join(request("vectors/upsert", items=written)))
    reset(client)
    assert service.post("vectors/num_vectors", INDEX).json()["result"] in {
        len(KEPT),
        len(KEPT) + len(written),
    }
    assert service.post("vectors/upsert", {**INDEX, "items": written}).status_code == 200
    ids = [item["id"] for item in written]
    assert service.post("vectors/num_vectors", INDEX).json() == {"result": len(KEPT) + len(written)}
    assert service.post("vectors/delete", {**INDEX, "ids": ids}).status_code == 200
    assert_unharmed(service)


def test_a_client_that_does_not_read_its_answer_keeps_nobody_waiting(service: Service) -> None:
    head, body = request("vectors/get", ids=[item["id"] for item in KEPT])
    idle = [
        socket.create_connection(("127.0.0.1", service.port)) for _ in range(2 * REQUESTS_IN_WORK)
    ]
    for client in idle:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.sendall(head + body)
        # It has begun, so it is past its place in work or soon will be.
        assert client.recv(1)
    assert_unharmed(service)
    for client in idle:
        client.close()


def test_an_endless_head_is_refused(service: Service) -> None:
    head, _ = request("vectors/upsert", items=ITEMS)
    with connected(service) as client:
        client.sendall(head[:-4] + b"\r\nX-More: " + b"x" * 60_000)
        with suppress(OSError):
            for _ in range(20):
                client.sendall(b"x" * 60_000)
        assert answer_to(client).startswith(b"HTTP/1.1 431 ")
    assert_unharmed(service)


def test_requests_in_pieces_and_several_at_once_are_answered_in_turn(service: Service) -> None:
    head, body = request("vectors/num_vectors")
    with connected(service) as client:
        for piece in (head[:30], head[30:] + body[:5], body[5:] + head + body + head, body):
            client.sendall(piece)
            time.sleep(0.05)
        answers = b""
        while answers.count(b'{"result":2000}') < 3:
            more = client.recv(65_536)
            assert more, answers
            answers += more
    assert answers.count(b"HTTP/1.1 200 ") == 3


def test_a_connection_is_kept_for_the_next_request(service: Service) -> None:
    data = b"".join(request("vectors/num_vectors"))
    with connected(service) as client:
        for pause_s in (0, RECEIVE_TIMEOUT_S + 1, 0):
            time.sleep(pause_s)
            client.sendall(data)
            assert answer_to(client).endswith(b'{"result":2000}')
