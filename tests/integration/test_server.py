"""Connections to the HTTP server, with an application that takes its time."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from uvicorn import Server

from app.server.http import Connection, ServerConfig

_TIMEOUT_S = 0.4
_HEAD = b"POST /%b HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n"


async def slow(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the path, three timeouts later if that asks for it."""
    await receive()
    if "slow" in scope["path"]:
        await asyncio.sleep(3 * _TIMEOUT_S)
    body = scope["path"].encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def client() -> Iterator[socket.socket]:
    config = ServerConfig(
        slow, http=Connection, lifespan="off", ws="none", log_config=None, access_log=False
    )
    config.receive_timeout_s = _TIMEOUT_S
    server = Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        with socket.create_connection(listener.getsockname(), timeout=30) as client:
            yield client
        server.should_exit = True
        thread.join()


def all_of(client: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    return b"".join(iter(lambda: client.recv(65_536), b""))


def until(client: socket.socket, end: bytes) -> bytes:
    answer = b""
    while not answer.endswith(end):
        more = client.recv(65_536)
        assert more, answer
        answer += more
    return answer


def send_for_ever(client: socket.socket) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        client.sendall(b"x" * 70_000)
        time.sleep(0.01)


@pytest.mark.parametrize("beginning", [b"", b"PO", _HEAD[:30]])
def test_a_head_that_does_not_end_is_a_timeout(client: socket.socket, beginning: bytes) -> None:
    started = time.monotonic()
    client.sendall(beginning)
    assert all_of(client).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - started > 0.9 * _TIMEOUT_S


def test_the_answer_under_way_comes_before_what_is_wrong_with_the_next_request(
    client: socket.socket,
) -> None:
    following = _HEAD % b"next"
    client.sendall(_HEAD % b"slow" + following[:30])
    assert until(client, b"/slow").startswith(b"HTTP/1.1 200 ")
    client.sendall(following[30:])
    assert until(client, b"/next").startswith(b"HTTP/1.1 200 ")


def test_a_slow_answer_is_no_slow_request(client: socket.socket) -> None:
    for path in (b"slow", b"fast", b"slow"):
        client.sendall(_HEAD % path)
        assert until(client, b"/" + path).startswith(b"HTTP/1.1 200 ")


def test_a_head_without_end_is_refused(client: socket.socket) -> None:
    client.sendall(_HEAD[:-4] + b"\r\nX-More: " + b"x" * 70_000)
    assert all_of(client).startswith(b"HTTP/1.1 431 ")


def test_a_head_without_end_behind_a_request_in_work_ends_the_connection(
    client: socket.socket,
) -> None:
    client.sendall(_HEAD % b"slow")
    client.sendall(_HEAD[:-4] + b"\r\nX-More: ")
    with pytest.raises(ConnectionError):
        send_for_ever(client)


def test_what_is_not_http_is_a_bad_request(client: socket.socket) -> None:
    client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    assert all_of(client).startswith(b"HTTP/1.1 400 ")
