"""A small sealed index in memory: what a worker would have read of it."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

import numpy as np
import pytest

from app.crypto.keys import IndexKeys
from app.domain import Matrix, Metric
from app.engine.lists import layout_format
from app.engine.lists.clustering import fit
from app.engine.lists.entries import FIELDS, RECORD, Entries, Lists
from app.engine.lists.layout import Encoding, Geometry
from app.engine.lists.layout_format import Reference, Root
from app.engine.lists.sealing import Kind, Sealing
from app.engine.lists.space import Space
from app.store.chunks import ChunkRow, Known, LayoutRow, News

D = 16
N_LISTS = 70


@dataclass
class Stored:
    """The rows of an index with its items' vectors, as the database would keep them."""

    sealing: Sealing
    encoding: Encoding
    geometry: Geometry
    vectors: Matrix
    row: LayoutRow
    listed: dict[bytes, ChunkRow] = field(default_factory=dict)
    pages: dict[bytes, ChunkRow] = field(default_factory=dict)
    fresh: dict[bytes, ChunkRow] = field(default_factory=dict)

    def entries(self, rows: Sequence[int], lists: Lists | None = None) -> Entries:
        """Entries of the items with these numbers, each in its list."""
        points = self.geometry.space.points(self.vectors[list(rows)])
        lists = self.geometry.centroids.lists_of(points) if lists is None else lists
        sketches = self.geometry.sketcher.sketch(
            points, lists, self.geometry.space.is_nowhere(points)
        )
        return Entries(
            self._records(rows, sketches.lengths, sketches.offsets), lists, sketches.words
        )

    def exact(self, rows: Sequence[int]) -> Entries:
        """Entries with the vectors of these items, in list 0."""
        zeros = np.zeros(len(rows), np.float32)
        lists = np.zeros(len(rows), np.int32)
        return Entries(self._records(rows, zeros, zeros), lists, self.vectors[list(rows)])

    def _records(
        self, rows: Sequence[int], *numbers: np.ndarray[tuple[int], np.dtype[np.float32]]
    ) -> np.ndarray[tuple[int], np.dtype[np.void]]:
        records = np.zeros(len(rows), FIELDS)
        records["tag"] = rows
        records["length"], records["offset"] = numbers
        return records.view(RECORD)

    def add_fresh(self, entries: Entries) -> None:
        """What a writer does."""
        self.fresh |= {row.name: row for row in self.sealing.fresh(entries)}

    def lay_out(self, entries: Entries, points: Matrix | None) -> None:
        """Make a layout in which `entries` are all there is in the lists."""
        n_lists = 1 if points is None else len(points)
        references = []
        self.listed.clear()
        for number in range(n_lists):
            rows = np.flatnonzero(entries.lists == number)
            chunks = list(self.sealing.listed(entries[rows])) if len(rows) else []
            self.listed |= {row.name: row for row in chunks}
            references.append([Reference(row.name, len(rows)) for row in chunks])
        directory = [
            layout_format.directory_page(first, references[first : first + 64])
            for first in range(0, n_lists, 64)
        ]
        centroids = [] if points is None else list(layout_format.centroid_pages(points))
        kinds = {Kind.DIRECTORY: directory, Kind.CENTROIDS: centroids}
        made = {
            kind: [self.sealing.page(kind, page) for page in pages] for kind, pages in kinds.items()
        }
        self.pages = {row.name: row for rows in made.values() for row in rows}
        names = [[row.name for row in made[kind]] for kind in kinds]
        root = Root(n_lists, 0 if points is None else points.shape[1], *names)
        row = self.row._replace(version=self.row.version + 1, pages=list(self.pages))
        self.row = row._replace(sealed_root=self.sealing.root(row, root))

    def news(self, known: Known) -> News:
        """What the database would answer."""
        is_new = known.version != self.row.version
        row = self.row if is_new else self.row._replace(pages=[], sealed_root=b"")
        return News(
            row,
            list(self.fresh),
            [row for name, row in self.fresh.items() if name not in known.fresh],
            [row for name, row in self.pages.items() if is_new and name not in known.pages],
        )


@pytest.fixture
def stored() -> Stored:
    """An index of 2,000 items in 70 lists."""
    keys = IndexKeys.derive(secrets.token_bytes(32), UUID(int=1))
    random = np.random.default_rng(5)
    vectors = random.standard_normal((2_000, D), dtype=np.float32)
    space = Space(Metric.EUCLIDEAN, np.zeros(D, np.float32), 1.0)
    encoding = Encoding(space, keys.sketch_key, 512)
    centroids = fit(space.points(vectors), N_LISTS, is_spherical=False, random=random)
    row = LayoutRow(0, 1, 1, 1, 1, (), b"")
    geometry = encoding.geometry(centroids.points)
    index = Stored(Sealing(keys, 1, 1), encoding, geometry, vectors, row)
    index.lay_out(index.entries(range(2_000)), centroids.points)
    return index
