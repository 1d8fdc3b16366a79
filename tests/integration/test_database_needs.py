"""Databases that the service cannot work with are refused with what to do, and that then helps."""

import re
import uuid
from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql

from app import errors
from app.settings import Settings
from app.store import schema, server
from app.store.pg.dsn import database_url
from app.store.pg.engine import check_database, create_engine

FOREIGN = ("0001", "0006", "a1b2c3d4e5f6")


def run(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as database:
        for statement in statements:
            database.execute(statement)


def value(dsn: str, statement: str) -> object:
    with psycopg.connect(dsn) as database:
        row = database.execute(statement).fetchone()
    return row and row[0]


async def check(dsn: str) -> None:
    engine = create_engine(Settings(), dsn)
    try:
        await check_database(engine)
    finally:
        await engine.dispose()


def advice(refusal: pytest.ExceptionInfo[errors.ConfigurationError]) -> str:
    """The statement that a refusal says to run."""
    (statement,) = re.findall(r"run `([A-Z][^`]*)`", str(refusal.value))
    return str(statement)


@pytest.fixture
def encoded(server_dsn: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database with the encoding that the test is given."""
    name = sql.Identifier(f"test_{uuid.uuid4().hex}")
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(
            sql.SQL("CREATE DATABASE {} ENCODING {} LOCALE 'C' TEMPLATE template0").format(
                name, sql.Literal(request.param)
            )
        )
        yield (
            database_url(server_dsn)
            .set(drivername="postgresql", database=name.as_string(None).strip('"'))
            .render_as_string(hide_password=False)
        )
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@pytest.fixture
def role_dsn(empty_dsn: str) -> Iterator[str]:
    """An empty database as an application sees it whose role owns nothing but what it makes."""
    url = database_url(empty_dsn)
    role = f"app_{uuid.uuid4().hex[:8]}"
    run(
        empty_dsn,
        "CREATE EXTENSION vector",
        f"CREATE ROLE {role} LOGIN CREATEROLE",
        f"GRANT CREATE ON DATABASE {url.database} TO {role}",
        f"GRANT CREATE ON SCHEMA public TO {role}",
    )
    yield (
        url.set(drivername="postgresql", username=role, password=None).render_as_string(
            hide_password=False
        )
    )
    run(empty_dsn, f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}")


@pytest.mark.parametrize("encoded", ["SQL_ASCII"], indirect=True)
async def test_a_database_without_an_encoding_keeps_names_as_utf_8(encoded: str) -> None:
    await schema.upgrade(encoded)
    await check(encoded)
    engine = create_engine(Settings(), encoded)
    async with engine.connect() as connection:
        assert await connection.scalar(sa.select(sa.cast("索引…", sa.Text))) == "索引…"
    await engine.dispose()


@pytest.mark.parametrize("encoded", ["LATIN1", "EUC_JP"], indirect=True)
async def test_a_database_in_another_encoding_is_refused(encoded: str) -> None:
    for attempt in (schema.upgrade, check):
        with pytest.raises(errors.ConfigurationError, match="ENCODING 'UTF8'"):
            await attempt(encoded)


async def test_pgvector_off_the_search_path_is_refused_with_what_helps(empty_dsn: str) -> None:
    run(empty_dsn, "CREATE SCHEMA extensions", "CREATE EXTENSION vector SCHEMA extensions")
    with pytest.raises(errors.ConfigurationError, match="schema extensions") as refusal:
        await schema.upgrade(empty_dsn)
    role = value(empty_dsn, "SELECT quote_ident(current_user)")
    run(empty_dsn, advice(refusal))
    try:
        await schema.upgrade(empty_dsn)
        await check(empty_dsn)
    finally:
        database = value(empty_dsn, "SELECT quote_ident(current_database())")
        run(empty_dsn, f"ALTER ROLE {role} IN DATABASE {database} RESET search_path")


async def test_a_role_without_temporary_tables_is_refused_with_what_helps(
    role_dsn: str, empty_dsn: str
) -> None:
    await schema.upgrade(role_dsn)
    database = database_url(empty_dsn).database
    run(empty_dsn, f"REVOKE ALL ON DATABASE {database} FROM PUBLIC")
    run(empty_dsn, f"GRANT CONNECT ON DATABASE {database} TO {database_url(role_dsn).username}")
    with pytest.raises(errors.ConfigurationError, match="temporary tables") as refusal:
        await check(role_dsn)
    run(empty_dsn, advice(refusal))
    await check(role_dsn)


@pytest.mark.parametrize("revision", FOREIGN)
async def test_the_revision_of_another_application_is_left_alone(
    empty_dsn: str, revision: str
) -> None:
    run(
        empty_dsn,
        "CREATE TABLE alembic_version (version_num varchar(32) CONSTRAINT alembic_version_pkc"
        " PRIMARY KEY)",
    )
    with psycopg.connect(empty_dsn) as database:
        database.execute("INSERT INTO alembic_version VALUES (%s)", [revision])
    with pytest.raises(errors.ConfigurationError, match="revision none"):
        await check(empty_dsn)
    await schema.upgrade(empty_dsn)
    await check(empty_dsn)
    assert value(empty_dsn, "SELECT string_agg(version_num, ' ') FROM alembic_version") == revision
    # Again, with our tables beside it.
    await schema.upgrade(empty_dsn)
    assert value(empty_dsn, "SELECT string_agg(version_num, ' ') FROM alembic_version") == revision


async def test_the_revision_of_an_older_version_is_taken_over(empty_dsn: str) -> None:
    await schema.upgrade(empty_dsn)
    run(
        empty_dsn,
        "ALTER TABLE sealdex_alembic_version RENAME TO alembic_version",
        "ALTER TABLE alembic_version RENAME CONSTRAINT sealdex_alembic_version_pkc"
        " TO alembic_version_pkc",
    )
    with pytest.raises(errors.ConfigurationError, match="sealdex migrate"):
        await check(empty_dsn)
    await schema.upgrade(empty_dsn)
    await check(empty_dsn)
    # The names are free for another application.
    run(
        empty_dsn,
        "CREATE TABLE alembic_version (version_num varchar(32) CONSTRAINT alembic_version_pkc"
        " PRIMARY KEY)",
    )


async def test_a_schema_of_a_newer_version_is_refused(empty_dsn: str) -> None:
    await schema.upgrade(empty_dsn)
    run(empty_dsn, "UPDATE sealdex_alembic_version SET version_num = '9999'")
    for attempt in (schema.upgrade, check):
        with pytest.raises(errors.ConfigurationError, match="9999, which this version does not"):
            await attempt(empty_dsn)


@pytest.mark.parametrize("limited", ["ROLE", "DATABASE"])
async def test_too_few_connections_for_the_workers_are_noticed(
    role_dsn: str, empty_dsn: str, limited: str
) -> None:
    url = database_url(role_dsn)
    name = url.username if limited == "ROLE" else url.database
    run(empty_dsn, f"ALTER {limited} {name} CONNECTION LIMIT 5")
    engine = create_engine(Settings(), role_dsn)
    async with engine.connect() as connection:
        assert await server.connection_shortage(connection, 5) is None
        shortage = await server.connection_shortage(connection, 6)
        assert shortage is not None
        assert "may take 6 connections, and the database allows 5" in shortage
        assert await server.connection_shortage(connection, 1_000_000) is not None
    await engine.dispose()


def test_the_connections_of_all_workers_are_counted() -> None:
    one, three = (Settings(workers=n, pool_size=8).n_connections() for n in (1, 3))
    assert one > 8
    assert three == 3 * one
