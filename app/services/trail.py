"""What goes into the audit log of requests that reach no index: refusals, and lists of names.

Whoever sends requests without a key must not fill the log, so a worker records so many refusals a
minute and then how many there were more.
"""

from contextlib import suppress
from time import monotonic

from sqlalchemy.ext.asyncio import AsyncEngine

from app import errors, store
from app.domain import AuditEntry, Caller
from app.observe.stages import stage
from app.settings import Settings

_MINUTE_S = 60.0


class Trail:
    """Records requests that no service records, if the settings ask for it."""

    def __init__(self, engine: AsyncEngine, settings: Settings) -> None:
        self._engine = engine
        self._is_on = settings.audit_reads
        self._limit = settings.max_audited_refusals
        self._ends_at = 0.0
        self._n_refused = 0

    async def read(self, caller: Caller) -> None:
        """Record that `caller` reads what belongs to no index."""
        if self._is_on:
            await self._record(_entry(caller, "done"))

    async def refused(self, caller: Caller) -> None:
        """Record that a request of `caller` was refused before it reached an index."""
        if not self._is_on:
            return
        n_more = self._begin_minute()
        self._n_refused += 1
        with suppress(errors.AppError):
            if n_more > 0:
                await self._record(_entry(Caller(name="many"), "refused", n_more))
            if self._n_refused <= self._limit:
                await self._record(_entry(caller, "refused"))

    def _begin_minute(self) -> int:
        """Return how many refusals of the last minute were not recorded, once it has ended."""
        if monotonic() < self._ends_at:
            return 0
        n_more = self._n_refused - self._limit
        self._ends_at, self._n_refused = monotonic() + _MINUTE_S, 0
        return n_more

    async def _record(self, entry: AuditEntry) -> None:
        async with stage("audit"), self._engine.begin() as connection:
            await store.audit.record(connection, entry)


def _entry(caller: Caller, outcome: str, n_requests: int | None = None) -> AuditEntry:
    return AuditEntry(
        caller=caller.name,
        key_id=None,
        operation=caller.operation or "requests",
        index_id=None,
        index_name=None,
        n_items=n_requests,
        request_id=caller.request_id,
        outcome=outcome,
    )
