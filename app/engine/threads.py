"""Arithmetic beside the event loop."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from app.engine.costs import LOOP_US

Answer = TypeVar("Answer")


async def computed(cost_us: float, work: Callable[[], Answer]) -> Answer:
    """Return what `work` returns: at once when it costs little, else from a thread."""
    return work() if cost_us <= LOOP_US else await asyncio.to_thread(work)
