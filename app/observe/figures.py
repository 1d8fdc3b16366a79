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
_GOOD = (200, 201, 204, 307)
_BAD = (400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 499, 500, 502, 503)
STATUSES = (*map(str, (*_GOOD, *_BAD)), OTHER_STATUS)

_HISTOGRAM = len(BUCKETS) + 1
_FLOAT_BYTES = 8


class Layout:
    """Where in a worker's array each figure is; the same in all workers of a service."""

    def __init__(self, routes: Sequence[str]) -> None:
        self.routes = (*sorted(set(routes)), NO_ROUTE)
        n_routes = len(self.routes)
        self.durations = n_routes * len(STATUSES)
        self.stages = self.durations + n_routes * _HISTOGRAM
        self.sealed_failures = self.stages + len(STAGES) * _HISTOGRAM
        self.pool_in_use = self.sealed_failures + 1
        self.pool_size = self.pool_in_use + 1
        self.n_floats = self.pool_size + 1
        self._route_numbers = _numbers(self.routes)
        self._status_numbers = _numbers(STATUSES)
        self._stage_numbers = _numbers(STAGES)

    def request(self, route: str, status: int) -> int:
        """Return the place of the counter of these answers."""
        number = self._route_numbers.get(route, len(self.routes) - 1)
        return number * len(STATUSES) + self._status_numbers.get(str(status), len(STATUSES) - 1)

    def duration(self, route: str) -> int:
        """Return the place of the histogram of a route."""
        number = self._route_numbers.get(route, len(self.routes) - 1)
        return self.durations + number * _HISTOGRAM

    def stage(self, name: str) -> int:
        """Return the place of the histogram of a stage."""
        return self.stages + self._stage_numbers[name] * _HISTOGRAM


class Figures:
    """The figures of this worker, and through the directory those of its siblings.

    Without a directory the worker is alone.
    """

    def __init__(self, routes: Sequence[str], directory: Path | None = None) -> None:
        self._layout = Layout(routes)
        self._directory = directory
        self._own = memoryview(self._map()).cast("d")

    def _map(self) -> mmap.mmap:
        n_bytes = self._layout.n_floats * _FLOAT_BYTES
        if self._directory is None:
            return mmap.mmap(-1, n_bytes)
        path = self._directory / f"{os.getpid()}.figures"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.ftruncate(descriptor, n_bytes)
            return mmap.mmap(descriptor, n_bytes)
        finally:
            os.close(descriptor)

    def count_request(self, route: str, status: int) -> None:
        """Count an answer."""
        self._own[self._layout.request(route, status)] += 1

    def observe_request(self, route: str, seconds: float, stages: Mapping[str, float]) -> None:
        """Add the duration of a request and of its stages to the histograms."""
        self._observe(self._layout.duration(route), seconds)
        for name, part in stages.items():
            self._observe(self._layout.stage(name), part)

    def _observe(self, place: int, seconds: float) -> None:
        own = self._own
        own[place + bisect_left(BUCKETS, seconds)] += 1
        own[place + _HISTOGRAM - 1] += seconds

    def count_sealed_failure(self) -> None:
        """Count a stored value that did not open."""
        self._own[self._layout.sealed_failures] += 1

    def set_pool(self, in_use: int, size: int) -> None:
        """Say how many database connections of this worker are in use."""
        self._own[self._layout.pool_in_use] = in_use
        self._own[self._layout.pool_size] = size

    def n_searches(self) -> float:
        """Return how many searches all workers have answered: the requests that waited a turn."""
        start = self._layout.stage(SCAN_QUEUE)
        counts = slice(start, start + _HISTOGRAM - 1)
        return float(sum(values[counts].sum() for _, values in self._arrays()))

    def read(self) -> "Totals":
        """Return the figures of all workers together."""
        total = np.zeros(self._layout.n_floats)
        gauges = slice(self._layout.pool_in_use, self._layout.pool_size + 1)
        for is_alive, values in self._arrays():
            counted = values.copy()
            if not is_alive:
                counted[gauges] = 0
            total += counted
        return Totals(self._layout, total)

    def _arrays(self) -> list[tuple[bool, NDArray[np.float64]]]:
        """Return the array of each worker, and whether that worker is alive."""
        if self._directory is None:
            return [(True, np.array(self._own))]
        found = [
            (int(path.stem), np.frombuffer(path.read_bytes(), np.float64))
            for path in self._directory.glob("*.figures")
        ]
        # The array of a worker that just begins is still empty.
        return [
            (_is_alive(pid), values)
            for pid, values in found
            if len(values) == self._layout.n_floats
        ]


class Totals:
    """What `Figures.read` found, by name."""

    def __init__(self, layout: Layout, values: NDArray[np.float64]) -> None:
        self._layout = layout
        self._values = values

    def requests(self) -> dict[tuple[str, str], float]:
        """Return the number of answers by route and status, without those that never were."""
        table = self._values[: self._layout.durations].reshape(-1, len(STATUSES))
        return {
            (route, status): float(count)
            for route, row in zip(self._layout.routes, table, strict=True)
            for status, count in zip(STATUSES, row, strict=True)
            if count
        }

    def durations(self) -> dict[str, "Histogram"]:
        """Return the durations of requests by route, without routes never asked for."""
        return self._histograms(self._layout.durations, self._layout.routes)

    def stages(self) -> dict[str, "Histogram"]:
        """Return the durations of stages by name."""
        return self._histograms(self._layout.stages, STAGES)

    def sealed_failures(self) -> float:
        """Return how many stored values did not open."""
        return float(self._values[self._layout.sealed_failures])

    def pool(self) -> tuple[float, float]:
        """Return the database connections in use, and those there may be."""
        in_use, size = self._values[self._layout.pool_in_use : self._layout.pool_size + 1]
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


def _numbers(names: Sequence[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
