"""The settings of the embedded PostgreSQL: memory by the machine's, and a log without values."""

from pathlib import Path

import psutil

PORT = 5432

_MB = 1024 * 1024
_GB = 1024 * _MB
_MEMORY_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)

_DURABLE = {
    # An acknowledged write is on disk.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    # Pages of ciphertext do not get smaller.
    "wal_compression": "off",
}
# No parameter, no statement, and no row in the details of an error. What is left is the error's own
# sentence. That sentence quotes only text that does not convert, and the service sends its values
# in binary.
_LOG_WITHOUT_VALUES = {
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_min_error_statement": "panic",
    "log_min_duration_statement": "-1",
    "log_statement": "none",
    "log_error_verbosity": "terse",
}
_SEVEN_DAYS_OF_LOG = {
    "log_line_prefix": "%m [%p] ",
    "logging_collector": "on",
    "log_directory": "log",
    "log_filename": "postgresql-%a.log",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_truncate_on_rotation": "on",
}


def server_settings(memory: int, max_connections: int) -> dict[str, str]:
    """Return the server's settings for a machine with `memory` bytes."""
    return {
        # A Unix socket only, for the server's own user.
        "listen_addresses": "",
        "port": str(PORT),
        "unix_socket_permissions": "0700",
        "max_connections": str(max_connections),
        **_memory_settings(memory, max_connections),
        **_DURABLE,
        # Every query is short: compiling one would take longer than running it.
        "jit": "off",
        "random_page_cost": "1.1",
        "timezone": "UTC",
        "log_timezone": "UTC",
        **_LOG_WITHOUT_VALUES,
        **_SEVEN_DAYS_OF_LOG,
    }


def memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or its control group's limit."""
    limits: list[int] = [psutil.virtual_memory().total]
    for path in _MEMORY_LIMITS:
        try:
            limits.append(int(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):
            # There is no such control group, or the group has no limit ("max").
            continue
    return min(limits)


def _memory_settings(memory: int, max_connections: int) -> dict[str, str]:
    """Return the shares of `memory`; the service and the page cache keep about half of it."""
    return {
        "shared_buffers": _in_mb(_clamp(memory // 4, 128 * _MB, 4 * _GB)),
        "effective_cache_size": _in_mb(max(memory * 6 // 10, 256 * _MB)),
        # All tuples that a search probes are sorted in work_mem.
        "work_mem": _in_mb(_clamp(memory // (4 * max_connections), 8 * _MB, 64 * _MB)),
        "maintenance_work_mem": _in_mb(_clamp(memory // 16, 64 * _MB, _GB)),
    }


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


def _in_mb(n_bytes: int) -> str:
    return f"{n_bytes // _MB}MB"
