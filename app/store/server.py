"""What the service needs of a PostgreSQL server, of a database in it, and of its role there."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app import errors

_MIN_POSTGRES = 15
_MIN_PGVECTOR = (0, 8, 0)
_PER_MAJOR = 10_000
# SQL_ASCII stores the bytes it is given, and the service gives UTF-8.
_ENCODINGS = {"UTF8", "SQL_ASCII"}

_FACTS = """
    SELECT current_setting('server_version_num')::int AS version,
      current_setting('server_encoding') AS encoding,
      current_setting('search_path') AS search_path,
      quote_ident(current_database()) AS database,
      quote_ident(current_user) AS role,
      has_database_privilege(current_database(), 'TEMPORARY') AS may_make_temporary,
      (SELECT default_version FROM pg_available_extensions WHERE name = 'vector') AS available,
      extversion AS installed,
      quote_ident(nspname) AS vector_schema,
      nspname = ANY (current_schemas(true)) AS is_on_path
    FROM (VALUES ('vector')) AS wanted (name)
    LEFT JOIN pg_extension ON extname = wanted.name
    LEFT JOIN pg_namespace ON pg_namespace.oid = extnamespace
"""
# -1 is no limit of a database or role; pg_database.datconnlimit -2 marks a broken database.
_ALLOWED_CONNECTIONS = """
    SELECT least(
      current_setting('max_connections')::int
        - current_setting('superuser_reserved_connections')::int
        - coalesce(current_setting('reserved_connections', true)::int, 0),
      (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database()),
      (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user))
"""


async def check(connection: AsyncConnection) -> None:
    """Raise `errors.ConfigurationError`, saying what to do, unless the service can work there."""
    facts = (await connection.execute(sa.text(_FACTS))).one()
    for problem in (
        _old_server(facts),
        _wrong_encoding(facts),
        _missing_pgvector(facts),
        _old_pgvector(facts),
        _unreachable_pgvector(facts),
        _no_temporary_tables(facts),
    ):
        if problem is not None:
            raise errors.ConfigurationError(problem)


async def connection_shortage(connection: AsyncConnection, n_wanted: int) -> str | None:
    """Return what to do when the role may not have `n_wanted` connections, or None when it may.

    Behind a pooler the connections of the server are the pooler's, so nothing is said.
    """
    if await _is_pooled(connection):
        return None
    n_allowed: int = (await connection.execute(sa.text(_ALLOWED_CONNECTIONS))).scalar_one()
    if n_wanted <= n_allowed:
        return None
    return (
        f"the workers may take {n_wanted} connections, and the database allows {n_allowed}: set a "
        "smaller SEALDEX_WORKERS or SEALDEX_POOL_SIZE, or raise max_connections"
    )


async def _is_pooled(connection: AsyncConnection) -> bool:
    """Whether the process that answers is not the one that greeted us, as behind a pooler."""
    raw: Any = (await connection.get_raw_connection()).driver_connection
    answering: int = (await connection.execute(sa.text("SELECT pg_backend_pid()"))).scalar_one()
    return answering != int(raw.info.backend_pid)


def _old_server(facts: Any) -> str | None:
    major = facts.version // _PER_MAJOR
    if major >= _MIN_POSTGRES:
        return None
    return f"PostgreSQL {major} is too old: {_MIN_POSTGRES} or newer is needed"


def _wrong_encoding(facts: Any) -> str | None:
    if facts.encoding in _ENCODINGS:
        return None
    return (
        f"The database {facts.database} is encoded in {facts.encoding}, and names of indexes are "
        "UTF-8: make another database with "
        "`CREATE DATABASE … ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0`"
    )


def _missing_pgvector(facts: Any) -> str | None:
    if facts.available is not None or facts.installed is not None:
        return None
    return (
        f"The database server has no pgvector: install version {_wanted()} or newer there, "
        f"for instance with `apt install postgresql-{facts.version // _PER_MAJOR}-pgvector`, "
        "then run `sealdex migrate`"
    )


def _old_pgvector(facts: Any) -> str | None:
    found = facts.installed or facts.available
    if _numbers(found) >= _MIN_PGVECTOR:
        return None
    return (
        f"pgvector {found} is too old: install {_wanted()} or newer on the database server, "
        "then run `ALTER EXTENSION vector UPDATE` in this database"
    )


def _unreachable_pgvector(facts: Any) -> str | None:
    """Return what to do when the names of pgvector are not found where statements look for them."""
    if facts.installed is None or facts.is_on_path:
        return None
    return (
        f"pgvector is in the schema {facts.vector_schema}, which is not on the search path of the "
        f"role {facts.role}: run `ALTER ROLE {facts.role} IN DATABASE {facts.database} SET "
        f"search_path = {facts.search_path}, {facts.vector_schema}`, then start again"
    )


def _no_temporary_tables(facts: Any) -> str | None:
    if facts.may_make_temporary:
        return None
    return (
        f"The role {facts.role} may not make temporary tables, through which items are replaced: "
        f"run `GRANT TEMPORARY ON DATABASE {facts.database} TO {facts.role}`"
    )


def _wanted() -> str:
    return ".".join(map(str, _MIN_PGVECTOR))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
