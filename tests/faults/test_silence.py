"""A host that is gone without a word: the kernel is asked to look whether it is still there."""

import os
import socket

import psycopg
import pytest

from app.settings import Settings
from app.store.pg.connection import connect
from tests.faults.postgres import Way


def socket_options(raw: psycopg.AsyncConnection[object]) -> tuple[int, ...]:
    with socket.socket(fileno=os.dup(raw.fileno())) as own:
        is_on = own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options = (
            socket.TCP_KEEPIDLE,
            socket.TCP_KEEPINTVL,
            socket.TCP_KEEPCNT,
            socket.TCP_USER_TIMEOUT,
        )
        return (is_on, *(own.getsockopt(socket.IPPROTO_TCP, option) for option in options))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", (1, 30, 10, 3, 60_000)),
        ("&keepalives_idle=5", (1, 5, 10, 3, 60_000)),
        ("&keepalives=0", (0,)),
    ],
    ids=["ours", "another time", "none"],
)
async def test_a_connection_finds_out_that_the_host_is_gone(
    way: Way, given: str, expected: tuple[int, ...]
) -> None:
    async with await connect(Settings(), way.dsn + given) as raw:
        assert socket_options(raw)[: len(expected)] == expected
