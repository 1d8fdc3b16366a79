"""A sign of life that PostgreSQL itself takes back: a lock, held while this worker trains.

A worker that is killed cannot say so, but its connections end with it. So nobody needs to wait for
the lease of its jobs (`store.training`), which is for a worker that cannot be reached, or hangs.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app import errors
from app.settings import Settings
from app.store.pg.engine import maintenance_connection

_NUMBER_BYTES = 8
_PATIENCE_S = 5.0
# The snapshot of a SELECT stays until the next statement, and CREATE INDEX CONCURRENTLY waits for
# it. This has none.
_REST = "SET LOCAL idle_in_transaction_session_timeout = 0"

# The lock's number is the first half of a claim; `pg_locks` shows the halves of that.
IS_PRESENT = sa.literal_column(
    """
    EXISTS (
        SELECT FROM pg_locks
        WHERE locktype = 'advisory' AND objsubid = 1 AND granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND (classid::bigint << 32 | objid::bigint)
                = ('x' || left(replace(training_jobs.claim::text, '-', ''), 16))::bit(64)::bigint
    )
    """,
    sa.Boolean,
)


class Presence:
    """The lock of this worker, on a connection that is open as long as somebody holds it."""

    def __init__(self, settings: Settings, dsn: str) -> None:
        self._settings = settings
        self._dsn = dsn
        self._number = secrets.token_bytes(_NUMBER_BYTES)
        self._connection: AsyncConnection | None = None
        self._n_holders = 0
        self._one_at_a_time = asyncio.Lock()

    def new_claim(self) -> UUID:
        """Return a random name that tells whose it is."""
        return UUID(bytes=self._number + secrets.token_bytes(_NUMBER_BYTES))

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Hold the lock during the block, together with all others who do. Raises `Unavailable`."""
        self._n_holders += 1
        try:
            await self.confirm()
            yield
        finally:
            self._n_holders -= 1
            await self._let_go()

    async def confirm(self) -> None:
        """Take the lock again if it was lost with its connection. Raises `Unavailable`."""
        # A training that ends in the middle of it must not break the transaction that others rely
        # on.
        await asyncio.shield(self._confirm())

    async def _confirm(self) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S), self._one_at_a_time:
                if self._connection is not None and not await self._is_alive(self._connection):
                    await self._close()
                if self._connection is None and self._n_holders:
                    self._connection = await self._take()
        except TimeoutError as error:
            raise errors.Unavailable("The database does not answer") from error

    async def _is_alive(self, connection: AsyncConnection) -> bool:
        try:
            await connection.exec_driver_sql(_REST)
        except (sa.exc.SQLAlchemyError, errors.AppError):
            return False
        return True

    async def _take(self) -> AsyncConnection:
        connection = await maintenance_connection(self._settings, self._dsn)
        try:
            # In a transaction, or a pooler would hand the session to others. Above READ COMMITTED
            # its snapshot would stay, and CREATE INDEX CONCURRENTLY would wait for it.
            await connection.exec_driver_sql("BEGIN ISOLATION LEVEL READ COMMITTED")
            number = int.from_bytes(self._number, "big", signed=True)
            # Shared, so that it never waits for an earlier connection that the server has not yet
            # given up.
            await connection.execute(
                sa.select(sa.func.pg_advisory_xact_lock_shared(sa.cast(number, sa.BigInteger)))
            )
            await connection.exec_driver_sql(_REST)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _let_go(self) -> None:
        async with self._one_at_a_time:
            if not self._n_holders:
                await self._close()

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sa.exc.SQLAlchemyError, errors.AppError):
                await connection.close()
