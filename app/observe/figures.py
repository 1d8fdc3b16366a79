"""Counters and histograms that all workers share, without a lock and without a message.

Each worker has a file of its own in one directory, `<pid>.figures`, mapped into memory: an array of
float64 whose layout is the same in all workers of a service. A worker writes to its own array only,
at the price of an addition; a scrape adds the arrays up. The file of a worker that has died stays,
so counters never go back; its gauges no longer count.
"""

import mmap
import os
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.observe.stages import SCAN_QUEUE, STAGES

# Upper ends in seconds.
BUCKETS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, float("inf")),
)
NO_ROUTE = "none"
OTHER_STATUS = "other"
STATUSES = (
    *map(
        str,
        (
            200,
            201,
            204,
            307,
            400,
            401,
            403,
            404,
            405,
            408,
            409,
            413,
            415,
            422,
            429,
            499,
            500,
            502,
            503,
        ),
    ),
    OTHER_STATUS,
)

_HISTOGRAM = len(BUCKETS) + 1
_FLOAT_BYTES = 8


class Figures:
    """The figures of this worker, and through the directory those of its siblings. Without a directory it is alone."""

    def __init__(self, routes: Sequence[str], directory: Path | None = None) -> None:
        self.routes = (*sorted(set(routes)), NO_ROUTE)
        self._directory = directory
        n_routes = len(self.routes)
        self._requests = 0
        self._durations = n_routes * len(STATUSES)
        self._stages = self._durations + n_routes * _HISTOGRAM
        self._sealed_failures = self._stages + len(STAGES) * _HISTOGRAM
        self._pool_in_use = self._sealed_failures + 1
        self._pool_size = self._pool_in_use + 1
        self._n_floats = self._pool_size + 1
        self._route_numbers = {route: number for number, route in enumerate(self.routes)}
        self._status_numbers = {status: number for number, status in enumerate(STATUSES)}
        self._stage_places = {
            name: self._stages + number * _HISTOGRAM for number, name in enumerate(STAGES)
        }
        self._own = memoryview(self._map()).cast("d")

    def _map(self) -> mmap.mmap:
        n_bytes = self._n_floats * _FLOAT_BYTES
        if self._directory is None:
            return mmap.mmap(-1, n_bytes)
        descriptor = os.open(
            self._directory / f"{os.getpid()}.figures", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600
        )
        try:
            os.ftruncate(descriptor, n_bytes)
            return mmap.mmap(descriptor, n_bytes)
        finally:
            os.close(descriptor)

    def count_request(self, route: str, status: int) -> None:
        """Count an answer."""
        number = self._route_numbers.get(route, len(self.routes) - 1)
        column = self._status_numbers.get(str(status), len(STATUSES) - 1)
        self._own[number * len(STATUSES) + column] += 1

    def observe_request(self, route: str, seconds: float, stages: Mapping[str, float]) -> None:
        """Add the duration of a request and of its stages to the histograms."""
        number = self._route_numbers.get(route, len(self.routes) - 1)
        self._observe(self._durations + number * _HISTOGRAM, seconds)
        for name, part in stages.items():
            self._observe(self._stage_places[name], part)

    def _observe(self, place: int, seconds: float) -> None:
        own = self._own
        own[place + bisect_left(BUCKETS, seconds)] += 1
        own[place + _HISTOGRAM - 1] += seconds

    def count_sealed_failure(self) -> None:
        """Count a stored value that did not open."""
        self._own[self._sealed_failures] += 1

    def set_pool(self, in_use: int, size: int) -> None:
        """Say how many database connections of this worker are in use."""
        self._own[self._pool_in_use] = in_use
        self._own[self._pool_size] = size

    def n_searches(self) -> float:
        """Return how many searches all workers have answered: the requests that waited for a thread to scan in."""
        start = self._stage_places[SCAN_QUEUE]
        counts = slice(start, start + _HISTOGRAM - 1)
        return float(sum(values[counts].sum() for _, values in self._arrays()))

    def read(self) -> "Totals":
        """Return the figures of all workers together."""
        total = np.zeros(self._n_floats)
        gauges = slice(self._pool_in_use, self._pool_size + 1)
        for is_alive, values in self._arrays():
            counted = values.copy()
            if not is_alive:
                counted[gauges] = 0
            total += counted
        return Totals(self, total)

    def _arrays(self) -> list[tuple[bool, NDArray[np.float64]]]:
        if self._directory is None:
            return [(True, np.array(self._own))]
        arrays = []
        for path in self._directory.glob("*.figures"):
            values = np.frombuffer(path.read_bytes(), np.float64)
            # One that is just being made is still empty.
            if len(values) == self._n_floats:
                arrays.append((_is_alive(int(path.stem)), values))
        return arrays


class Totals:
    """What `Figures.read` found, by name."""

    def __init__(self, figures: Figures, values: NDArray[np.float64]) -> None:
        self._figures = figures
        self._values = values

    def requests(self) -> dict[tuple[str, str], float]:
        """Return the number of answers by route and status, without those that never were."""
        table = self._values[: self._figures._durations].reshape(-1, len(STATUSES))  # noqa: SLF001  # one layout, two classes
        return {
            (route, status): float(count)
            for route, row in zip(self._figures.routes, table, strict=True)
            for status, count in zip(STATUSES, row, strict=True)
            if count
        }

    def durations(self) -> dict[str, "Histogram"]:
        """Return the durations of requests by route, without routes never asked for."""
        start = self._figures._durations  # noqa: SLF001  # the same
        return self._histograms(start, self._figures.routes)

    def stages(self) -> dict[str, "Histogram"]:
        """Return the durations of stages by name."""
        return self._histograms(self._figures._stages, STAGES)  # noqa: SLF001  # the same

    def sealed_failures(self) -> float:
        """Return how many stored values did not open."""
        return float(self._values[self._figures._sealed_failures])  # noqa: SLF001  # the same

    def pool(self) -> tuple[float, float]:
        """Return the database connections in use, and those there may be."""
        in_use, size = self._values[-2:]
        return float(in_use), float(size)

    def _histograms(self, start: int, names: Sequence[str]) -> dict[str, "Histogram"]:
        table = self._values[start : start + len(names) * _HISTOGRAM].reshape(-1, _HISTOGRAM)
        return {
            name: Histogram(np.cumsum(row[:-1]).tolist(), float(row[-1]))
            for name, row in zip(names, table, strict=True)
            if row[:-1].any()
        }


class Histogram:
    """How many observations were at most `BUCKETS[i]`, for each i, and the sum of all."""

    def __init__(self, counts: list[float], total_s: float) -> None:
        self.counts = counts
        self.total_s = total_s

    def buckets(self) -> list[tuple[str, float]]:
        """Return the upper ends as Prometheus writes them, with their counts."""
        ends = ["+Inf" if end == float("inf") else repr(end) for end in BUCKETS]
        return list(zip(ends, self.counts, strict=True))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
