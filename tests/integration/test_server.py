"""Connections to the HTTP server, with an application that takes its time."""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import cast

import psutil
import pytest

from app.server.connection import MAX_TARGET_BYTES, Connection
from tests.raw_http import (
    BOUNDS,
    CHUNKED,
    HEAD,
    MB,
    TIMEOUT_S,
    Running,
    all_of,
    detail_of,
    running,
    send_until_cut_off,
    until,
    wait_until,
)


@pytest.fixture
def server() -> Iterator[Running]:
    with running() as server:
        yield server


@pytest.fixture
def client(server: Running) -> Iterator[socket.socket]:
    with server.connect() as client:
        yield client


# ---------------------------------------------------------------- time


@pytest.mark.parametrize("beginning", [b"PO", HEAD[:30], HEAD[:-2]])
def test_a_head_that_does_not_end_is_a_timeout(client: socket.socket, beginning: bytes) -> None:
    started = time.monotonic()
    client.sendall(beginning)
    answer = all_of(client)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert "in time" in detail_of(answer)
    assert time.monotonic() - started > 0.9 * TIMEOUT_S


@pytest.mark.parametrize("beginning", [b"", b"\r\n", b"\r\n\r\n\r\n"])
def test_a_connection_without_a_request_is_closed_without_a_word(
    client: socket.socket, beginning: bytes
) -> None:
    started = time.monotonic()
    client.sendall(beginning)
    assert all_of(client) == b""
    assert time.monotonic() - started > 0.9 * BOUNDS.idle_timeout_s


def test_a_connection_is_kept_for_as_long_as_it_may_idle_and_no_longer(
    client: socket.socket,
) -> None:
    for _ in range(2):
        client.sendall(HEAD % b"one")
        assert until(client, b"<one:>").startswith(b"HTTP/1.1 200 ")
        time.sleep(1.5 * TIMEOUT_S)
    assert all_of(client) == b""


def connection_of(server: Running) -> Connection:
    """The server's end of the only connection."""
    wait_until(lambda: server.n_connections() == 1)
    (connection,) = server.server.server_state.connections
    return cast("Connection", connection)


def test_the_answer_under_way_comes_before_what_is_wrong_with_the_next_request(
    server: Running, client: socket.socket
) -> None:
    following = HEAD % b"next"
    client.sendall(HEAD % b"slow" + following[:30])
    wait_until(lambda: connection_of(server)._is_in_head)
    time.sleep(2 * TIMEOUT_S)
    server.application.release()
    assert until(client, b"<slow:>").startswith(b"HTTP/1.1 200 ")
    client.sendall(following[30:])
    assert until(client, b"<next:>").startswith(b"HTTP/1.1 200 ")


def test_the_head_behind_an_answer_has_its_time_too(server: Running, client: socket.socket) -> None:
    client.sendall(HEAD % b"one" + HEAD[:30])
    assert until(client, b"<one:>").startswith(b"HTTP/1.1 200 ")
    assert all_of(client).startswith(b"HTTP/1.1 408 ")


def test_a_slow_answer_is_no_slow_request(server: Running, client: socket.socket) -> None:
    client.sendall(HEAD % b"slow")
    time.sleep(2 * BOUNDS.idle_timeout_s)
    server.application.release()
    assert until(client, b"<slow:>").startswith(b"HTTP/1.1 200 ")


def test_an_answer_that_is_not_read_is_dropped_in_the_end() -> None:
    # 64 MB at 64 KB a second are a quarter of an hour, which no test waits for.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.server.connection.LEAST_BYTES_PER_S", 1024 * MB)
        with running() as server, server.connect() as client:
            client.sendall(HEAD % b"long")
            wait_until(lambda: server.n_connections() == 1)
            before = psutil.Process().memory_info().rss
            wait_until(lambda: server.n_connections() == 0)
            assert psutil.Process().memory_info().rss < before + 16 * MB
            with suppress(ConnectionError):
                assert len(all_of(client)) < 64 * MB


def test_no_request_begins_while_the_last_answer_is_not_read(
    server: Running, client: socket.socket
) -> None:
    client.sendall(HEAD % b"long" + HEAD % b"two" + HEAD % b"three")
    wait_until(lambda: len(connection_of(server).pipeline) == 2)
    assert [path for path, *_ in server.application.requests] == ["long"]
    answer = until(client, b"<three:>")
    assert answer.count(b"HTTP/1.1 200 ") == 3
    assert b"<two:>" in answer


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize("field", [b"X-More: ", b"x"])
def test_a_head_without_end_is_refused(client: socket.socket, field: bytes) -> None:
    client.sendall(HEAD[:-4] + b"\r\n" + field + b"x" * 90_000)
    answer = all_of(client)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert "at most 65536 bytes" in detail_of(answer)


def test_a_head_without_end_behind_a_request_in_work_is_answered_in_its_turn(
    server: Running, client: socket.socket
) -> None:
    client.sendall(HEAD % b"slow")
    client.sendall(HEAD[:-4] + b"\r\nX-More: " + b"x" * 90_000)
    wait_until(lambda: connection_of(server)._is_deaf)
    server.application.release()
    answer = all_of(client)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"431"]


@pytest.mark.parametrize(
    "piece",
    [b"x0000001: y\r\n" * 1_000, b"y" * 10_000],
    ids=["many trailers", "a trailer without end"],
)
def test_trailers_are_bounded_and_not_kept(client: socket.socket, piece: bytes) -> None:
    rss = psutil.Process().memory_info().rss
    client.sendall(CHUNKED % b"trailers" + b"1\r\nb\r\n0\r\nx: ")
    n_bytes = send_until_cut_off(client, piece)
    assert n_bytes < 10 * MB
    assert psutil.Process().memory_info().rss < rss + 16 * MB


@pytest.mark.parametrize("path", [b"early", b"one"])
@pytest.mark.parametrize(
    "piece",
    [b"1;" + b"e" * 5_000 + b"\r\nx\r\n", b"1;" + b"e" * 10_000_000, b"0" * 10_000],
    ids=["extensions", "an extension without end", "a size without end"],
)
def test_what_comes_with_chunks_and_is_no_body_is_bounded(
    server: Running, client: socket.socket, path: bytes, piece: bytes
) -> None:
    client.sendall(CHUNKED % path)
    assert send_until_cut_off(client, piece) < 21 * MB
    wait_until(lambda: server.n_connections() == 0)
    if path == b"one":
        wait_until(lambda: server.application.gone == ["one"])


def test_too_much_beside_the_body_is_a_bad_request(server: Running, client: socket.socket) -> None:
    client.sendall(CHUNKED % b"one" + b"1;" + b"e" * 90_000)
    answer = all_of(client)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert "trailers" in detail_of(answer)
    wait_until(lambda: server.application.gone == ["one"])


@pytest.mark.parametrize("size", [8, 1_000, 100_000])
def test_bodies_in_chunks_have_room_for_their_sizes(
    server: Running, client: socket.socket, size: int
) -> None:
    n_chunks = 2 * MB // size
    chunk = b"%x\r\n%b\r\n" % (size, b"x" * size)
    client.sendall(CHUNKED % b"whole" + chunk * n_chunks)
    client.sendall(b"0\r\nX-Trailer: 1\r\n\r\n")
    until(client, b">")
    ((_, body, _),) = server.application.requests
    assert len(body) == n_chunks * size


def test_trailers_are_no_headers(server: Running, client: socket.socket) -> None:
    trailers = b"0\r\nX-API-Key: secret\r\nHost: other\r\n\r\n"
    client.sendall(CHUNKED % b"one" + b"1\r\nb\r\n" + trailers + HEAD % b"two")
    answer = until(client, b"<two:>")
    assert answer.count(b"HTTP/1.1 200 ") == 2
    for _, _, headers in server.application.requests:
        assert b"x-api-key" not in headers
        assert headers[b"host"] == b"here"


def test_pipelined_requests_are_answered_in_turn_up_to_a_bound(
    server: Running, client: socket.socket
) -> None:
    client.sendall(HEAD % b"slow" + b"".join(HEAD % b"%d" % number for number in range(10_000)))
    wait_until(lambda: connection_of(server)._is_deaf)
    server.application.release()
    answer = all_of(client)
    paths = [path for path, *_ in server.application.requests]
    assert paths == ["slow", *map(str, range(BOUNDS.max_pipelined_requests - 1))]
    answers = answer.split(b"HTTP/1.1 200 OK")[1:]
    assert len(answers) == len(paths)
    # The client knows that the others were not looked at.
    assert [b"connection: close" in one for one in answers] == [False] * (len(paths) - 1) + [True]


def test_more_requests_than_may_wait_are_answered_one_after_the_other(
    server: Running, client: socket.socket
) -> None:
    for _ in range(5):
        client.sendall(HEAD % b"one" * 10)
        answer = b""
        while answer.count(b"<one:>") < 10:
            answer += client.recv(65_536)
    assert len(server.application.requests) == 50


def test_a_target_that_is_too_long_is_refused(client: socket.socket) -> None:
    client.sendall(HEAD % (b"x" * MAX_TARGET_BYTES))
    answer = all_of(client)
    assert answer.startswith(b"HTTP/1.1 414 ")
    assert str(MAX_TARGET_BYTES) in detail_of(answer)


# ---------------------------------------------------------------- answers that are early


@pytest.mark.parametrize("n_body", [200_000, None], ids=["long", "chunked"])
def test_an_answer_before_the_end_of_a_long_request_is_the_last_and_can_be_read(
    server: Running, client: socket.socket, n_body: int | None
) -> None:
    head = CHUNKED if n_body is None else HEAD.replace(b": 0", b": %d" % n_body)
    client.sendall(head % b"early")
    answer = all_of(client)
    assert b"connection: close" in answer
    assert answer.endswith(b"<early:>")
    # The client has gone on sending meanwhile; only then it is cut off.
    assert send_until_cut_off(client, b"x" * 10_000) < 10 * MB
    wait_until(lambda: server.n_connections() == 0)


def test_a_client_that_sends_all_of_a_long_body_first_still_reads_its_answer(
    client: socket.socket,
) -> None:
    body = b"x" * 90_000 + b"\r\n"
    client.sendall(CHUNKED % b"early" + b"%x\r\n" % (len(body) - 2) + body + b"0\r\n\r\n")
    assert all_of(client).endswith(b"<early:>")


def test_a_short_body_may_come_after_its_answer_and_the_connection_is_kept(
    server: Running, client: socket.socket
) -> None:
    client.sendall((HEAD % b"early").replace(b": 0", b": 5"))
    assert b"connection: close" not in until(client, b"<early:>")
    client.sendall(b"hello" + HEAD % b"two")
    assert until(client, b"<two:>").startswith(b"HTTP/1.1 200 ")


def test_a_short_body_that_does_not_come_after_its_answer_ends_the_connection(
    server: Running, client: socket.socket
) -> None:
    client.sendall((HEAD % b"early").replace(b": 0", b": 5") + b"h")
    assert until(client, b"<early:>")
    # One more byte arms no timer anew.
    client.sendall(b"e")
    wait_until(lambda: server.n_connections() == 0)
    assert all_of(client) == b""


# ---------------------------------------------------------------- HTTP as the RFCs have it


@pytest.mark.parametrize(
    "offer",
    [b"h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA", b"websocket", b"TLS/1.0", b"foo, bar/2"],
)
@pytest.mark.parametrize("is_split", [False, True], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
def test_an_offer_to_speak_another_protocol_is_ignored(
    server: Running, client: socket.socket, offer: bytes, is_split: bool, is_chunked: bool
) -> None:
    body = b"GET /smuggled HTTP/1.1\r\nHost: here\r\n\r\n"
    offered = b"\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: " + offer + b"\r\n\r\n"
    if is_chunked:
        sent = (CHUNKED % b"one")[:-4] + offered + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    else:
        sent = (HEAD % b"one").replace(b": 0", b": %d" % len(body))[:-4] + offered + body
    sent = 2 * sent + HEAD % b"two"
    for piece in [sent] if not is_split else [bytes([byte]) for byte in sent]:
        client.sendall(piece)
    answer = until(client, b"<two:>")
    assert answer.count(b"HTTP/1.1 200 ") == 3
    paths = [(path, body) for path, body, _ in server.application.requests]
    assert paths == [("one", body), ("one", body), ("two", b"")]
    assert b"upgrade" not in server.application.requests[0][2]


@pytest.mark.parametrize(
    ("hosts", "status"),
    [
        (b"", b"400"),
        (b"Host: a\r\n", b"200"),
        (b"Host:\r\n", b"200"),
        (b"Host: a\r\nHost: a\r\n", b"400"),
        (b"Host: a\r\nhOST: b\r\n", b"400"),
    ],
)
def test_a_request_names_one_host(client: socket.socket, hosts: bytes, status: bytes) -> None:
    client.sendall(b"GET /one HTTP/1.1\r\n" + hosts + b"Connection: close\r\n\r\n")
    answer = all_of(client)
    assert answer.startswith(b"HTTP/1.1 " + status)
    if status == b"400":
        assert "Host" in detail_of(answer)


def test_a_request_of_http_1_0_needs_no_host(client: socket.socket) -> None:
    client.sendall(b"GET /one HTTP/1.0\r\n\r\n")
    assert all_of(client).endswith(b"<one:>")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"get / HTTP/1.1\r\nHost: here\r\n\r\n",
        b"GET / HTTP/1.1\nHost: here\n\n",
        b"GET http://here HTTP/1.1\r\nHost: here\r\n\r\n",
        b"CONNECT here:443 HTTP/1.1\r\nHost: here\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        HEAD.replace(b"Content-Length: 0", b"Content-Length: 1, 2"),
        HEAD.replace(b"Content-Length: 0", b"Content-Length: 1\r\nTransfer-Encoding: chunked"),
        HEAD.replace(b"Content-Length: 0", b"Transfer-Encoding: xchunked"),
        CHUNKED % b"one" + b"g\r\n",
        CHUNKED % b"one" + b"1\r\nxx",
    ],
)
def test_what_is_not_http_is_a_bad_request(client: socket.socket, sent: bytes) -> None:
    client.sendall(sent)
    answer = all_of(client)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert "HTTP" in detail_of(answer)


def test_what_is_not_http_is_refused_after_the_answers_to_what_is(
    server: Running, client: socket.socket
) -> None:
    client.sendall(HEAD % b"slow" + HEAD % b"two" + b"\0")
    wait_until(lambda: connection_of(server)._is_deaf)
    server.application.release()
    answer = all_of(client)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"200", b"400"]
    assert answer.index(b"<slow:>") < answer.index(b"<two:>")


def test_a_client_that_goes_away_is_no_news_for_the_log(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(50):
        with server.connect() as client:
            client.sendall(HEAD % b"slow" + HEAD % b"two" + (b"\0" if number % 2 else b""))
    wait_until(lambda: server.n_connections() == 0)
    server.application.release()
    with server.connect() as client:
        client.sendall(HEAD % b"one")
        until(client, b"<one:>")
    assert caplog.records == []
