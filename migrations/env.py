"""How Alembic reaches the database: the caller's connection, or one to DATABASE_URL.

One transaction holds the whole migration. It waits for another migration on an advisory lock, but
gives up soon on a table that is in use, so that a queue behind its lock never stops the service.
"""

import os
import re

import sqlalchemy as sa
from alembic import context
from sqlalchemy.pool import NullPool
from sqlalchemy.sql.schema import SchemaItem

from app.store import tables
from app.store.pg.dsn import database_url
from app.store.schema import MIGRATION_LOCK, VERSION_TABLE

_LOCK_TIMEOUT = "10s"
_STATEMENT_TIMEOUT = "15min"

# Made while the service runs: one for each index, and one for each month of the audit log.
_PARTITION = re.compile(
    rf"({tables.PARTITION_PREFIX}|{tables.CHUNK_PARTITION_PREFIX})[0-9a-f]{{32}}"
    r"|audit_log_(default|\d{4}_\d{2})"
)


def include_object(
    schema_item: SchemaItem,
    name: str | None,
    kind: str,
    is_reflected: bool,
    _compare_to: SchemaItem | None,
) -> bool:
    """Whether Alembic compares this object with `app.store.tables`."""
    if not is_reflected or name is None:
        return True
    owner = getattr(schema_item, "table", None)
    table_name = name if kind == "table" else getattr(owner, "name", "")
    return not (name.startswith(tables.IVF_PREFIX) or _PARTITION.fullmatch(table_name))


def migrate(connection: sa.Connection) -> None:
    """Run the migrations on a connection."""
    context.configure(
        connection=connection,
        target_metadata=tables.metadata,
        version_table=VERSION_TABLE,
        include_object=include_object,
        compare_server_default=True,
    )
    with context.begin_transaction():
        # Before the timeouts: waiting for another service that migrates is no failure.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
        connection.execute(sa.text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
        connection.execute(sa.text(f"SET LOCAL statement_timeout = '{_STATEMENT_TIMEOUT}'"))
        context.run_migrations()


def main() -> None:
    """Find a connection and migrate."""
    connection = context.config.attributes.get("connection")
    if connection is not None:
        migrate(connection)
        return
    engine = sa.create_engine(
        database_url(os.environ["DATABASE_URL"]),
        poolclass=NullPool,
        hide_parameters=True,
        connect_args={"client_encoding": "utf8"},
    )
    with engine.connect() as own_connection:
        migrate(own_connection)


if context.is_offline_mode():
    raise SystemExit("Offline mode is not supported: the migrations need the database")
main()
