"""What would keep the event loop from others for too long runs in a thread."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")

# Making so many short elements takes about a millisecond.
FEW = 1_000


async def off_loop(n_elements: int, make: Callable[[], Answer]) -> Answer:
    """Return what `make` returns: at once when it makes few elements, else from a thread."""
    return make() if n_elements <= FEW else await asyncio.to_thread(make)
