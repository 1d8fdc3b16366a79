"""A layout as a worker knows it: the centroids of the lists, and the chunks of each list."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import NamedTuple

import numpy as np

from app.domain import Matrix
from app.engine.lists import layout_format
from app.engine.lists.clustering import Centroids
from app.engine.lists.layout_format import LISTS_A_PAGE, Reference, Root
from app.engine.lists.sealing import Kind, Sealing
from app.engine.lists.sketching import Sketcher
from app.engine.lists.space import Space
from app.errors import DataCorrupted
from app.store.chunks import ChunkRow, LayoutRow, News
from app.store.indexes import StaleIndex

Page = Sequence[Sequence[Reference]]


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """Where the lists of one generation lie, and how their entries are sketched."""

    space: Space
    centroids: Centroids
    sketcher: Sketcher


@dataclass(frozen=True, slots=True)
class Encoding:
    """What a geometry is made of beside centroids: the space, the key of sketches, their bits."""

    space: Space
    sketch_key: bytes = field(repr=False)
    bits: int

    def geometry(self, points: Matrix | None) -> Geometry:
        """Return the geometry of lists with the centroids `points` (k, d).

        None is for one list, whose base is the origin.
        """
        origin = self.space.origin[None]
        points = origin if points is None else points
        sketcher = Sketcher(self.sketch_key, np.vstack([points, origin]), self.bits)
        return Geometry(self.space, Centroids(points, self.space.is_spherical), sketcher)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The lists of an index, and the row of `layouts` that tells them."""

    row: LayoutRow
    root: Root
    geometry: Geometry
    pages: Mapping[bytes, Page]

    @property
    def n_lists(self) -> int:
        """Number of lists."""
        return self.root.n_lists

    def chunks_of(self, number: int) -> Sequence[Reference]:
        """Return the chunks of a list."""
        page = self.pages[self.root.directory[number // LISTS_A_PAGE]]
        return page[number % LISTS_A_PAGE]

    def chunks(self) -> list[Reference]:
        """Return the chunks of all lists."""
        pages = (self.pages[name] for name in self.root.directory)
        return list(chain.from_iterable(chain.from_iterable(pages)))

    def page_names(self) -> list[bytes]:
        """Return the names of all pages."""
        return [*self.root.directory, *self.root.centroids]


def read(sealing: Sealing, encoding: Encoding, news: News, before: Layout | None) -> Layout:
    """Return the layout that `news` tell, where `before`, of the same generation, is known.

    What has not changed is taken over. Raises `DataCorrupted`, and `StaleIndex` for news of another
    generation or encoder than `sealing` is for.
    """
    row = news.layout
    if (row.generation, row.encoder_version) != (sealing.generation, sealing.encoder_version):
        raise StaleIndex
    if before is not None and row.version == before.row.version:
        return before
    root = sealing.open_root(news.layout)
    rows = {row.name: row for row in news.pages}
    known = {} if before is None else before.pages
    pages = {
        name: known[name] if name in known else _directory_page(sealing, rows, name, number)
        for number, name in enumerate(root.directory)
    }
    if before is not None and list(before.root.centroids) == list(root.centroids):
        geometry = before.geometry
    else:
        geometry = encoding.geometry(_centroids(sealing, root, rows))
    return Layout(news.layout, root, geometry, pages)


class Rewritten(NamedTuple):
    """The row and the pages that a change of some lists makes, and what is not used then."""

    row: LayoutRow
    pages: Sequence[ChunkRow]
    retired: Sequence[bytes]


def rewritten(
    sealing: Sealing, layout: Layout, row: LayoutRow, lists: Mapping[int, Sequence[Reference]]
) -> Rewritten:
    """Return the layout in which `lists` have other chunks, told by the numbers of `row`."""
    names, pages = list(layout.root.directory), []
    for number in sorted({each // LISTS_A_PAGE for each in lists}):
        first = number * LISTS_A_PAGE
        content = [
            lists.get(first + place, chunks)
            for place, chunks in enumerate(layout.pages[names[number]])
        ]
        page = sealing.page(Kind.DIRECTORY, layout_format.directory_page(first, content))
        names[number] = page.name
        pages.append(page)
    root = replace(layout.root, directory=names)
    retired = set(layout.root.directory) - set(names)
    return Rewritten(_with_root(sealing, row, root), pages, list(retired))


def first(
    sealing: Sealing, row: LayoutRow, lists: Sequence[Sequence[Reference]], points: Matrix | None
) -> Rewritten:
    """Return a layout of `lists` with centroids `points` (k, d), None for one at the origin."""
    directory = [
        sealing.page(
            Kind.DIRECTORY, layout_format.directory_page(start, lists[start : start + LISTS_A_PAGE])
        )
        for start in range(0, len(lists), LISTS_A_PAGE)
    ]
    centroids = [
        sealing.page(Kind.CENTROIDS, page)
        for page in ([] if points is None else layout_format.centroid_pages(points))
    ]
    dimension = 0 if points is None else points.shape[1]
    root = Root(
        len(lists), dimension, [page.name for page in directory], [page.name for page in centroids]
    )
    return Rewritten(_with_root(sealing, row, root), [*directory, *centroids], [])


def _with_root(sealing: Sealing, row: LayoutRow, root: Root) -> LayoutRow:
    pages = [*root.directory, *root.centroids]
    return row._replace(pages=pages, sealed_root=sealing.root(row, root))


def _directory_page(
    sealing: Sealing, rows: Mapping[bytes, ChunkRow], name: bytes, number: int
) -> Page:
    data = sealing.open_page(Kind.DIRECTORY, _page(rows, name))
    return layout_format.directory_from_bytes(data, number * LISTS_A_PAGE)


def _centroids(sealing: Sealing, root: Root, rows: Mapping[bytes, ChunkRow]) -> Matrix | None:
    if not root.centroids:
        return None
    step = layout_format.centroids_a_page(root.dimension)
    opened = [sealing.open_page(Kind.CENTROIDS, _page(rows, name)) for name in root.centroids]
    parts = [
        layout_format.centroids_from_bytes(data, number * step)
        for number, data in enumerate(opened)
    ]
    points = np.concatenate(parts)
    if points.shape != (root.n_lists, root.dimension):
        raise DataCorrupted("a page of the index's layout is malformed")
    return points


def _page(rows: Mapping[bytes, ChunkRow], name: bytes) -> ChunkRow:
    if name not in rows:
        raise DataCorrupted("a page of the index's layout is missing")
    return rows[name]
