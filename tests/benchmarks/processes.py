"""What the processes of the service and of its database take: CPU time and memory."""

import threading
from dataclasses import dataclass
from typing import Literal, Self

import psutil

from tests.service.conftest import Service


@dataclass(frozen=True)
class Cpu:
    """CPU seconds, of user and system: steadier than wall-clock time where something else runs as
    well.
    """

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


class Peak:
    """Watches the memory of the workers while its block runs: each one's own, without what they
    share.
    """

    _INTERVAL_S = 0.5

    def __init__(self, service: Service) -> None:
        assert service.process is not None
        self._supervisor = psutil.Process(service.process.pid)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        # That of the largest worker, in MB, at each look.
        self.worker_mb: list[float] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._is_over.wait(self._INTERVAL_S):
            self._look()

    def _look(self) -> None:
        self.worker_mb.append(max(_sizes_mb(self._supervisor, "uss")))


def database_mb(service: Service) -> float:
    """Return the memory of the database in MB, counting once what its processes share."""
    return sum(_sizes_mb(psutil.Process(postmaster(service)), "pss"))


def _sizes_mb(root: psutil.Process, kind: Literal["uss", "pss"]) -> list[float]:
    sizes = []
    for process in root.children(recursive=True):
        try:
            sizes.append(getattr(process.memory_full_info(), kind) / 1e6)
        except psutil.NoSuchProcess:
            continue
    return sizes
