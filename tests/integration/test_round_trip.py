"""Statements sent together: answers, failures, what is prepared and what is forgotten."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID

import pytest
from psycopg import errors as pg

from app import errors
from app.settings import Settings
from app.store.pg.adapters import ItemKeys, Tokens, VarBit
from app.store.pg.connection import Connection
from app.store.pg.pool import Pool
from app.store.pg.round_trip import Answer, RoundTrip

_N_PREPARED = "SELECT count(*) FROM pg_prepared_statements"


@pytest.fixture
async def raw(pool: Pool) -> AsyncIterator[Connection]:
    async with pool.lend() as raw:
        await raw.set_autocommit(True)
        yield raw


async def ask(raw: Connection, statement: str, *parameters: object) -> object:
    async with RoundTrip(raw) as trip:
        answer = trip.execute(statement, parameters)
    return answer.one()[0]


async def ask_all(raw: Connection, *statements: str) -> None:
    async with RoundTrip(raw) as trip:
        for statement in statements:
            trip.execute(statement)


async def n_prepared(raw: Connection) -> int:
    cursor = await raw.execute(_N_PREPARED, prepare=False)
    return int((await cursor.fetchall())[0][0])


async def test_values_of_all_our_types_go_there_and_back(raw: Connection) -> None:
    values = (7, 2**40, "text", b"\x00\xff", UUID(int=5), VarBit(b"\xa5\x01"), None)
    async with RoundTrip(raw) as trip:
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


async def test_a_failure_ends_the_transaction_of_all(raw: Connection) -> None:
    await raw.execute("CREATE TEMPORARY TABLE kept (n integer)")
    with pytest.raises(pg.DivisionByZero):
        await ask_all(raw, "INSERT INTO kept VALUES (1)", "SELECT 1 / 0", "SELECT 'never reached'")
    assert await ask(raw, "SELECT count(*) FROM kept") == 0


async def test_nothing_is_sent_when_the_block_raises(raw: Connection) -> None:
    with contextlib.suppress(ValueError):
        async with RoundTrip(raw) as trip:
            trip.execute("SELECT no_such_function()")
            raise ValueError("changed my mind")
    assert await ask(raw, "SELECT 2") == 2


async def test_a_statement_is_prepared_once_for_each_types_of_its_values(raw: Connection) -> None:
    for value in (1, 2, 3):
        async with RoundTrip(raw) as trip:
            answers = [trip.execute("SELECT %s", (value,)) for _ in range(2)]
        assert [answer.one() for answer in answers] == [(value,)] * 2
    assert await n_prepared(raw) == len(raw.prepared) == 1
    assert await ask(raw, "SELECT %s", 2**40) == 2**40
    assert await n_prepared(raw) == 2


async def test_what_failed_to_be_prepared_is_not_taken_for_prepared(raw: Connection) -> None:
    for _ in range(2):
        with pytest.raises(pg.UndefinedTable):
            await ask_all(raw, "SELECT 1", "SELECT * FROM nowhere", "SELECT 3")
    assert await ask(raw, "SELECT 3") == 3
    await raw.execute("CREATE TEMPORARY TABLE nowhere AS SELECT 4 AS n")
    assert await ask(raw, "SELECT * FROM nowhere") == 4


async def test_the_longest_unused_are_forgotten(raw: Connection) -> None:
    for number in range(150):
        assert await ask(raw, f"SELECT {number}") == number
        assert await ask(raw, "SELECT 'again'") == "again"
    assert await n_prepared(raw) == len(raw.prepared) == 100
    assert raw.n_prepared == 151
    assert await ask(raw, "SELECT 0") == 0


async def test_statements_that_others_deallocated_are_prepared_again(raw: Connection) -> None:
    assert await ask(raw, "SELECT 5") == 5
    await raw.execute("DEALLOCATE ALL")
    assert await ask(raw, "SELECT 5") == 5
    assert await ask(raw, "SELECT 6") == 6


async def test_two_connections_give_what_they_prepare_different_names(pool: Pool) -> None:
    # An old pooler may let one of them execute what the other has prepared.
    async with pool.lend() as raw, pool.lend() as other:
        assert await ask(raw, "SELECT 5") == 5
        assert await ask(other, "SELECT 6") == 6
        assert not {*raw.prepared.values()} & {*other.prepared.values()}


async def test_nothing_is_prepared_where_the_settings_forbid_it(
    settings: Settings, database_dsn: str
) -> None:
    unprepared = replace(settings, prepare_threshold=-1)
    async with Pool(unprepared, database_dsn) as pool, pool.lend() as raw:
        for _ in range(9):
            assert await ask(raw, "SELECT %s", VarBit(b"\x07")) == VarBit(b"\x07")
        assert await n_prepared(raw) == 0


LARGE = bytes(range(256)) * 40_000
LARGE_QUESTION = "SELECT %s::bytea, repeat('x', 10000000)"


def assert_large(answers: list[Answer]) -> None:
    assert all(
        answer.one()[0] == LARGE and len(answer.one()[1]) == 10_000_000 for answer in answers
    )


async def test_questions_and_answers_larger_than_all_buffers(raw: Connection) -> None:
    async with RoundTrip(raw) as trip:
        answers = [trip.execute(LARGE_QUESTION, (LARGE,)) for _ in range(3)]
    assert_large(answers)


async def test_the_event_loop_goes_on_while_a_round_trip_waits(raw: Connection, pool: Pool) -> None:
    # The statement ends when the loop gets round to giving back what it waits for.
    await ask(raw, "SELECT 1 FROM pg_advisory_lock(7)")
    async with pool.lend() as other:
        waiting = asyncio.create_task(ask(other, "SELECT 2 FROM pg_advisory_lock(7)"))
        await asyncio.sleep(0)
        assert await ask(raw, "SELECT pg_advisory_unlock(7)") is True
        assert await waiting == 2


async def test_a_connection_lost_while_the_loop_waits_is_unavailable_and_replaced(
    pool: Pool,
) -> None:
    with pytest.raises(errors.Unavailable):
        async with pool.lend() as raw:
            await ask(raw, "SELECT pg_terminate_backend(pg_backend_pid())")
    async with pool.lend() as raw:
        assert await ask(raw, "SELECT 8") == 8


async def test_an_interrupted_round_trip_leaves_no_connection_behind_that_owes_answers(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patched:
        async with pool.lend() as raw:
            patched.setattr(RoundTrip, "_next_result", interrupted)
            with pytest.raises(RuntimeError, match="in the middle"):
                await ask(raw, "SELECT 1")
    async with pool.lend() as other:
        assert await ask(other, "SELECT 2") == 2
    assert raw.closed


async def test_a_cancelled_round_trip_leaves_no_connection_behind_that_owes_answers(
    pool: Pool,
) -> None:
    async def sleep() -> None:
        async with pool.lend() as raw:
            await ask(raw, "SELECT pg_sleep(60)")

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(sleep(), 0.2)
    async with pool.lend() as raw:
        assert await ask(raw, "SELECT 2") == 2
