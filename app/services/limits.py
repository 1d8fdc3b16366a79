"""How many requests a second each key may send, over all workers and hosts together.

PostgreSQL keeps the account, but not each request goes there: a worker takes a tenth of a second's
worth at a time, and what it has not used after a second is lost. So a key gets its rate, or a
little less with many workers.
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

    async def check(self, caller: str) -> None:
        """Count a request of `caller`. Raises `RateLimited`."""
        if not self._rate:
            return
        lease = self._leases.get(caller)
        if lease is not None and lease.n_left > 0 and monotonic() < lease.ends_at:
            lease.n_left -= 1
            return
        for n_requests in sorted({self._lease_size(), 1}, reverse=True):
            if await self._take(caller, n_requests):
                self._leases[caller] = _Lease(n_requests - 1, monotonic() + _LEASE_S)
                return
        raise errors.RateLimited(
            "too many requests for this key; try again later", math.ceil(1 / self._rate)
        )

    def _lease_size(self) -> int:
        return max(1, min(int(self._rate * _LEASE_SHARE_S), self._burst))

    async def _take(self, caller: str, n_requests: int) -> bool:
        async with stage("sql"), self._engine.begin() as connection:
            return await store.rate_limits.take(
                connection, caller, cost_s=n_requests / self._rate, burst_s=self._burst / self._rate
            )
