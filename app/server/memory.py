"""How a worker looks after its memory: requests hold megabytes, as upserts do."""

import asyncio
import ctypes
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
from litestar import Litestar

_MB = 1024 * 1024
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_GC_THRESHOLD = 50_000

# How often a worker looks at its memory, and how much more it must have to give some back.
_LOOK_S = 5.0
_MORE = 32 * _MB


def keep_buffers() -> None:
    """Let malloc keep what is freed for the next request.

    Memory that is handed back to the kernel returns as page faults: without them, an upsert of a
    thousand vectors takes a sixth less CPU time. A worker's threads take turns, so the threads
    share two arenas, and what these keep is bounded.
    """
    # Other C libraries have no mallopt.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)
        mallopt(_M_MMAP_THRESHOLD, 8 * _MB)
        mallopt(_M_TRIM_THRESHOLD, 32 * _MB)


def collect_rarely() -> None:
    """Keep the garbage collector away from what lives as long as the worker, and from searches.

    A search makes thousands of small objects and no cycle: a collection after every 700 objects was
    a quarter of the search's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)


@asynccontextmanager
async def looked_after(_: Litestar) -> AsyncIterator[None]:
    """Give memory back that an application has used and does not use any more, until it ends."""
    task = asyncio.create_task(_look_after())
    try:
        yield
    finally:
        task.cancel()


async def _look_after() -> None:
    process = psutil.Process()
    used = process.memory_info().rss
    while True:
        await asyncio.sleep(_LOOK_S)
        rss = process.memory_info().rss
        if rss > used + _MORE:
            give_back()
            # What is left is in use, for all that is known.
            used = process.memory_info().rss
        used = min(used, rss)


def give_back() -> None:
    """Free what is kept in cycles, and hand what malloc keeps to the system.

    The collector comes rarely, and malloc keeps much: both pay for requests as usual, and neither
    lets go of a worker's memory after requests unlike the usual ones.
    """
    gc.collect()
    # Other C libraries have no malloc_trim.
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
