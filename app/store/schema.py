"""Which revision of the schema a database has, and bringing it to the newest."""

from functools import cache
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from app import errors
from app.store import server
from app.store.pg.dsn import database_url, first_line

# A table of our own: other applications in the same database keep theirs in `alembic_version`.
VERSION_TABLE = "sealdex_alembic_version"
# Any number, as long as nothing else in the database locks the same one: the ASCII codes of
# "sealdex".
MIGRATION_LOCK = 0x7365616C646578

_APP = Path(__file__).parents[1]
# Where databases of versions before the table of our own have their revision, if it is ours: beside
# our table `indexes`.
_OLD_VERSION_TABLE = "alembic_version"
_OLD_PLACE = f"""
    SELECT quote_ident(nspname) FROM pg_class
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
    JOIN pg_attribute ON attrelid = pg_class.oid
    WHERE relname = 'indexes' AND attname = 'wrapped_dek' AND pg_table_is_visible(pg_class.oid)
      AND to_regclass(quote_ident(nspname) || '.{_OLD_VERSION_TABLE}') IS NOT NULL
      AND to_regclass('{VERSION_TABLE}') IS NULL
"""  # noqa: S608  # constants of this module


def head_revision() -> str:
    """Return the newest revision this version of the service knows."""
    head = _scripts().get_current_head()
    if head is None:
        raise errors.ConfigurationError("The migrations are missing from this installation")
    return head


async def current_revision(connection: AsyncConnection) -> str | None:
    """Return the revision of the database, or None when it has no schema yet."""
    # Asked here and not through Alembic, which announces itself in the log each time.
    if await connection.scalar(sa.text(f"SELECT to_regclass('{VERSION_TABLE}') IS NULL")):
        return None
    revision: str | None = await connection.scalar(
        sa.text(f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608  # a constant
    )
    return revision


async def upgrade(dsn: str) -> None:
    """Bring the database at `dsn` to the newest revision, in one transaction.

    Raises `errors.ConfigurationError`, saying what to do, when the service could not work there, or
    the schema is of a newer version.
    """
    engine = create_async_engine(
        database_url(dsn),
        poolclass=NullPool,
        hide_parameters=True,
        # Each statement must see what a service that migrated meanwhile has committed.
        isolation_level="READ COMMITTED",
        connect_args={"client_encoding": "utf8"},
    )
    try:
        async with engine.begin() as connection:
            await server.check(connection)
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            await _adopt(connection)
            _refuse_newer(await current_revision(connection))
            await connection.run_sync(_upgrade)
    except sa.exc.OperationalError as error:
        raise errors.ConfigurationError(
            f"The database does not answer: {first_line(error)}"
        ) from error
    except sa.exc.ProgrammingError as error:
        raise errors.ConfigurationError(
            f"The schema cannot be migrated: {first_line(error)}"
        ) from error
    finally:
        await engine.dispose()


async def check(connection: AsyncConnection) -> None:
    """Raise `errors.ConfigurationError` unless server and schema are as the service needs them."""
    await server.check(connection)
    current, head = await current_revision(connection), head_revision()
    _refuse_newer(current)
    if current != head:
        raise errors.ConfigurationError(
            f"The schema of the database is at revision {current or 'none'}, "
            f"this version needs {head}: run `sealdex migrate`, or start with SEALDEX_MIGRATE=true"
        )


async def _adopt(connection: AsyncConnection) -> None:
    """Give the revision of an older version's schema its place in our own table.

    The table `alembic_version` of another application stays as it is: it lies in another schema
    than our tables, or our tables are not there.
    """
    place = await connection.scalar(sa.text(_OLD_PLACE))
    if place is None:
        return
    rename_table = f"ALTER TABLE {place}.{_OLD_VERSION_TABLE} RENAME TO {VERSION_TABLE}"
    # Another application that makes its own table wants the name of the constraint, too.
    old, new = f"{_OLD_VERSION_TABLE}_pkc", f"{VERSION_TABLE}_pkc"
    rename_constraint = f"ALTER TABLE {place}.{VERSION_TABLE} RENAME CONSTRAINT {old} TO {new}"
    for statement in (rename_table, rename_constraint):
        await connection.execute(sa.text(statement))


def _refuse_newer(current: str | None) -> None:
    if current is not None and current not in _known_revisions():
        raise errors.ConfigurationError(
            f"The schema of the database is at revision {current}, which this version does not "
            "know: run the version of Sealdex that made it, or a newer one"
        )


@cache
def _known_revisions() -> frozenset[str]:
    return frozenset(script.revision for script in _scripts().walk_revisions())


def _upgrade(connection: sa.Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _config() -> Config:
    """Return Alembic's settings; `migrations` is beside `app` in a checkout, else inside it."""
    config = Config()
    places = (_APP / "migrations", _APP.parent / "migrations")
    config.set_main_option(
        "script_location", str(next(place for place in places if place.is_dir())).replace("%", "%%")
    )
    return config
