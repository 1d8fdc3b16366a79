"""What a query scans: the lists nearest to it, and the fresh entries of these lists."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.domain import Vector
from app.engine.lists.entries import Entries
from app.engine.lists.memory import Fresh, Opened, Sight
from app.engine.lists.scan import Ranked, Segment, scan
from app.engine.lists.sketching import NO_LIST, View


@dataclass(frozen=True, slots=True)
class Cuts:
    """How many entries are kept by the first estimate, and how many of these by the second."""

    first: int
    second: int


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A query: its point (d,), and the lists that it reads, nearest first."""

    sight: Sight
    point: Vector
    lists: NDArray[np.intp]

    @classmethod
    def of(cls, sight: Sight, point: Vector, n_probes: int) -> "Probe":
        """Return the query `point` (d,) that reads the `n_probes` nearest lists."""
        return cls(sight, point, sight.layout.geometry.centroids.nearest_lists(point, n_probes))

    def chunks(self) -> dict[bytes, int]:
        """Return the chunks of the lists, and the list of each."""
        layout = self.sight.layout
        return {
            reference.name: number
            for number in self.lists.tolist()
            for reference in layout.chunks_of(number)
        }

    def scan(self, opened: Opened, cuts: Cuts) -> Ranked:
        """Return the entries nearest to the query, of the chunks `opened` and of what is fresh."""
        places = self._places()
        view = self._view()
        segments = [
            Segment(entries, int(places[entries.lists[0]]))
            for entries in opened.values()
            if len(entries)
        ]
        segments += _fresh_segments(self.sight.fresh.together, places)
        return scan(view, self.point, segments, first_cut=cuts.first, second_cut=cuts.second)

    def scan_fresh(self, added: Fresh, cuts: Cuts) -> Ranked:
        """Return the entries nearest to the query among those that came later."""
        segments = _fresh_segments(added.together, self._places())
        view = self._view()
        return scan(view, self.point, segments, first_cut=cuts.first, second_cut=cuts.second)

    def _view(self) -> View:
        lists = np.append(self.lists, NO_LIST)
        return self.sight.layout.geometry.sketcher.view(self.point, lists)

    def _places(self) -> NDArray[np.intp]:
        """Return the place of each list in the view, and of none at last; -1 for one not read."""
        places = np.full(self.sight.layout.n_lists + 1, -1)
        places[self.lists] = np.arange(len(self.lists))
        places[NO_LIST] = len(self.lists)
        return places


def _fresh_segments(fresh: Sequence[Entries], places: NDArray[np.intp]) -> list[Segment]:
    """Return the fresh entries of the lists that are read."""
    segments = []
    for entries in fresh:
        of_entries = places[entries.lists]
        rows = np.flatnonzero(of_entries >= 0)
        segments.append(Segment(entries[rows], of_entries[rows]))
    return segments
