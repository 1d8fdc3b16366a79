"""What the processes of the service and of its database take: CPU time and memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import psutil

from tests.service.conftest import Service


@dataclass(frozen=True)
class Cpu:
    """CPU seconds, of user and system: steadier than wall-clock time where something else runs as well."""

    service: float
    database: float

    @classmethod
    def of(cls, service: Service) -> Self:
        """Return what has been used since the start."""
        assert service.process is not None
        return cls(_cpu_seconds(service.process.pid), _cpu_seconds(postmaster(service)))

    def __sub__(self, other: Self) -> "Cpu":
        return Cpu(self.service - other.service, self.database - other.database)


def postmaster(service: Service) -> int:
    """Return the process id of the embedded database."""
    return int((service.data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0])


def _cpu_seconds(root: int) -> float:
    process = psutil.Process(root)
    # Those of children that have ended are with their parent.
    own = process.cpu_times()
    seconds = own.user + own.system + own.children_user + own.children_system
    for child in process.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        seconds += times.user + times.system
    return seconds


def memory_mb(root: int, size: Callable[[psutil.Process], int]) -> list[float]:
    """Return the memory of each process below `root`, largest first, in MB."""
    sizes = []
    for child in psutil.Process(root).children(recursive=True):
        try:
            sizes.append(size(child) / 1e6)
        except psutil.NoSuchProcess:
            continue
    return sorted(sizes, reverse=True)
