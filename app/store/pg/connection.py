"""One connection to PostgreSQL, as the service opens it: types, timeouts, and what it has prepared.

Nothing that a request needs depends on the state of a session, so the service works through
PgBouncer in transaction mode. Prepared statements need PgBouncer 1.22 with
`max_prepared_statements`, or `SEALDEX_PREPARE_THRESHOLD=-1`.
"""

import functools
import secrets
import select
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Self

import psycopg
from psycopg import adapt
from psycopg.abc import Transformer
from psycopg.pq import Format

from app.settings import Settings
from app.store.pg import adapters
from app.store.pg.dsn import database_url, libpq_dsn

_CONNECT_TIMEOUT_S = 10
# A host that is gone without a word is given up after a minute; by the kernel's own measure it
# takes two hours.
_KEEPALIVES = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
# The session may have other defaults by its role or database; the code is made for these. A pooler
# refuses settings at start-up and hands a session on to other clients: where the process that
# answers is not the one that greeted us, nothing is set.
_SETTLE = """
    SELECT set_config('statement_timeout', %(timeout)s, false),
        set_config('idle_in_transaction_session_timeout', %(timeout)s, false),
        set_config('default_transaction_isolation', 'read committed', false)
    WHERE pg_backend_pid() = %(pid)s
    """


# In each transaction instead.
SET_TIMEOUT = "SELECT set_config('statement_timeout', %s, true)"


class BinaryCursor(psycopg.AsyncCursor[Any]):
    """Asks for results in binary: text would double the size of every sealed value."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], **options: Any) -> None:
        super().__init__(connection, **options)
        self.format = Format.BINARY


class Connection(psycopg.AsyncConnection[Any]):
    """A connection that can make round trips (`app.store.pg.round_trip`)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # The names of what round trips have prepared; the statement used last comes last. They
        # begin alike nowhere else: an old pooler may hand on a session in which others have
        # prepared.
        self.prepared: OrderedDict[tuple[bytes, tuple[int, ...]], bytes] = OrderedDict()
        self.n_prepared = 0
        self.name_prefix = b"_trip_%s_" % secrets.token_hex(4).encode()
        # Whether a pooler may hand the session to other clients, and how long a statement may take.
        self.is_pooled = False
        self.statement_timeout_ms = 0

    @classmethod
    async def connect(cls, conninfo: str = "", **options: Any) -> Self:
        """Return a new connection. `options` are psycopg's, and `arguments` has two of our own."""
        timeout_ms: int = options.pop("statement_timeout_ms")
        refused: Callable[[psycopg.Error], None] | None = options.pop("refused", None)
        try:
            connection = await super().connect(conninfo, **options)
            await connection._settle(timeout_ms)  # noqa: SLF001 - of this class
        except psycopg.Error as error:
            if refused is not None:
                refused(error)
            raise
        return connection

    @functools.cached_property
    def transformer(self) -> Transformer:
        """What turns parameters and answers of round trips into bytes and back."""
        return adapt.Transformer(self)

    async def limit_statements(self) -> None:
        """Give the statements of this transaction their timeout, where the session has none."""
        if self.is_pooled:
            await self.execute(SET_TIMEOUT, (str(self.statement_timeout_ms),))

    async def _settle(self, timeout_ms: int) -> None:
        """Set up the session, if the session is ours alone."""
        adapters.register(self.adapters)
        self.statement_timeout_ms = timeout_ms
        values = {"timeout": str(timeout_ms), "pid": self.info.backend_pid}
        try:
            cursor = await self.execute(_SETTLE, values)
            self.is_pooled = await cursor.fetchone() is None
            # A rollback would take the settings back.
            await self.commit()
        except BaseException:
            self.pgconn.finish()
            raise


def arguments(settings: Settings, dsn: str) -> dict[str, Any]:
    """Return the options of `Connection.connect` beside the address `dsn`."""
    given = database_url(dsn).query
    threshold = settings.prepare_threshold
    return {
        **{name: value for name, value in _KEEPALIVES.items() if name not in given},
        "application_name": "sealdex",
        # Else the encoding is that of the database, which may be SQL_ASCII.
        "client_encoding": "utf8",
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "prepare_threshold": threshold if threshold >= 0 else None,
        "cursor_factory": BinaryCursor,
        "statement_timeout_ms": settings.statement_timeout_ms,
    }


async def connect(settings: Settings, dsn: str) -> Connection:
    """Return a new connection to `dsn`, which the caller closes. Raises the driver's errors."""
    return await Connection.connect(libpq_dsn(dsn), **arguments(settings, dsn))


def is_closed(raw: psycopg.AsyncConnection[Any]) -> bool:
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
