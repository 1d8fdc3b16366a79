"""Connections for scans: made when they are needed, and kept.

SQLAlchemy's pool makes a connection where it is asked for one, which would stop the event loop for
as long as the database is silent. This one lends at once what is idle, and has the rest made in a
thread (docs/decisions/0076).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import psycopg
import sqlalchemy as sa
from psycopg.pq import TransactionStatus

from app import errors
from app.settings import Settings
from app.store.pg.engine import SILENCE, create_scan_engine, is_closed, translated
from app.store.pg.round_trip import ScanConnection


class ScanPool:
    """Lends connections, the one used last first. Whoever borrows sees to it that not too many are lent."""

    def __init__(
        self, settings: Settings, dsn: str, lent: Callable[[int], None] = lambda _: None
    ) -> None:
        """`lent` is told how many more connections are lent than before."""
        self._engine = create_scan_engine(settings, dsn)
        self._idle: list[ScanConnection] = []
        self._lent = lent

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[ScanConnection]:
        """Lend a connection. Raises `Unavailable`, for failures in the block, too."""
        while (raw := self._take()) is None:
            await asyncio.to_thread(self._add)
        with self._lending(raw):
            yield raw

    @contextmanager
    def lend_blocking(self) -> Iterator[ScanConnection]:
        """Lend a connection as `lend` does, to a thread that may block."""
        while (raw := self._take()) is None:
            self._add()
        with self._lending(raw):
            yield raw

    def close(self) -> None:
        """Close the connections that are not lent."""
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> ScanConnection | None:
        # Empty it may be at any time: threads take from it, too.
        with suppress(IndexError):
            while is_closed(raw := self._idle.pop()):
                raw.close()
            return raw
        return None

    def _add(self) -> None:
        try:
            made = self._engine.raw_connection()
        except (psycopg.OperationalError, sa.exc.OperationalError) as error:
            # The driver's own: nobody translates what happens on the way to a raw connection.
            raise errors.Unavailable(SILENCE) from error
        raw = made.driver_connection
        assert isinstance(raw, ScanConnection)  # noqa: S101 - the engine is made for this driver
        made.detach()
        self._idle.append(raw)

    @contextmanager
    def _lending(self, raw: ScanConnection) -> Iterator[None]:
        self._lent(1)
        try:
            with translated():
                yield
        finally:
            self._lent(-1)
            if not raw.closed and raw.pgconn.transaction_status == TransactionStatus.IDLE:
                self._idle.append(raw)
            else:
                raw.close()
