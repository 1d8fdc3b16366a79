"""Which revision of the schema a database has, and bringing it to the newest."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from app import errors
from app.store.pg.dsn import database_url, first_line

_APP = Path(__file__).parents[1]
_MIN_POSTGRES = 15
_MIN_PGVECTOR = (0, 8, 0)
_PER_MAJOR = 10_000


def head_revision() -> str:
    """Return the newest revision this version of the service knows."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise errors.ConfigurationError("The migrations are missing from this installation")
    return head


async def current_revision(connection: AsyncConnection) -> str | None:
    """Return the revision of the database, or None when it has no schema yet."""
    # Asked here and not through Alembic, which announces itself in the log each time.
    if await connection.scalar(sa.text("SELECT to_regclass('alembic_version') IS NULL")):
        return None
    revision: str | None = await connection.scalar(
        sa.text("SELECT version_num FROM alembic_version")
    )
    return revision


async def upgrade(dsn: str) -> None:
    """Bring the database at `dsn` to the newest revision, in one transaction.

    Raises `errors.ConfigurationError` when the server is too old or has no pgvector.
    """
    engine = create_async_engine(database_url(dsn), poolclass=NullPool, hide_parameters=True)
    try:
        async with engine.begin() as connection:
            await _check_server(connection)
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
    """Raise `errors.ConfigurationError`, saying what to do, unless server and schema are as the service needs."""
    await _check_server(connection)
    current, head = await current_revision(connection), head_revision()
    if current != head:
        raise errors.ConfigurationError(
            f"The schema of the database is at revision {current or 'none'}, this version needs {head}: "
            "run `sealdex migrate`, or start with SEALDEX_MIGRATE=true"
        )


async def _check_server(connection: AsyncConnection) -> None:
    """Raise `errors.ConfigurationError` when PostgreSQL or pgvector is missing or too old."""
    statement = sa.text(
        "SELECT current_setting('server_version_num')::int,"
        " (SELECT default_version FROM pg_available_extensions WHERE name = 'vector'),"
        " (SELECT extversion FROM pg_extension WHERE extname = 'vector')"
    )
    version, available, installed = (await connection.execute(statement)).one()
    major = version // _PER_MAJOR
    wanted = ".".join(map(str, _MIN_PGVECTOR))
    if major < _MIN_POSTGRES:
        raise errors.ConfigurationError(
            f"PostgreSQL {major} is too old: {_MIN_POSTGRES} or newer is needed"
        )
    if available is None and installed is None:
        raise errors.ConfigurationError(
            f"The database server has no pgvector: install version {wanted} or newer there, "
            f"for instance with `apt install postgresql-{major}-pgvector`, then run `sealdex migrate`"
        )
    if _numbers(installed or available) < _MIN_PGVECTOR:
        raise errors.ConfigurationError(
            f"pgvector {installed or available} is too old: install {wanted} or newer on the database server, "
            "then run `ALTER EXTENSION vector UPDATE` in this database"
        )


def _upgrade(connection: sa.Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _config() -> Config:
    """Return the settings of Alembic; `migrations` is beside `app` in a checkout, inside it when installed."""
    config = Config()
    places = (_APP / "migrations", _APP.parent / "migrations")
    config.set_main_option(
        "script_location", str(next(place for place in places if place.is_dir())).replace("%", "%%")
    )
    return config


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
