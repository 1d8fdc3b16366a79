"""How many connections a worker takes, and from whom."""

import resource
import ssl
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.server.bounds import Bounds
from app.server.listener import origin_of
from app.settings import Settings
from tests.certificates import write_certificate
from tests.raw_http import BOUNDS, HEAD, all_of, detail_of, running, until, wait_until


def test_connections_of_an_address_are_bounded_and_others_are_served() -> None:
    bounds = replace(BOUNDS, max_connections_per_address=5, receive_timeout_s=60)
    with running(bounds) as server, ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(server.connect("127.0.0.2")).sendall(b"GET")
        wait_until(lambda: server.n_connections() == 5)
        with server.connect("127.0.0.2") as refused:
            answer = all_of(refused)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nretry-after: 1\r\n" in answer
            assert "too many connections" in detail_of(answer)
        with server.connect() as other:
            other.sendall(HEAD % b"one")
            assert until(other, b"<one:>")


def test_connections_are_bounded_in_all() -> None:
    bounds = replace(BOUNDS, max_connections=5, receive_timeout_s=60)
    with running(bounds) as server, ExitStack() as stack:
        held = [stack.enter_context(server.connect(f"127.0.0.{n}")) for n in range(2, 7)]
        for client in held:
            client.sendall(b"GET")
        wait_until(lambda: server.n_connections() == 5)
        with server.connect() as refused:
            assert all_of(refused).startswith(b"HTTP/1.1 503 ")
        held[0].close()
        wait_until(lambda: server.n_connections() == 4)
        with server.connect() as client:
            client.sendall(HEAD % b"one")
            assert until(client, b"<one:>")


def test_who_has_been_idle_the_longest_makes_room() -> None:
    bounds = replace(BOUNDS, max_connections=3, idle_timeout_s=600)
    with running(bounds) as server, ExitStack() as stack:
        clients = [stack.enter_context(server.connect(f"127.0.0.{n}")) for n in range(2, 5)]
        for path, client in zip((b"slow", b"b", b"c"), clients, strict=True):
            client.sendall(HEAD % path)
            if path != b"slow":
                until(client, b"<%b:>" % path)
        with server.connect() as newcomer:
            newcomer.sendall(HEAD % b"one")
            assert until(newcomer, b"<one:>")
        assert all_of(clients[1]) == b""
        clients[2].sendall(HEAD % b"c")
        assert until(clients[2], b"<c:>")


def test_who_never_begins_tls_takes_a_place_and_loses_it(tmp_path: Path) -> None:
    certificate, key = map(str, write_certificate(tmp_path))
    bounds = replace(BOUNDS, max_connections=3, receive_timeout_s=1.0)
    trust = ssl.create_default_context(cafile=certificate)
    with (
        running(bounds, ssl_certfile=certificate, ssl_keyfile=key) as server,
        ExitStack() as stack,
    ):
        silent = [stack.enter_context(server.connect()) for _ in range(3)]
        with server.connect() as refused:
            assert all_of(refused) == b""
        for client in silent:
            with suppress(ConnectionError):
                all_of(client)
        with trust.wrap_socket(server.connect(), server_hostname="127.0.0.1") as client:
            client.sendall(HEAD % b"one")
            assert until(client, b"<one:>")


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_whose_an_address_is(address: str, origin: str) -> None:
    assert origin_of(address) == origin


def test_connections_leave_files_for_the_rest_of_the_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def limit(n_files: int) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (n_files, n_files))

    settings = Settings(pool_size=8, max_connections=1_000)
    limit(1_024)
    assert Bounds.of(settings).max_connections < 1_024 - 2 * 8
    limit(1_000_000)
    assert Bounds.of(settings).max_connections == 1_000
    limit(64)
    with pytest.raises(ConfigurationError, match="open files"):
        Bounds.of(settings)
