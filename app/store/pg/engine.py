"""The engine: pool, timeouts, PostgreSQL types and what a failure of the database turns into.

Nothing here depends on the state of a session, so it works through PgBouncer in transaction mode.
Prepared statements need PgBouncer 1.22 with `max_prepared_statements`, or
`SEALDEX_PREPARE_THRESHOLD=-1`.
"""

import select
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.adapt import Buffer, Dumper, Loader
from psycopg.pq import Format
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, PoolProxiedConnection

from app import errors
from app.observe.stages import stage
from app.settings import Settings
from app.store import schema
from app.store.pg.dsn import database_url, first_line
from app.store.pg.round_trip import ScanConnection

_BIT_OID = 1560
_VARBIT_OID = 1562
_BIGINT_OID = 20
_BIGINT_ARRAY_OID = 1016
_BYTEA_OID = 17
_TID_OID = 27
_TID_ARRAY_OID = 1010
_BYTEA_ARRAY_OID = 1001
_CONNECT_TIMEOUT_S = 10
_LENGTH_BYTES = 4
# A host that is gone without a word is given up after a minute; by the kernel's own measure it
# takes two hours.
_KEEPALIVES = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}

SILENCE = "The database does not answer"
_IN_DOUBT = (
    "The connection to the database was lost while it was told to commit: whether the change was made is not known. "
    "It is safe to send the same items again"
)
# SQLSTATEs, or how they begin, that say "come back later", and what to tell the caller; the first
# that fits counts.
_UNAVAILABLE = {
    "08": SILENCE,
    "25006": "The database takes no changes now",
    "53100": "The database has no room left",
    "53": "The database is short of resources",
    "57014": "The database took too long to answer",
    "57P": SILENCE,
}


class VarBit(bytes):
    """A bit string of whole bytes, most significant bit first, for `bit` and `bit varying` columns."""

    __slots__ = ()


class _VarBitDumper(Dumper):
    """Binary form of a bit string: its length in bits (int32, big-endian), then its bytes."""

    format = Format.BINARY
    oid = _VARBIT_OID

    def dump(self, obj: VarBit) -> Buffer:
        return (8 * len(obj)).to_bytes(_LENGTH_BYTES, "big") + obj


class Tokens(tuple[bytes, ...]):
    """Numbers for a `bigint[]`, each as its 8 bytes, big-endian."""

    __slots__ = ()


class ItemKeys(tuple[bytes, ...]):
    """Item keys for a `bytea[]`: 16 bytes each."""

    __slots__ = ()


class Places(tuple[bytes, ...]):
    """Places of rows in a table for a `tid[]`, each as its 6 bytes: block and number, big-endian."""

    __slots__ = ()


class _ArrayDumper(Dumper):
    """Binary form of an array: dimensions, nulls, type of the elements; for its one dimension length and first index.

    Then each element after its length, the same for all. psycopg's own dumper asks for the type of
    every element.
    """

    format = Format.BINARY
    element_oid: int
    element_bytes: int

    def dump(self, obj: tuple[bytes, ...]) -> Buffer:
        if not obj:
            return struct.pack(">iii", 0, 0, self.element_oid)
        length = self.element_bytes.to_bytes(_LENGTH_BYTES, "big")
        return (
            struct.pack(">iiiii", 1, 0, self.element_oid, len(obj), 1) + length + length.join(obj)
        )


class _TokensDumper(_ArrayDumper):
    oid = _BIGINT_ARRAY_OID
    element_oid = _BIGINT_OID
    element_bytes = 8


class _ItemKeysDumper(_ArrayDumper):
    oid = _BYTEA_ARRAY_OID
    element_oid = _BYTEA_OID
    element_bytes = 16


class _PlacesDumper(_ArrayDumper):
    oid = _TID_ARRAY_OID
    element_oid = _TID_OID
    element_bytes = 6


class _VarBitLoader(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> VarBit:
        return VarBit(bytes(data)[_LENGTH_BYTES:])


class _BinaryCursor(psycopg.AsyncCursor[Any]):
    """Asks for results in binary: text would double the size of every sealed value."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], **options: Any) -> None:
        super().__init__(connection, **options)
        self.format = Format.BINARY


class _BoundedPool(AsyncAdaptedQueuePool):
    """A pool that answers in our words when every connection stays busy."""

    def connect(self) -> PoolProxiedConnection:
        try:
            with stage("pool"):
                return super().connect()
        except PoolTimeout as error:
            raise errors.Overloaded("All database connections are busy; try again later") from error


def create_engine(settings: Settings, dsn: str) -> AsyncEngine:
    """Return an engine on `dsn` whose failures are `errors.Unavailable` and `errors.Overloaded`.

    There is no `pool_pre_ping`: it costs a round trip on every request. A look at the idle socket
    costs none and finds what a restart, a failover or an administrator has closed.
    """
    engine = create_async_engine(
        database_url(dsn),
        poolclass=_BoundedPool,
        pool_size=settings.pool_size,
        max_overflow=0,
        pool_timeout=settings.pool_timeout_s,
        # The most recently used connection is the one whose statements are prepared.
        pool_use_lifo=True,
        hide_parameters=True,
        use_native_hstore=False,
        connect_args={**_connect_args(settings, dsn), "cursor_factory": _BinaryCursor},
    )
    _listen(engine.sync_engine, settings)
    return engine


def create_scan_engine(settings: Settings, dsn: str) -> sa.Engine:
    """Return an engine that makes connections for `ScanPool`: blocking ones in autocommit, which only read."""
    engine = sa.create_engine(
        database_url(dsn),
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,
        use_native_hstore=False,
        connect_args=_connect_args(settings, dsn),
    )
    sa.event.listen(engine, "do_connect", _scan_connection)
    sa.event.listen(engine, "connect", _register_types)
    sa.event.listen(engine, "connect", _session_timeouts(settings))
    return engine


def _scan_connection(_dialect: Any, _record: Any, arguments: Any, options: Any) -> ScanConnection:
    return ScanConnection.connect(*arguments, **options)


def _listen(engine: sa.Engine, settings: Settings) -> None:
    sa.event.listen(engine, "connect", _register_types)
    sa.event.listen(engine, "connect", _session_timeouts(settings))
    sa.event.listen(engine, "checkout", _refuse_closed_socket)
    sa.event.listen(engine, "begin", _transaction_timeouts(settings))
    sa.event.listen(engine, "begin", _note_begin)
    sa.event.listen(engine, "commit", _note_commit)
    sa.event.listen(engine, "handle_error", _translate)


def maintenance_connection(settings: Settings, dsn: str) -> AsyncConnection:
    """Return a connection of its own, outside the pool: autocommit and no statement timeout. It opens when awaited.

    For what cannot run in a transaction or takes minutes, such as `CREATE INDEX CONCURRENTLY`. Its
    session settings are not shared when `dsn` leads to PostgreSQL itself, as it should for long
    jobs.
    """
    engine = create_async_engine(
        database_url(dsn),
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,
        use_native_hstore=False,
        connect_args={**_connect_args(settings, dsn), "cursor_factory": _BinaryCursor},
    )
    sa.event.listen(engine.sync_engine, "connect", _register_types)
    sa.event.listen(engine.sync_engine, "handle_error", _translate)
    return engine.connect()


async def check_database(engine: AsyncEngine) -> None:
    """Raise `errors.ConfigurationError`, saying what to do, unless the service can work with this database."""
    try:
        async with engine.connect() as connection:
            await schema.check(connection)
    except errors.Unavailable as error:
        reason = first_line(error.__cause__)
        raise errors.ConfigurationError(f"The database does not answer: {reason}") from error


def _connect_args(settings: Settings, dsn: str) -> dict[str, Any]:
    given = database_url(dsn).query
    return {
        **{name: value for name, value in _KEEPALIVES.items() if name not in given},
        "application_name": "sealdex",
        # The encoding of the session is the database's own otherwise, which may be SQL_ASCII.
        "client_encoding": "utf8",
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "prepare_threshold": settings.prepare_threshold
        if settings.prepare_threshold >= 0
        else None,
    }


def _psycopg(dbapi_connection: Any) -> Any:
    """Return psycopg's own connection; SQLAlchemy wraps the asynchronous one."""
    return getattr(dbapi_connection, "driver_connection", dbapi_connection)


def _register_types(dbapi_connection: Any, _record: Any) -> None:
    adapters = _psycopg(dbapi_connection).adapters
    adapters.register_dumper(VarBit, _VarBitDumper)
    adapters.register_dumper(Tokens, _TokensDumper)
    adapters.register_dumper(ItemKeys, _ItemKeysDumper)
    adapters.register_dumper(Places, _PlacesDumper)
    for oid in (_BIT_OID, _VARBIT_OID):
        adapters.register_loader(oid, _VarBitLoader)


def _session_timeouts(settings: Settings) -> Callable[[Any, Any], None]:
    """Return a listener that sets the timeouts once a session, where the session is ours alone.

    A pooler refuses them at start-up (`options`) and hands a session to other clients. Behind one,
    the process that answers is not the process that greeted us: then each transaction sets its own
    (`_transaction_timeouts`).
    """
    # COMMIT follows, or a rollback would take the settings back.
    statement = (
        "SELECT set_config('statement_timeout', %(timeout)s, false),"
        " set_config('idle_in_transaction_session_timeout', %(timeout)s, false)"
        " WHERE pg_backend_pid() = %(pid)s"
    )

    def listener(dbapi_connection: Any, record: Any) -> None:
        pid = _psycopg(dbapi_connection).info.backend_pid
        cursor = dbapi_connection.cursor()
        cursor.execute(statement, {"timeout": str(settings.statement_timeout_ms), "pid": pid})
        record.info["is_pooled"] = cursor.fetchone() is None
        cursor.close()
        dbapi_connection.commit()

    return listener


def _transaction_timeouts(settings: Settings) -> Callable[[sa.Connection], None]:
    """Return a listener that sets the timeouts in each transaction of a session behind a pooler."""
    statement = f"SET LOCAL statement_timeout = {settings.statement_timeout_ms:d}"

    def listener(connection: sa.Connection) -> None:
        if connection.info.get("is_pooled"):
            connection.exec_driver_sql(statement)

    return listener


def _note_begin(connection: sa.Connection) -> None:
    connection.info["is_committing"] = False


def _note_commit(connection: sa.Connection) -> None:
    """Remember that the COMMIT is on its way: should the connection be lost now, nobody knows its outcome."""
    connection.info["is_committing"] = True


def _refuse_closed_socket(dbapi_connection: Any, _record: Any, _proxy: Any) -> None:
    """Make the pool replace a connection that the other side has closed while it was idle."""
    if is_closed(_psycopg(dbapi_connection)):
        raise sa.exc.DisconnectionError("The database closed an idle connection")


def is_closed(raw: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """Whether the other side has closed an idle connection, as far as its socket tells."""
    idle = select.poll()
    try:
        idle.register(raw.pgconn.socket, select.POLLIN)
        # An idle session is silent. A notice is read and forgotten; the end of the stream stays
        # readable.
        while idle.poll(0):
            raw.pgconn.consume_input()
    except psycopg.OperationalError:
        return True
    return False


@asynccontextmanager
async def driver(connection: AsyncConnection) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """Lend psycopg's own connection, in the transaction of `connection`; failures are translated as the engine's."""
    raw = (await connection.get_raw_connection()).driver_connection
    assert isinstance(raw, psycopg.AsyncConnection)  # noqa: S101 - the engine is made for this driver
    with translated():
        yield raw


@contextmanager
def translated() -> Iterator[None]:
    """Raise `Unavailable` for errors of the block that mean it, and the driver's for others."""
    try:
        yield
    except psycopg.Error as error:
        if (unavailable := _unavailable(error)) is not None:
            raise unavailable from error
        raise


def _translate(context: ExceptionContext) -> BaseException | None:
    """Return what a caller is told instead of a driver's error, or None to leave it as it is."""
    error = context.original_exception
    if not isinstance(error, psycopg.Error):
        return None
    if context.is_disconnect:
        is_committing = context.connection is not None and context.connection.info.get(
            "is_committing"
        )
        return errors.Unavailable(_IN_DOUBT if is_committing else SILENCE)
    return _unavailable(error)


def _unavailable(error: psycopg.Error) -> errors.Unavailable | None:
    if error.sqlstate is None:
        return errors.Unavailable(SILENCE) if isinstance(error, psycopg.OperationalError) else None
    reason = next(
        (text for state, text in _UNAVAILABLE.items() if error.sqlstate.startswith(state)), None
    )
    return None if reason is None else errors.Unavailable(reason)
