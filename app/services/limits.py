"""How many requests a second each key may send, over all workers and hosts together.

PostgreSQL keeps the account, but not each request goes there: a worker takes a tenth of a second's
worth at a time, and what it has not used after a second is lost. So a key gets its rate, or a
little less with many workers. A refusal is remembered while it is known to hold, for a second at
most, so that refused requests cost no statement.
"""

import math
from dataclasses import dataclass
from time import monotonic

from cachetools import LRUCache
from sqlalchemy.ext.asyncio import AsyncEngine

from app import errors, store
from app.observe.stages import stage
from app.settings import Settings

_LEASE_SHARE_S = 0.1
_LEASE_S = 1.0
_MAX_CALLERS = 10_000


@dataclass(slots=True)
class _Lease:
    """Requests this worker has taken for a caller and not yet used."""

    n_left: int
    ends_at: float


class RateLimiter:
    """The limit of each caller; off unless the settings have one."""

    def __init__(self, engine: AsyncEngine, settings: Settings) -> None:
        self._engine = engine
        self._rate = settings.rate_limit_per_s
        self._burst = settings.rate_limit_burst
        self._leases: LRUCache[str, _Lease] = LRUCache(_MAX_CALLERS)
        # Until when each caller is refused without asking the database again.
        self._refused: LRUCache[str, float] = LRUCache(_MAX_CALLERS)

    async def check(self, caller: str) -> None:
        """Count a request of `caller`. Raises `RateLimited`."""
        if not self._rate:
            return
        now = monotonic()
        lease = self._leases.get(caller)
        if lease is not None and lease.n_left > 0 and now < lease.ends_at:
            lease.n_left -= 1
        elif now < self._refused.get(caller, 0.0) or not await self._has_taken(caller):
            message = "too many requests for this key; try again later"
            raise errors.RateLimited(message, math.ceil(1 / self._rate))

    async def _has_taken(self, caller: str) -> bool:
        """Take a lease, or a request if no more can be had; remember it if not even that can."""
        wait_s = 0.0
        for n_requests in sorted({self._lease_size(), 1}, reverse=True):
            wait_s = await self._take(caller, n_requests)
            if not wait_s:
                self._leases[caller] = _Lease(n_requests - 1, monotonic() + _LEASE_S)
                return True
        self._refused[caller] = monotonic() + min(wait_s, _LEASE_S)
        return False

    def _lease_size(self) -> int:
        return max(1, min(int(self._rate * _LEASE_SHARE_S), self._burst))

    async def _take(self, caller: str, n_requests: int) -> float:
        """Take requests, and return 0, or return in how many seconds there may be some."""
        async with stage("sql"), self._engine.begin() as connection:
            return await store.rate_limits.take(
                connection, caller, cost_s=n_requests / self._rate, burst_s=self._burst / self._rate
            )
