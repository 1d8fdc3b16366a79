"""An index of the tests in this directory: its key, what is stored in it, what is true of it."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from app import store
from app.domain import Caller, Index, IndexAccess, Item, Matrix, NewIndex, Query
from app.services.context import ServiceContext

KEY = secrets.token_hex(32)
ACCESS = IndexAccess("test", KEY, Caller())
# Of a service that trains early, and of an index that makes it train.
THRESHOLD = 1_500
N, D = 3_000, 48

_PATIENCE_S = 60
_POLL_S = 0.02


def clustered(n: int, d: int, seed: int) -> Matrix:
    """Vectors around 60 centres, the same for every seed, all a way off from zero."""
    centres = np.random.default_rng(0).standard_normal((60, d)) + 1
    rng = np.random.default_rng(seed)
    return (centres[rng.integers(60, size=n)] + 0.6 * rng.standard_normal((n, d))).astype(
        np.float32
    )


def items(vectors: Matrix, start: int = 0) -> list[Item]:
    return [Item(str(start + row), vector) for row, vector in enumerate(vectors)]


async def create(services: ServiceContext, **fields: Any) -> None:
    await services.indexes.create(NewIndex(**{"name": "test", "index_key": KEY, **fields}))


async def filled(services: ServiceContext, vectors: Matrix, **fields: Any) -> None:
    """Create an index with `vectors`, of which the second half may trigger a training."""
    await create(services, **fields)
    half = len(vectors) // 2
    assert (await services.vectors.upsert(ACCESS, items(vectors[:half]))).training_message is None
    await services.vectors.upsert(ACCESS, items(vectors[half:], half))


async def trained(services: ServiceContext, vectors: Matrix, **fields: Any) -> None:
    """Create an index with `vectors`, and wait until it is trained."""
    await filled(services, vectors, **fields)
    await settled(services)


async def until(is_true: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait until a condition holds."""
    for _ in range(round(_PATIENCE_S / _POLL_S)):
        if await is_true():
            return
        await asyncio.sleep(_POLL_S)
    pytest.fail(f"it never came that {what}")


async def settled(services: ServiceContext) -> None:
    """Wait until no training is at work."""

    async def is_settled() -> bool:
        status = await services.training.status(Caller())
        return not (status.running or status.queued)

    await until(is_settled, "no training is at work")


async def row(engine: AsyncEngine) -> Index:
    async with engine.connect() as connection:
        index = await store.indexes.by_name(connection, "test")
    assert index is not None
    return index


async def row_that(engine: AsyncEngine, is_right: Callable[[Index], bool], what: str) -> Index:
    """Return the row of the index as soon as it is as it should be."""

    async def is_there() -> bool:
        return is_right(await row(engine))

    await until(is_there, what)
    return await row(engine)


async def relations(engine: AsyncEngine) -> list[tuple[str, bool]]:
    """Name every ivfflat index, and whether it is valid."""
    statement = sa.text(
        "SELECT relname, indisvalid FROM pg_class JOIN pg_index ON indexrelid = pg_class.oid"
        " WHERE relname ~ '^ivf_'"
    )
    async with engine.connect() as connection:
        return [(name, is_valid) for name, is_valid in await connection.execute(statement)]


async def scalar(engine: AsyncEngine, statement: str) -> Any:
    async with engine.begin() as connection:
        return (await connection.execute(sa.text(statement))).scalar_one_or_none()


async def assert_clean(engine: AsyncEngine) -> None:
    index = await row(engine)
    assert await relations(engine) == [(store.tables.ivf_name(index.id, index.generation), True)]


def exact(metric: str, queries: Matrix, vectors: Matrix, k: int) -> list[set[str]]:
    if metric == "cosine":
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    squared = (vectors**2).sum(axis=1) - 2 * queries.astype(np.float64) @ vectors.T
    return [{str(one) for one in order} for order in np.argsort(squared, axis=1)[:, :k]]


async def recall(
    services: ServiceContext, metric: str, queries: Matrix, vectors: Matrix, **query: Any
) -> float:
    top_k = query.get("top_k", 10)
    found = await services.vectors.query(
        ACCESS, Query(vectors=queries, **{"top_k": top_k, **query})
    )
    truth = exact(metric, queries, vectors, top_k)
    shares = [
        len({match.id for match in matches} & true) / top_k
        for matches, true in zip(found, truth, strict=True)
    ]
    return float(np.mean(shares))
