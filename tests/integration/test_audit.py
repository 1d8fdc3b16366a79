"""The audit log: written with each change, append-only, and telling when it was tampered with."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import psycopg
import pytest
from psycopg import errors as pg
from sqlalchemy.ext.asyncio import AsyncEngine

from app import errors, store
from app.domain import AuditEntry, Caller, IndexAccess, Item, NewIndex, Query
from app.services.context import ServiceContext
from app.settings import Settings

KEY = "ab" * 32
CALLER = Caller(name="root 01234567", request_id="request-1")
ACCESS = IndexAccess("books", KEY, CALLER)
SECRET_TABLES = ("indexes", "items", "item_counts", "audit_log", "audit_chains", "dropped_indexes")


def item(number: int) -> Item:
    return Item(f"id-{number}", [float(number), 1.0, 2.0], contents="text")


@pytest.fixture
async def services(settings: Settings) -> AsyncIterator[ServiceContext]:
    async with ServiceContext.open(settings) as context:
        yield context


@pytest.fixture
def database(database_dsn: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_dsn, autocommit=True) as connection:
        yield connection


async def use(services: ServiceContext) -> None:
    await services.indexes.create(NewIndex(name="books", index_key=KEY), CALLER)
    await services.vectors.upsert(ACCESS, [item(1), item(2), item(1)])
    await services.vectors.delete(ACCESS, ["id-1", "id-9"])
    await services.indexes.delete(ACCESS)


def problems(database: psycopg.Connection) -> list[str]:
    rows = database.execute("SELECT problem FROM sealdex_views.audit_problems").fetchall()
    return sorted({str(problem).partition(":")[0] for (problem,) in rows})


async def test_every_change_is_recorded_with_who_what_and_how_many(
    services: ServiceContext, database: psycopg.Connection
) -> None:
    await use(services)
    rows = database.execute(
        "SELECT caller, operation, index_name, n_items, outcome, request_id"
        " FROM sealdex_views.audit ORDER BY recorded_at"
    ).fetchall()
    assert rows == [
        ("root 01234567", operation, "books", n_items, "done", "request-1")
        for operation, n_items in [
            ("create", None),
            ("upsert", 2),
            ("delete_items", 1),
            ("delete", None),
        ]
    ]
    of_index = database.execute(
        "SELECT count(DISTINCT index_id), count(DISTINCT key_id) FROM audit_log"
    ).fetchone()
    assert of_index == (1, 1)
    assert problems(database) == []


async def test_no_key_is_in_the_log(services: ServiceContext, database: psycopg.Connection) -> None:
    await use(services)
    text = str(database.execute("SELECT audit_log::text FROM audit_log").fetchall())
    assert "books" in text
    assert KEY not in text
    assert "id-1" not in text


async def test_a_change_that_fails_leaves_no_entry(
    services: ServiceContext, database: psycopg.Connection
) -> None:
    await services.indexes.create(NewIndex(name="books", index_key=KEY), CALLER)
    with pytest.raises(errors.Conflict):
        await services.indexes.create(NewIndex(name="books", index_key=KEY), CALLER)
    with pytest.raises(errors.InvalidInput):
        await services.vectors.upsert(ACCESS, [Item("x", [1.0]), Item("y", [1.0, 2.0])])
    assert database.execute("SELECT operation FROM audit_log").fetchall() == [("create",)]


@pytest.mark.parametrize("is_on", [True, False])
async def test_reads_and_refusals_are_recorded_by_setting(
    database_dsn: str, database: psycopg.Connection, is_on: bool
) -> None:
    reader = Caller(name="root", request_id="request-2", operation="query", is_read=True)
    async with ServiceContext.open(
        Settings(database_url=database_dsn, audit_reads=is_on)
    ) as services:
        await services.indexes.create(NewIndex(name="books", index_key=KEY), CALLER)
        await services.vectors.upsert(ACCESS, [item(1)])
        await services.vectors.query(
            IndexAccess("books", KEY, reader), Query(vectors=[[1.0, 2.0, 3.0]])
        )
        with pytest.raises(errors.KeyRejected):
            await services.vectors.query(
                IndexAccess("books", "00" * 32, reader), Query(vectors=[[1.0, 2.0, 3.0]])
            )
        with pytest.raises(errors.NotFound):
            await services.vectors.query(IndexAccess("none\0", KEY, reader), Query(vectors=[[1.0]]))
    rows = database.execute(
        "SELECT outcome FROM audit_log WHERE operation = 'query' ORDER BY recorded_at"
    ).fetchall()
    assert rows == ([("done",), ("refused",), ("failed",)] if is_on else [])
    assert problems(database) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_log SET caller = 'nobody'",
        "DELETE FROM audit_log",
        "TRUNCATE audit_log",
        "TRUNCATE audit_log_default",
        "DELETE FROM audit_chains",
        "TRUNCATE audit_chains CASCADE",
    ],
)
async def test_the_log_refuses_every_change(
    services: ServiceContext, database: psycopg.Connection, statement: str
) -> None:
    await use(services)
    with pytest.raises(pg.InsufficientPrivilege, match="append-only"):
        database.execute(statement)


async def test_truncating_any_month_is_refused(
    services: ServiceContext, database: psycopg.Connection
) -> None:
    names = database.execute("SELECT name FROM sealdex_views.audit_partitions").fetchall()
    assert len(names) == 5
    for (name,) in names:
        with pytest.raises(pg.InsufficientPrivilege):
            database.execute(f"TRUNCATE {name}")


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE audit_log SET caller = 'nobody' WHERE operation = 'upsert'", ["changed"]),
        ("UPDATE audit_log SET n_items = NULL WHERE operation = 'upsert'", ["changed"]),
        ("UPDATE audit_log SET outcome = NULL WHERE false", []),
        ("DELETE FROM audit_log WHERE operation = 'create'", ["removed"]),
        ("DELETE FROM audit_log WHERE operation = 'upsert'", ["removed"]),
        ("DELETE FROM audit_log WHERE operation = 'delete'", ["removed"]),
        ("DELETE FROM audit_log", ["removed"]),
        ("DELETE FROM audit_chains", ["unknown"]),
        (
            (
                "UPDATE audit_log SET recorded_at = recorded_at - interval '1 s'"
                " WHERE operation = 'create'"
            ),
            ["changed"],
        ),
        (
            "UPDATE audit_log SET hash = sha256('x') WHERE operation = 'upsert'",
            ["changed", "removed"],
        ),
    ],
)
async def test_tampering_behind_the_triggers_is_found_by_one_query(
    services: ServiceContext, database: psycopg.Connection, statement: str, found: list[str]
) -> None:
    await use(services)
    # What only a superuser can do.
    database.execute("SET session_replication_role = replica")
    database.execute(statement)
    assert problems(database) == found


async def test_writers_at_the_same_time_use_different_chains_and_none_waits(
    engine: AsyncEngine,
) -> None:
    entry = AuditEntry(
        caller="root",
        key_id=None,
        operation="x",
        index_id=uuid4(),
        index_name="x",
        n_items=1,
        request_id="",
        outcome="done",
    )
    async with engine.connect() as one, engine.connect() as other:
        await store.audit.record(one, entry)
        # Would wait for ever if the two shared a chain.
        async with asyncio.timeout(10):
            await store.audit.record(other, entry)
        await other.commit()
        await one.commit()
        assert len(await store.audit.heads(one)) == 2
        await store.audit.record(one, entry)
        await store.audit.record(one, entry)
        await one.commit()
        assert sum(head.position for head in await store.audit.heads(one)) == 4
        assert await store.audit.problems(one) == []


async def test_the_same_log_is_whole_whatever_the_session_settings(
    services: ServiceContext, database: psycopg.Connection
) -> None:
    await use(services)
    for setting in (
        "timezone = 'Asia/Kathmandu'",
        "datestyle = 'German'",
        "bytea_output = 'escape'",
        "search_path = ''",
    ):
        database.execute(f"SET {setting}")
    assert problems(database) == []


async def test_old_months_are_let_go_of_and_the_rest_is_still_whole(
    services: ServiceContext, database: psycopg.Connection
) -> None:
    database.execute("CREATE TABLE audit_log_2020_01 (LIKE audit_log INCLUDING ALL)")
    database.execute(
        "ALTER TABLE audit_log ATTACH PARTITION audit_log_2020_01"
        " FOR VALUES FROM ('2020-01-01Z') TO ('2020-02-01Z')"
    )
    database.execute(
        "INSERT INTO audit_log (recorded_at, caller, operation, request_id, outcome)"
        " SELECT '2020-01-15Z', 'root', 'create', '', 'done' FROM generate_series(1, 5)"
    )
    await use(services)
    assert problems(database) == []
    assert database.execute("SELECT sealdex_views.drop_audit_before('2020-01-31')").fetchall() == []
    assert database.execute("SELECT sealdex_views.drop_audit_before('2020-02-01')").fetchall() == [
        ("audit_log_2020_01",)
    ]
    assert problems(database) == []
    assert database.execute("SELECT count(*) FROM audit_log").fetchone() == (4,)
    assert database.execute("SELECT sum(kept_after) FROM audit_chains").fetchone() == (5,)


async def test_a_month_dropped_by_hand_is_found(
    services: ServiceContext, database: psycopg.Connection
) -> None:
    await use(services)
    month = database.execute("SELECT tableoid::regclass::text FROM audit_log LIMIT 1").fetchone()
    assert month is not None
    database.execute(f"DROP TABLE {month[0]}")
    await services.indexes.create(NewIndex(name="later", index_key=KEY), CALLER)
    assert problems(database) == ["removed"]


async def test_a_write_does_not_fail_without_a_partition_and_a_later_one_can_be_made(
    services: ServiceContext, engine: AsyncEngine, database: psycopg.Connection
) -> None:
    for (name,) in database.execute("SELECT name FROM sealdex_views.audit_partitions").fetchall():
        if name != "audit_log_default":
            database.execute(f"DROP TABLE {name}")
    await use(services)
    assert database.execute("SELECT count(*) FROM audit_log_default").fetchone() == (4,)
    async with engine.begin() as connection:
        await store.audit.add_partitions(connection)
    names = database.execute("SELECT count(*) FROM sealdex_views.audit_partitions").fetchone()
    # This month stays in the default partition, the next three have their own.
    assert names == (4,)
    assert problems(database) == []


async def test_the_auditor_reads_the_views_and_nothing_else(
    services: ServiceContext, database: psycopg.Connection
) -> None:
    await services.indexes.create(NewIndex(name="books", index_key=KEY), CALLER)
    await services.vectors.upsert(ACCESS, [item(1), item(2)])
    (partition,) = database.execute(
        "SELECT relname FROM pg_class WHERE relname LIKE 'items\\_%' AND relkind = 'r'"
    ).fetchone() or (None,)
    database.execute("SET ROLE sealdex_auditor")
    facts = database.execute(
        "SELECT name, n_items, trained_at, size_bytes > 0 FROM sealdex_views.indexes"
    ).fetchall()
    assert facts == [("books", 2, None, True)]
    assert database.execute("SELECT count(*) FROM sealdex_views.audit").fetchone() == (2,)
    assert problems(database) == []
    for table in (*SECRET_TABLES, partition):
        with pytest.raises(pg.InsufficientPrivilege):
            database.execute(f"TABLE public.{table}")
    for statement in (
        (
            "INSERT INTO public.audit_log (caller, operation, request_id, outcome)"
            " VALUES ('', '', '', '')"
        ),
        "SELECT sealdex_views.drop_audit_before('2020-01-01')",
        "SELECT sealdex_views.add_audit_partitions(1)",
    ):
        with pytest.raises(pg.InsufficientPrivilege):
            database.execute(statement)


def test_no_view_shows_a_sealed_value_or_a_key(template_dsn: str) -> None:
    with psycopg.connect(template_dsn) as database:
        columns = database.execute(
            "SELECT table_name, column_name FROM information_schema.columns"
            " WHERE table_schema = 'sealdex_views'"
        ).fetchall()
    assert columns
    assert [
        name
        for name in columns
        if name[1].startswith(("sealed_", "wrapped_", "sketch", "item_key"))
    ] == []


def test_every_view_and_its_columns_have_a_comment(template_dsn: str) -> None:
    with psycopg.connect(template_dsn) as database:
        missing = database.execute(
            "SELECT relname, attname FROM pg_class"
            " JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0"
            " WHERE relnamespace = 'sealdex_views'::regnamespace AND relkind = 'v'"
            " AND (col_description(pg_class.oid, attnum) IS NULL"
            " OR obj_description(pg_class.oid, 'pg_class') IS NULL)"
        ).fetchall()
    assert missing == []
