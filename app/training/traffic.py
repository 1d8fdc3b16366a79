"""Whether searches are under way, in whatever worker: a training lets them go first."""

import asyncio
import time

from app.observe.figures import Figures

# A client that searches again within this time finds one processor free.
_QUIET_S = 0.5
_LOOK_INTERVAL_S = 0.05
# While searches are under way, what goes on beside a build rests for this many times as long as it
# has worked.
_REST = 2.0


class Traffic:
    """Looks now and then whether searches were answered. Without figures it is always quiet."""

    def __init__(self, figures: Figures | None) -> None:
        self._figures = figures
        self._n_searches = 0.0
        self._looked_at = self._busy_at = float("-inf")

    def is_quiet(self) -> bool:
        """Whether no search was answered for half a second.

        The first look finds those that were ever answered.
        """
        now = time.monotonic()
        if self._figures is not None and now - self._looked_at >= _LOOK_INTERVAL_S:
            self._looked_at = now
            n_searches = self._figures.n_searches()
            if n_searches != self._n_searches:
                self._n_searches, self._busy_at = n_searches, now
        return now - self._busy_at >= _QUIET_S

    async def rest_after(self, worked_s: float) -> None:
        """Leave the processor to searches, if there are any, after so much work."""
        if not self.is_quiet():
            await asyncio.sleep(_REST * worked_s)
