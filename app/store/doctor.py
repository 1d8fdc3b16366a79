"""Is the database as the service needs it? Looked at by `sealdex doctor`."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import ConfigurationError
from app.settings import Settings
from app.store import audit, schema, server

_MB = 1024 * 1024
_MIN_MAINTENANCE_MB = 64
_MIN_FREE_BYTES = 1024 * _MB
_CONNECTIONS_TO_SPARE = 10


class Finding(NamedTuple):
    """One thing that was looked at; `state` is ok, warning or problem."""

    state: str
    what: str
    text: str


async def findings(connection: AsyncConnection, settings: Settings) -> list[Finding]:
    """Return what was found, the schema first: without a schema little else can be said."""
    found = [*await _server(connection), await _room_for_workers(connection, settings)]
    if any(one.state == "problem" for one in found):
        return found
    return [
        *found,
        *await _invalid_indexes(connection),
        *await _left_behind(connection),
        *await _audit(connection),
    ]


async def _server(connection: AsyncConnection) -> list[Finding]:
    statement = sa.text(
        "SELECT current_setting('server_version') AS version,"
        " coalesce((SELECT extversion FROM pg_extension WHERE extname = 'vector'), 'not installed')"
        " AS pgvector,"
        " pg_size_bytes(current_setting('maintenance_work_mem')) AS maintenance,"
        " current_setting('max_connections')::int AS max_connections,"
        " (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')"
        " AS n_connections,"
        " pg_database_size(current_database()) AS size,"
        " current_setting('fsync') AS fsync, current_setting('data_checksums') AS checksums"
    )
    facts = (await connection.execute(statement)).one()
    try:
        await schema.check(connection)
        at = Finding(
            "ok", "schema", f"at revision {schema.head_revision()}, as this version needs it"
        )
    except ConfigurationError as error:
        at = Finding("problem", "schema", str(error))
    return [
        Finding("ok", "PostgreSQL", str(facts.version)),
        Finding("ok", "pgvector", str(facts.pgvector)),
        at,
        _setting("maintenance_work_mem", facts.maintenance // _MB, _MIN_MAINTENANCE_MB),
        _connections(facts),
        _is_on("fsync", facts.fsync, "acknowledged writes can be lost in a crash"),
        _is_on(
            "data_checksums",
            facts.checksums,
            "a damaged page is noticed only when a value does not open",
        ),
        Finding("ok", "database size", f"{facts.size // _MB:,} MB"),
    ]


async def _room_for_workers(connection: AsyncConnection, settings: Settings) -> Finding:
    if settings.database_url is None:
        return Finding("ok", "connections of the workers", "the embedded database has enough")
    n_wanted = settings.n_connections()
    shortage = await server.connection_shortage(connection, n_wanted)
    if shortage is not None:
        return Finding("warning", "connections of the workers", shortage)
    return Finding("ok", "connections of the workers", f"at most {n_wanted}")


def _setting(name: str, value_mb: int, minimum_mb: int) -> Finding:
    if value_mb < minimum_mb:
        return Finding(
            "warning",
            name,
            f"{value_mb} MB; trainings ask for more, but {minimum_mb} MB is a good minimum",
        )
    return Finding("ok", name, f"{value_mb} MB")


def _is_on(name: str, value: str, otherwise: str) -> Finding:
    return (
        Finding("ok", name, "on")
        if value == "on"
        else Finding("warning", name, f"{value}: {otherwise}")
    )


def _connections(facts: Any) -> Finding:
    is_short = facts.n_connections > facts.max_connections - _CONNECTIONS_TO_SPARE
    return Finding(
        "warning" if is_short else "ok",
        "connections",
        f"{facts.n_connections} of {facts.max_connections}",
    )


async def _invalid_indexes(connection: AsyncConnection) -> list[Finding]:
    statement = sa.text(
        "SELECT indexrelid::regclass::text FROM pg_index"
        " WHERE NOT indisvalid AND indexrelid NOT IN"
        " (SELECT indexrelid FROM pg_stat_progress_create_index"
        " JOIN pg_index ON index_relid = indexrelid)"
    )
    names = list((await connection.execute(statement)).scalars())
    if not names:
        return [Finding("ok", "invalid indexes", "none")]
    drop = "; ".join(f"DROP INDEX CONCURRENTLY {name}" for name in names)
    return [Finding("problem", "invalid indexes", f"left by builds that failed: {drop}")]


async def _left_behind(connection: AsyncConnection) -> list[Finding]:
    n_dropped = (
        await connection.execute(sa.text("SELECT count(*) FROM dropped_indexes"))
    ).scalar_one()
    missing = sa.text(
        "SELECT name FROM sealdex_views.indexes"
        " WHERE size_bytes = 0 OR (n_items > 0 AND ivf_size_bytes = 0)"
    )
    names = list((await connection.execute(missing)).scalars())
    return [
        Finding(
            "warning",
            "deleted indexes",
            f"{n_dropped} still to be dropped; the service does it at its next start",
        )
        if n_dropped
        else Finding("ok", "deleted indexes", "all dropped"),
        Finding("problem", "indexes", f"without partition or ivfflat index: {', '.join(names)}")
        if names
        else Finding("ok", "indexes", "all have their partition and their ivfflat index"),
    ]


async def _audit(connection: AsyncConnection) -> list[Finding]:
    n_problems = len(await audit.problems(connection))
    if n_problems:
        return [
            Finding("problem", "audit log", f"{n_problems} problems: see `sealdex audit verify`")
        ]
    return [Finding("ok", "audit log", "whole")]


def disk_space(data_dir: Path | None) -> Finding:
    """Return whether the disk of the embedded database in `data_dir` has room.

    None is for a database on another server, of whose disk SQL says nothing.
    """
    if data_dir is None:
        return Finding("ok", "disk space", "is that of the database server; look there")
    free = shutil.disk_usage(data_dir).free
    state = "ok" if free >= _MIN_FREE_BYTES else "problem"
    return Finding(state, "disk space", f"{free // _MB:,} MB free in {data_dir}")
