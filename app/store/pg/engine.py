"""SQLAlchemy on our connections: each use takes one from the pool, or opens one of its own."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from app import errors
from app.settings import Settings
from app.store import schema
from app.store.pg.connection import SET_TIMEOUT, Connection, connect
from app.store.pg.dsn import first_line
from app.store.pg.failures import translate, translated


def create_engine(settings: Settings, dsn: str) -> AsyncEngine:
    """Return an engine that opens a connection to `dsn` for each use, and closes it afterwards."""
    return engine_on(partial(connect, settings, dsn))


def engine_on(
    creator: Callable[[], Awaitable[Connection]], isolation_level: str = "READ COMMITTED"
) -> AsyncEngine:
    """Return an engine on the connections of `creator`, which closing them gives back.

    Its failures are `errors.Unavailable`. The isolation level is our own, whatever the role or the
    database has as its default: the code is made for one statement seeing what others committed
    before it.
    """
    engine = create_async_engine(
        "postgresql+psycopg://",
        poolclass=NullPool,
        async_creator=creator,
        isolation_level=isolation_level,
        hide_parameters=True,
        use_native_hstore=False,
    )
    listen = partial(sa.event.listen, engine.sync_engine)
    listen("begin", _note_begin)
    listen("begin", _limit_statements)
    listen("commit", _note_commit)
    listen("handle_error", translate)
    return engine


def maintenance_connection(settings: Settings, dsn: str) -> AsyncConnection:
    """Return a connection of its own, in autocommit and without a statement timeout.

    It opens when awaited. It is for what cannot run in a transaction or takes minutes, such as
    `CREATE INDEX CONCURRENTLY`. Its session settings are not shared when `dsn` leads to PostgreSQL
    itself, as it should for long jobs.
    """
    patient = replace(settings, statement_timeout_ms=0)
    return engine_on(partial(connect, patient, dsn), "AUTOCOMMIT").connect()


async def check_database(engine: AsyncEngine) -> None:
    """Raise `ConfigurationError`, saying what to do, unless the database is as it must be."""
    try:
        async with engine.connect() as connection:
            await schema.check(connection)
    except errors.Unavailable as error:
        reason = first_line(error.__cause__)
        raise errors.ConfigurationError(f"The database does not answer: {reason}") from error


@asynccontextmanager
async def driver(connection: AsyncConnection) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """Lend psycopg's own connection, in the transaction of `connection`; translate failures."""
    raw = (await connection.get_raw_connection()).driver_connection
    assert isinstance(raw, Connection)  # noqa: S101 - engines are made on these alone
    with translated():
        yield raw


def _limit_statements(connection: sa.Connection) -> None:
    """Set the timeout of statements in the transaction, where the session is not ours alone."""
    raw = connection.connection.driver_connection
    if isinstance(raw, Connection) and raw.is_pooled:
        connection.exec_driver_sql(SET_TIMEOUT, (str(raw.statement_timeout_ms),))


def _note_begin(connection: sa.Connection) -> None:
    connection.info["is_committing"] = False


def _note_commit(connection: sa.Connection) -> None:
    """Remember that the COMMIT is on its way: if the connection is lost now, it is in doubt."""
    connection.info["is_committing"] = True
