"""Statements sent together: answers, failures, what is prepared and what is forgotten."""

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from uuid import UUID

import pytest
from psycopg import errors as pg

from app import errors
from app.settings import Settings
from app.store.pg.engine import ItemKeys, Tokens, VarBit
from app.store.pg.round_trip import Answer, RoundTrip, ScanConnection
from app.store.pg.scan_pool import ScanPool

_N_PREPARED = "SELECT count(*) FROM pg_prepared_statements"


@pytest.fixture
def raw(pool: ScanPool) -> Iterator[ScanConnection]:
    with pool.lend_blocking() as raw:
        yield raw


def ask(raw: ScanConnection, statement: str, *parameters: object) -> object:
    with RoundTrip(raw) as trip:
        answer = trip.execute(statement, parameters)
    return answer.one()[0]


def ask_all(raw: ScanConnection, *statements: str) -> None:
    with RoundTrip(raw) as trip:
        for statement in statements:
            trip.execute(statement)


def n_prepared(raw: ScanConnection) -> int:
    return int(raw.execute(_N_PREPARED, prepare=False).fetchall()[0][0])


def test_values_of_all_our_types_go_there_and_back(raw: ScanConnection) -> None:
    values = (
        7,
        2**40,
        "text",
        b"\x00\xff",
        UUID(int=5),
        VarBit(b"\xa5\x01"),
        None,
    )
    with RoundTrip(raw) as trip:
        one = trip.execute(
            "SELECT %s::int, %s::bigint, %s::text, %s::bytea, %s::uuid, %s::varbit, %s::bytea",
            values,
        )
        many = trip.execute("SELECT unnest(%b::varbit[])", ([VarBit(b"\x01"), VarBit(b"\x02")],))
        arrays = trip.execute(
            "SELECT %s::bigint[], %s::bytea[]",
            (Tokens([(9).to_bytes(8, "big")]), ItemKeys([b"k" * 16, b"l" * 16])),
        )
        none = trip.execute("SELECT 1 WHERE false")
    assert one.one() == values
    assert many.rows == [(VarBit(b"\x01"),), (VarBit(b"\x02"),)]
    assert arrays.one() == ([9], [b"k" * 16, b"l" * 16])
    assert list(none.rows) == []


def test_a_failure_ends_the_transaction_of_all(raw: ScanConnection) -> None:
    raw.execute("CREATE TEMPORARY TABLE kept (n integer)")
    with pytest.raises(pg.DivisionByZero):
        ask_all(raw, "INSERT INTO kept VALUES (1)", "SELECT 1 / 0", "SELECT 'never reached'")
    assert ask(raw, "SELECT count(*) FROM kept") == 0


def test_nothing_is_sent_when_the_block_raises(raw: ScanConnection) -> None:
    with contextlib.suppress(ValueError), RoundTrip(raw) as trip:
        trip.execute("SELECT no_such_function()")
        raise ValueError("changed my mind")
    assert ask(raw, "SELECT 2") == 2


def test_a_statement_is_prepared_once_for_each_types_of_its_values(raw: ScanConnection) -> None:
    for value in (1, 2, 3):
        with RoundTrip(raw) as trip:
            answers = [trip.execute("SELECT %s", (value,)) for _ in range(2)]
        assert [answer.one() for answer in answers] == [(value,)] * 2
    assert n_prepared(raw) == len(raw.prepared) == 1
    assert ask(raw, "SELECT %s", 2**40) == 2**40
    assert n_prepared(raw) == 2


def test_what_failed_to_be_prepared_is_not_taken_for_prepared(raw: ScanConnection) -> None:
    for _ in range(2):
        with pytest.raises(pg.UndefinedTable):
            ask_all(raw, "SELECT 1", "SELECT * FROM nowhere", "SELECT 3")
    assert ask(raw, "SELECT 3") == 3
    raw.execute("CREATE TEMPORARY TABLE nowhere AS SELECT 4 AS n")
    assert ask(raw, "SELECT * FROM nowhere") == 4


def test_the_longest_unused_are_forgotten(raw: ScanConnection) -> None:
    for number in range(150):
        assert ask(raw, f"SELECT {number}") == number
        assert ask(raw, "SELECT 'again'") == "again"
    assert n_prepared(raw) == len(raw.prepared) == 100
    assert raw.n_prepared == 151
    assert ask(raw, "SELECT 0") == 0


def test_statements_that_others_deallocated_are_prepared_again(raw: ScanConnection) -> None:
    assert ask(raw, "SELECT 5") == 5
    raw.execute("DEALLOCATE ALL")
    assert ask(raw, "SELECT 5") == 5
    assert ask(raw, "SELECT 6") == 6


def test_nothing_is_prepared_where_the_settings_forbid_it(
    settings: Settings, database_dsn: str
) -> None:
    unprepared = replace(settings, prepare_threshold=-1)
    with closing(ScanPool(unprepared, database_dsn)) as pool, pool.lend_blocking() as raw:
        assert [ask(raw, "SELECT %s", VarBit(b"\x07")) for _ in range(9)] == [VarBit(b"\x07")] * 9
        assert n_prepared(raw) == 0


LARGE = bytes(range(256)) * 40_000
LARGE_QUESTION = "SELECT %s::bytea, repeat('x', 10000000)"


def assert_large(answers: list[Answer]) -> None:
    assert all(
        answer.one()[0] == LARGE and len(answer.one()[1]) == 10_000_000 for answer in answers
    )


def test_questions_and_answers_larger_than_all_buffers(raw: ScanConnection) -> None:
    with RoundTrip(raw) as trip:
        answers = [trip.execute(LARGE_QUESTION, (LARGE,)) for _ in range(3)]
    assert_large(answers)


async def test_the_event_loop_goes_on_while_it_waits(pool: ScanPool) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    async with pool.lend() as raw, pool.lend() as other:

        async def sleep(connection: ScanConnection) -> None:
            async with RoundTrip(connection) as trip:
                trip.execute("SELECT pg_sleep(0.3)")

        await asyncio.gather(sleep(raw), sleep(other))
        async with RoundTrip(raw) as trip:
            answers = [trip.execute(LARGE_QUESTION, (LARGE,)) for _ in range(3)]
    assert_large(answers)
    ticking.cancel()
    assert ticks > 10


def test_a_lost_connection_is_unavailable_and_replaced(pool: ScanPool) -> None:
    with pytest.raises(errors.Unavailable), pool.lend_blocking() as raw:
        ask(raw, "SELECT pg_terminate_backend(pg_backend_pid())")
    with pool.lend_blocking() as raw:
        assert ask(raw, "SELECT 8") == 8


async def test_a_connection_lost_while_the_loop_waits_is_unavailable_and_replaced(
    pool: ScanPool,
) -> None:
    with pytest.raises(errors.Unavailable):
        async with pool.lend() as raw, RoundTrip(raw) as trip:
            trip.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    async with pool.lend() as raw, RoundTrip(raw) as trip:
        answer = trip.execute("SELECT 8")
    assert answer.one() == (8,)


def test_an_interrupted_round_trip_leaves_no_connection_behind_that_owes_answers(
    pool: ScanPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with (
        monkeypatch.context() as patched,
        contextlib.suppress(KeyboardInterrupt),
        pool.lend_blocking() as raw,
    ):
        patched.setattr(RoundTrip, "_next_result", interrupted)
        ask(raw, "SELECT 1")
    with pool.lend_blocking() as raw:
        assert ask(raw, "SELECT 2") == 2


async def test_a_cancelled_round_trip_leaves_no_connection_behind_that_owes_answers(
    pool: ScanPool,
) -> None:
    async def sleep() -> None:
        async with pool.lend() as raw, RoundTrip(raw) as trip:
            trip.execute("SELECT pg_sleep(60)")

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(sleep(), 0.2)
    async with pool.lend() as raw, RoundTrip(raw) as trip:
        answer = trip.execute("SELECT 2")
    assert answer.one() == (2,)
