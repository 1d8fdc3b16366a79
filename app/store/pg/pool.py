"""The pool: every connection that a worker has, but for those of trainings.

psycopg's own pool waits for a database that refuses. Here a request is refused at once when nobody
else holds a connection whose return it could wait for (docs/decisions/0080).
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine

from app import errors
from app.observe.stages import stage
from app.settings import Settings
from app.store.pg.connection import Connection, arguments, is_closed
from app.store.pg.dsn import libpq_dsn
from app.store.pg.engine import engine_on
from app.store.pg.failures import SILENCE, translated

_CLOSE_TIMEOUT_S = 1.0


class _Stack(deque[Connection]):
    """Connections that are not lent, of which the one used last is lent first: its session is warm.

    psycopg takes the one that was used longest ago, with which a search takes a sixth more time.
    """

    def popleft(self) -> Connection:
        return self.pop()


class Pool(AsyncConnectionPool[Connection]):
    """Lends connections, at most `SEALDEX_POOL_SIZE` at a time, made when they are needed.

    There is no query to see whether a connection still works, which would cost a round trip in
    every request. A look at the idle socket costs none and finds what a restart, a failover or an
    administrator has closed.
    """

    def __init__(
        self, settings: Settings, dsn: str, lent: Callable[[int], None] = lambda _: None
    ) -> None:
        """`lent` is told how many connections are lent, each time that their number changes."""
        super().__init__(
            libpq_dsn(dsn),
            connection_class=Connection,
            kwargs={**arguments(settings, dsn), "refused": self._refuse},
            min_size=0,
            max_size=settings.pool_size,
            open=False,
            # What SQLAlchemy closes comes back here.
            close_returns=True,
            timeout=settings.pool_timeout_s,
            reconnect_timeout=0,
        )
        self._pool = _Stack()
        self.engine: AsyncEngine = engine_on(self.getconn)
        self._lent = lent
        self._n_lent = 0
        self._ends: set[asyncio.Timeout] = set()
        self._refusal: psycopg.Error | None = None

    async def getconn(self, timeout: float | None = None) -> Connection:  # noqa: ASYNC109 (its own name)
        """Return a connection that nobody has closed. Raises `Overloaded`, `Unavailable`."""
        n_cancelled = _n_cancelled()
        with stage("pool"):
            while is_closed(raw := await self._granted(timeout)):
                raw.pgconn.finish()
                await super().putconn(raw)
        if _n_cancelled() > n_cancelled:
            # The library forgets a cancellation that comes together with the connection.
            await super().putconn(raw)
            raise asyncio.CancelledError
        self._count(1)
        return raw

    async def putconn(self, conn: Connection) -> None:
        """Take a connection back; one that is closed or in the middle of something is replaced."""
        self._count(-1)
        await super().putconn(conn)

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Connection]:
        """Lend a connection that is in no transaction. Raises `Unavailable` for failures, too."""
        raw = await self.getconn()
        try:
            with translated():
                yield raw
        finally:
            await self.putconn(raw)

    async def close(self, timeout: float = _CLOSE_TIMEOUT_S) -> None:  # noqa: ASYNC109 (its own name)
        """Close the connections that are not lent, and those that are when they come back."""
        await super().close(timeout)
        await self.engine.dispose()

    async def _granted(self, patience_s: float | None) -> Connection:
        try:
            async with asyncio.timeout(None) as end:
                self._ends.add(end)
                try:
                    return await super().getconn(patience_s)
                finally:
                    self._ends.discard(end)
        except PoolTimeout as error:
            if self._n_lent:
                raise errors.Overloaded(
                    "All database connections are busy; try again later"
                ) from error
            raise errors.Unavailable(SILENCE) from error
        except TimeoutError:
            raise errors.Unavailable(SILENCE) from self._refusal
        except PoolClosed as error:
            raise errors.Unavailable("The service is being stopped") from error

    def _refuse(self, error: psycopg.Error) -> None:
        """End the wait for a connection that could not be made, unless others may be given back."""
        self._refusal = error
        if not self._n_lent:
            ends, self._ends = self._ends, set()
            for end in ends:
                end.reschedule(0)

    def _count(self, n_more: int) -> None:
        self._n_lent += n_more
        self._lent(self._n_lent)


def _n_cancelled() -> int:
    """Return how often the task that runs was cancelled."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
