"""The family of hard data sets: what people store, in the shapes that sketches find hard.

Each generator takes a number of items, a number of queries and a seed, and returns a `Dataset`. The
queries are drawn as the items are and are not stored. `FAMILY` names all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from app.domain import Matrix

_MAX_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Items (n, d) in the order of storing, queries (q, d), and the size of the first batch."""

    vectors: Matrix
    queries: Matrix
    n_first: int = 1_000


Rows: TypeAlias = NDArray[np.float64]
Draw: TypeAlias = Callable[[np.random.Generator, int], Rows]
Generator: TypeAlias = Callable[[int, int, int], Dataset]


def drawn(draw: Draw, n_items: int, n_queries: int, seed: int) -> Dataset:
    """Return items and queries that `draw` makes together: they have the same clusters and mean."""
    rng = np.random.default_rng(seed)
    rows = draw(rng, n_items + n_queries)
    order = rng.permutation(len(rows))
    vectors = np.clip(rows[order], -_MAX_FLOAT32, _MAX_FLOAT32).astype(np.float32)
    return Dataset(vectors[:n_items], vectors[n_items:])


def _normal(rng: np.random.Generator, count: int, dimension: int) -> Rows:
    return rng.standard_normal((count, dimension))


def _uniform(rng: np.random.Generator, count: int, dimension: int) -> Rows:
    return rng.random((count, dimension))


def _text_like(rng: np.random.Generator, count: int) -> Rows:
    """Clusters of low rank, as embeddings of text have them: the easy case."""
    basis = rng.standard_normal((48, 192))
    centres = rng.standard_normal((400, 48))
    spread = 0.7 * rng.standard_normal((count, 48))
    return _unit((centres[rng.integers(400, size=count)] + spread) @ basis)


def _far_clusters(rng: np.random.Generator, count: int) -> Rows:
    """Fifty tight groups, far from each other and from the origin."""
    centres: Rows = 100 + 100 * rng.standard_normal((50, 32))
    return centres[rng.integers(50, size=count)] + rng.standard_normal((count, 32))


def _cone(rng: np.random.Generator, count: int, cosine: float) -> Rows:
    """Directions with a strong mean, as many models make them; two have `cosine`, on average."""
    axis = _unit(rng.standard_normal((1, 128)))
    rows: Rows = cosine**0.5 * axis + (1 - cosine) ** 0.5 * _unit(_normal(rng, count, 128))
    return rows


def _places(rng: np.random.Generator, count: int) -> Rows:
    """Latitude and longitude of places in one town."""
    return rng.normal((52.52, 13.40), 0.05, (count, 2)).round(5)


def _line(rng: np.random.Generator, count: int) -> Rows:
    return rng.normal(20, 5, (count, 1))


def _copies(rng: np.random.Generator, count: int) -> Rows:
    """Each vector some hundred times."""
    different = rng.standard_normal((max(2, count // 100), 64))
    return different[rng.integers(len(different), size=count)]


def _mixed_norms(rng: np.random.Generator, count: int) -> Rows:
    return rng.standard_normal((count, 64)) * rng.lognormal(0, 1, (count, 1))


def _zeros_among_others(rng: np.random.Generator, count: int) -> Rows:
    return rng.standard_normal((count, 48)) * (rng.random((count, 1)) < 0.7)


def _sensors(rng: np.random.Generator, count: int) -> Rows:
    """Readings in unlike units: hPa · 100, °C, %, rpm, V, mg; some of them go together."""
    typical = np.array([101_325, 21, 45, 1_480, 3.3, 0.02, 0.5, 7])
    spread = np.array([500, 4, 12, 90, 0.05, 0.005, 0.1, 2])
    return typical + spread * rng.standard_normal((count, 8)) @ (
        np.eye(8) + 0.3 * rng.standard_normal((8, 8))
    )


def _columns(rng: np.random.Generator, count: int) -> Rows:
    """Columns of a table: year, postcode, income, children, latitude, a share, two yes or no."""
    columns = (
        rng.integers(1930, 2010, count),
        rng.integers(10_000, 99_999, count),
        rng.lognormal(10.5, 0.6, count),
        rng.poisson(1.3, count),
        rng.normal(50, 2, count),
        rng.random(count),
        rng.random(count) < 0.5,
        rng.random(count) < 0.1,
    )
    return np.column_stack(columns).astype(np.float64)


def _heavy_tails(rng: np.random.Generator, count: int) -> Rows:
    """Cauchy numbers, clipped."""
    return np.clip(rng.standard_cauchy((count, 32)), -1e4, 1e4)


def _sparse(rng: np.random.Generator, count: int) -> Rows:
    """Counts of words, most of them zero."""
    is_there = rng.random((count, 256)) < 1 / np.arange(3, 259)
    return rng.poisson(2, (count, 256)).astype(np.float64) * is_there


def _integers(rng: np.random.Generator, count: int) -> Rows:
    return rng.integers(0, 4, (count, 24)).astype(np.float64)


def _histograms(rng: np.random.Generator, count: int) -> Rows:
    """Descriptors of images: whole numbers from 0 to 207, skewed, in groups."""
    centres = rng.gamma(0.6, 40, (300, 128))
    noise = rng.gamma(0.8, 20, (count, 128))
    return np.minimum((centres[rng.integers(300, size=count)] + noise) // 1, 207)


def _constant(rng: np.random.Generator, count: int) -> Rows:
    return np.tile(rng.standard_normal((1, 16)), (count, 1))


def _extremes(rng: np.random.Generator, count: int) -> Rows:
    """Directions whose lengths go from the smallest to the largest that float32 has."""
    return rng.standard_normal((count, 16)) * 10 ** rng.uniform(-44, 38, (count, 1))


def _other_scale_first(n_items: int, n_queries: int, seed: int) -> Dataset:
    """A first batch that is a thousand times as large as what follows."""
    data = drawn(partial(_normal, dimension=64), n_items, n_queries, seed)
    n_first = min(100, n_items // 5)
    data.vectors[:n_first] *= 1_000
    return replace(data, n_first=n_first)


def _odd_item_first(n_items: int, n_queries: int, seed: int) -> Dataset:
    """Unit vectors, after one item of length 100 in a batch of its own."""
    data = drawn(partial(_normal, dimension=96), n_items, n_queries, seed)
    vectors, queries = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (data.vectors, data.queries)
    )
    vectors[0] *= 100
    return Dataset(vectors, queries, n_first=1)


def _drifting(n_items: int, n_queries: int, seed: int) -> Dataset:
    """Growth that drifts: the mean wanders off, and the queries are about what came last."""
    data = drawn(partial(_normal, dimension=48), n_items, n_queries, seed)
    path = np.linspace(0, 40, n_items, dtype=np.float32)[:, None]
    data.vectors[:, :4] += path
    data.queries[:, :4] += path[-1]
    return replace(data, n_first=min(200, n_items // 5))


def _unit(rows: Rows) -> Rows:
    unit: Rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _of(draw: Draw) -> Generator:
    return partial(drawn, draw)


FAMILY: Mapping[str, Generator] = {
    "text-like": _of(_text_like),
    "far-clusters": _of(_far_clusters),
    "cone-90": _of(partial(_cone, cosine=0.9)),
    "cone-97": _of(partial(_cone, cosine=0.97)),
    "cone-99": _of(partial(_cone, cosine=0.99)),
    "line": _of(_line),
    "places": _of(_places),
    "uniform-64": _of(partial(_uniform, dimension=64)),
    "uniform-384": _of(partial(_uniform, dimension=384)),
    "uniform-768": _of(partial(_uniform, dimension=768)),
    "normal-64": _of(partial(_normal, dimension=64)),
    "normal-384": _of(partial(_normal, dimension=384)),
    "normal-768": _of(partial(_normal, dimension=768)),
    "copies": _of(_copies),
    "mixed-norms": _of(_mixed_norms),
    "zeros-among-others": _of(_zeros_among_others),
    "sensors": _of(_sensors),
    "columns": _of(_columns),
    "heavy-tails": _of(_heavy_tails),
    "sparse": _of(_sparse),
    "integers": _of(_integers),
    "histograms": _of(_histograms),
    "other-scale-first": _other_scale_first,
    "odd-item-first": _odd_item_first,
    "drifting": _drifting,
    "constant": _of(_constant),
    "extremes": _of(_extremes),
}
