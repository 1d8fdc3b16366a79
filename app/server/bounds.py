"""What a client may hold of a worker before there is a request, and how long it may take."""

import resource
from dataclasses import dataclass
from typing import Self

from app.errors import ConfigurationError
from app.settings import Settings

# Files that a worker opens beside its connections and its pools: event loop, listener, log, models.
_OTHER_FILES = 64
# Slower than any line that a request or an answer is sent over on purpose.
LEAST_BYTES_PER_S = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The settings of connections; workers get them as a value."""

    receive_timeout_s: float
    idle_timeout_s: float
    max_head_bytes: int
    max_pipelined_requests: int
    max_connections: int
    max_connections_per_address: int

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the bounds that `settings` ask for and the limit of open files leaves room for.

        Raises `ConfigurationError` when there is room for no connection.
        """
        return cls(
            receive_timeout_s=settings.receive_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
            max_head_bytes=settings.max_head_bytes,
            max_pipelined_requests=settings.max_pipelined_requests,
            max_connections=min(settings.max_connections, _room(settings)),
            max_connections_per_address=settings.max_connections_per_address,
        )


def _room(settings: Settings) -> int:
    """Return how many connections a worker has file descriptors for."""
    n_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if n_files == resource.RLIM_INFINITY:
        return settings.max_connections
    n_needed = settings.pool_size + _OTHER_FILES
    if n_files <= n_needed:
        raise ConfigurationError(
            f"The limit of open files is {n_files}, and a worker needs {n_needed} beside its "
            "connections: raise it (`ulimit -n`, LimitNOFILE=), or lower SEALDEX_POOL_SIZE"
        )
    return n_files - n_needed
