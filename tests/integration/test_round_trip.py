"""Statements sent together: answers, failures, what is prepared and what is forgotten."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID

import pytest
from psycopg import errors as pg

from app import errors
from app.settings import Settings
from app.store.engine import ItemKeys, Tokens, VarBit, create_scan_engine, scan_driver
from app.store.round_trip import RoundTrip, ScanConnection

_N_PREPARED = "SELECT count(*) FROM pg_prepared_statements"


@pytest.fixture
def raw(settings: Settings, database_dsn: str) -> Iterator[ScanConnection]:
    engine = create_scan_engine(replace(settings, pool_size=1), database_dsn)
    with scan_driver(engine) as raw:
        yield raw
    engine.dispose()


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
        one = trip.execute("SELECT %s::int, %s::bigint, %s::text, %s::bytea, %s::uuid, %s::varbit, %s::bytea", values)
        many = trip.execute("SELECT unnest(%b::varbit[])", ([VarBit(b"\x01"), VarBit(b"\x02")],))
        arrays = trip.execute(
            "SELECT %s::bigint[], %s::bytea[]", (Tokens([(9).to_bytes(8, "big")]), ItemKeys([b"k" * 16, b"l" * 16]))
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


def test_nothing_is_prepared_where_the_settings_forbid_it(settings: Settings, database_dsn: str) -> None:
    engine = create_scan_engine(replace(settings, prepare_threshold=-1), database_dsn)
    with scan_driver(engine) as raw:
        assert [ask(raw, "SELECT %s", VarBit(b"\x07")) for _ in range(9)] == [VarBit(b"\x07")] * 9
        assert n_prepared(raw) == 0
    engine.dispose()


def test_questions_and_answers_larger_than_all_buffers(raw: ScanConnection) -> None:
    large = bytes(range(256)) * 40_000
    with RoundTrip(raw) as trip:
        answers = [trip.execute("SELECT %s::bytea, repeat('x', 10000000)", (large,)) for _ in range(3)]
    assert all(answer.one()[0] == large and len(answer.one()[1]) == 10_000_000 for answer in answers)


def test_a_lost_connection_is_unavailable_and_replaced(settings: Settings, database_dsn: str) -> None:
    engine = create_scan_engine(replace(settings, pool_size=1), database_dsn)
    with pytest.raises(errors.Unavailable), scan_driver(engine) as raw:
        ask(raw, "SELECT pg_terminate_backend(pg_backend_pid())")
    with scan_driver(engine) as raw:
        assert ask(raw, "SELECT 8") == 8
    engine.dispose()


def test_an_interrupted_round_trip_leaves_no_connection_behind_that_owes_answers(
    settings: Settings, database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    engine = create_scan_engine(replace(settings, pool_size=1), database_dsn)
    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt), scan_driver(engine) as raw:
        patched.setattr(RoundTrip, "_next_result", interrupted)
        ask(raw, "SELECT 1")
    with scan_driver(engine) as raw:
        assert ask(raw, "SELECT 2") == 2
    engine.dispose()
