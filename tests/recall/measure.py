"""A cell, measured on the service itself, in process: items are stored, queries asked."""

import time
from dataclasses import dataclass

import numpy as np

from app.domain import Caller, IndexAccess, Item, Matrix, Metadata, NewIndex, Precision, Query
from app.engine.keyed import VECTOR_DTYPES
from app.services.context import ServiceContext
from tests.recall import truth
from tests.recall.cells import Cell, Filter, Stage
from tests.recall.datasets import FAMILY, Dataset

KEY = "5e" * 32
TOP_K = 10
N_QUERIES = 100
SEED = 1
# Up to these an untrained index is to be ranked exactly.
_EXACT_ITEMS = 2_000
_EXACT_BYTES = 16 * 1024 * 1024
_BATCH = 1_000
_OTHER_SCALE = 30
# Three items in ten match a filter.
_MATCHING = 3

FILTERS: dict[Filter, Metadata | None] = {
    Filter.NONE: None,
    Filter.TOKENS: {"kind": {"$in": ["kind 0", "kind 1", "kind 2"]}},
    Filter.RANGE: {"number": {"$lt": _MATCHING}},
}


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of a cell; `query_ms` is the time of a query in a batch of all."""

    cell: Cell
    recall: float
    floor: float
    query_ms: float
    seconds: float

    @property
    def is_kept(self) -> bool:
        """Whether the recall is what it must be."""
        return self.recall >= self.floor


async def measured(services: ServiceContext, cell: Cell) -> Measured:
    """Store the data of a cell in an index of its own, search it, and delete it again."""
    started = time.monotonic()
    data = FAMILY[cell.data](cell.stage.n_items, N_QUERIES, SEED)
    access = IndexAccess(str(cell).replace("/", "."), KEY, Caller())
    await services.indexes.create(
        NewIndex(
            name=access.index_name,
            index_key=KEY,
            metric=cell.metric,
            storage_precision=cell.precision,
        )
    )
    try:
        await _live(services, access, cell, data)
        asked = time.monotonic()
        found = await _found(services, access, cell, data)
        query_ms = 1_000 * (time.monotonic() - asked) / N_QUERIES
    finally:
        await services.indexes.delete(access)
    recall = _recall(cell, data, found)
    return Measured(cell, recall, floor(cell, data), query_ms, time.monotonic() - started)


def floor(cell: Cell, data: Dataset) -> float:
    """Return the recall that a cell must keep."""
    if cell.stage.is_trained:
        return 0.95
    n_bytes = data.vectors.size * VECTOR_DTYPES[cell.precision].itemsize
    is_exact = len(data.vectors) <= _EXACT_ITEMS and n_bytes <= _EXACT_BYTES
    return 1.0 if is_exact else 0.99


async def _live(services: ServiceContext, access: IndexAccess, cell: Cell, data: Dataset) -> None:
    """Bring the index into its stage."""
    if cell.stage is Stage.TRAINED_AGAIN:
        # Another model's vectors, in another place and of another size.
        others = np.random.default_rng(SEED).standard_normal(data.vectors.shape, np.float32) + 1
        await _store(services, access, Dataset(_OTHER_SCALE * others, data.queries))
        await _train(services, access)
    await _store(services, access, data)
    if cell.stage.is_trained:
        await _train(services, access)


async def _train(services: ServiceContext, access: IndexAccess) -> None:
    failure = await services.training.train(access, None)
    assert failure is None, failure
    assert (await services.indexes.describe(access)).is_trained


async def _store(services: ServiceContext, access: IndexAccess, data: Dataset) -> None:
    items = [
        Item(str(row), vector, None, {"kind": f"kind {row % 10}", "number": row % 10})
        for row, vector in enumerate(data.vectors)
    ]
    await services.vectors.upsert(access, items[: data.n_first])
    for start in range(data.n_first, len(items), _BATCH):
        await services.vectors.upsert(access, items[start : start + _BATCH])


async def _found(
    services: ServiceContext, access: IndexAccess, cell: Cell, data: Dataset
) -> list[list[int]]:
    query = Query(vectors=data.queries, top_k=TOP_K, filters=FILTERS[cell.filter])
    return [
        [int(match.id) for match in matches]
        for matches in await services.vectors.query(access, query)
    ]


def _recall(cell: Cell, data: Dataset, found: list[list[int]]) -> float:
    """Return the mean over the queries. What does not match the filter counts as infinitely far."""
    stored = _as_stored(data.vectors, cell.precision)
    is_match = np.full(len(stored), cell.filter is Filter.NONE)
    is_match |= np.arange(len(stored)) % 10 < _MATCHING
    shares = []
    for query, rows in zip(data.queries, found, strict=True):
        exact = np.where(is_match, truth.distances(cell.metric, query, stored), np.inf)
        n_true = min(TOP_K, int(is_match.sum()))
        shares.append(truth.recall(exact, cell.metric, rows, n_true))
    return float(np.mean(shares))


def _as_stored(vectors: Matrix, precision: Precision) -> Matrix:
    return vectors.astype(VECTOR_DTYPES[precision]).astype(np.float32)
