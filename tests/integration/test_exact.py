"""Searches that compare every item: small indexes, and what a query asks for."""

import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest

from app import store
from app.domain import Caller, IndexAccess, Item, Match, Matrix, NewIndex, Precision, Query
from app.engine import costs
from app.services.context import ServiceContext
from app.settings import Settings

pytestmark = pytest.mark.anyio

KEY = secrets.token_hex(32)
ACCESS = IndexAccess("test", KEY, Caller())


@pytest.fixture
async def services(settings: Settings) -> AsyncIterator[ServiceContext]:
    async with ServiceContext.open(replace(settings, auto_train_disabled=True)) as context:
        yield context


def noise(n: int, d: int, seed: int) -> Matrix:
    """What everybody tries first; sketches tell hardly anything about it."""
    return np.random.default_rng(seed).random((n, d)).astype(np.float32)


async def fill(
    services: ServiceContext,
    vectors: Matrix,
    *,
    metric: str = "euclidean",
    precision: Precision = Precision.FLOAT32,
) -> None:
    new = NewIndex(name="test", index_key=KEY, metric=metric, storage_precision=precision)
    await services.indexes.create(new)
    await services.vectors.upsert(
        ACCESS,
        [Item(str(row), vector, metadata={"n": row}) for row, vector in enumerate(vectors)],
    )


async def search(services: ServiceContext, queries: Matrix, **asked: object) -> list[list[Match]]:
    query = Query(vectors=queries, include=frozenset({"distance"}), **asked)  # type: ignore[arg-type]
    return await services.vectors.query(ACCESS, query)


def truth(queries: Matrix, vectors: Matrix, k: int) -> list[list[str]]:
    squared = ((queries[:, None, :].astype(np.float64) - vectors[None]) ** 2).sum(axis=2)
    return [[str(row) for row in order] for order in np.argsort(squared, axis=1)[:, :k]]


def ids(found: list[list[Match]]) -> list[list[str]]:
    return [[match.id for match in matches] for matches in found]


@pytest.mark.parametrize("n_items", [1, 199, 201, 2_000])
async def test_a_small_untrained_index_is_ranked_exactly(
    services: ServiceContext, n_items: int
) -> None:
    vectors, queries = noise(n_items, 64, 1), noise(20, 64, 2)
    await fill(services, vectors)
    assert ids(await search(services, queries, top_k=10)) == truth(queries, vectors, 10)
    one = await search(services, queries[:1], top_k=10, n_probes=1, rerank_mult=1)
    assert ids(one) == truth(queries[:1], vectors, 10)


async def test_what_matches_a_filter_in_a_small_index_is_ranked_exactly(
    services: ServiceContext,
) -> None:
    vectors, queries = noise(1_900, 64, 1), noise(10, 64, 2)
    await fill(services, vectors)
    found = await search(services, queries, top_k=10, filters={"n": {"$lt": 1_000}})
    assert ids(found) == truth(queries, vectors[:1_000], 10)


@pytest.mark.parametrize("precision", Precision)
async def test_target_recall_1_is_exact(services: ServiceContext, precision: Precision) -> None:
    vectors, queries = noise(4_000, 32, 1), noise(15, 32, 2)
    await fill(services, vectors, precision=precision)
    stored = vectors.astype(np.float16).astype(np.float32)
    expected = truth(queries, vectors if precision is Precision.FLOAT32 else stored, 10)
    assert ids(await search(services, queries, top_k=10, target_recall=1)) == expected


async def test_reading_all_lists_of_a_trained_index_is_exact(services: ServiceContext) -> None:
    vectors, queries = noise(4_000, 32, 1), noise(15, 32, 2)
    await fill(services, vectors)
    assert await services.training.train(ACCESS, 16) is None
    for n_probes in (16, 1_000):
        found = await search(services, queries, top_k=10, n_probes=n_probes)
        assert ids(found) == truth(queries, vectors, 10)
    few = await search(services, queries, top_k=10, n_probes=1)
    assert ids(few) != truth(queries, vectors, 10)


async def test_an_exact_search_keeps_to_its_filter(services: ServiceContext) -> None:
    vectors, queries = noise(3_000, 32, 1), noise(3, 32, 2)
    await fill(services, vectors)
    where = {"n": {"$gte": 2_995}}
    found = await search(services, queries, top_k=10, target_recall=1, filters=where)
    assert [sorted(some) for some in ids(found)] == [[str(n) for n in range(2_995, 3_000)]] * 3
    assert await search(services, queries, target_recall=1, filters={"n": -1}) == [[], [], []]


async def test_an_exact_search_returns_what_was_asked_for(services: ServiceContext) -> None:
    vectors = noise(300, 8, 1)
    await fill(services, vectors)
    included = frozenset({"distance", "metadata", "vector"})
    query = Query(vectors=vectors[:1], top_k=2, target_recall=1, include=included)
    (found,) = await services.vectors.query(ACCESS, query)
    assert (found[0].id, found[0].distance, found[0].metadata) == ("0", 0, {"n": 0})
    assert found[0].vector is not None
    assert found[0].vector.tolist() == vectors[0].tolist()


async def test_queries_that_would_hold_too_much_read_the_items_once(
    services: ServiceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, queries = noise(3_000, 64, 1), noise(30, 64, 2)
    await fill(services, vectors)
    monkeypatch.setattr(costs, "MAX_NUMBERS_OPENED", 30 * 200 * 64)
    everything = Mock(wraps=store.items.everything)
    monkeypatch.setattr(store.items, "everything", everything)
    found = await search(services, queries, top_k=10)
    assert everything.call_count == 1
    assert ids(found) == truth(queries, vectors, 10)
    # However much a query wants to open.
    await search(services, queries[:1], top_k=1, rerank_mult=2**31 - 1)
    assert everything.call_count == 2


async def test_an_explicit_number_of_candidates_never_lowers_recall(
    services: ServiceContext,
) -> None:
    vectors, queries = noise(4_000, 32, 1), noise(60, 32, 2)
    await fill(services, vectors)
    assert await services.training.train(ACCESS, None) is None
    expected = truth(queries, vectors, 10)

    def recall(found: list[list[Match]]) -> float:
        pairs = zip(ids(found), expected, strict=True)
        return float(np.mean([len({*some} & {*true}) / 10 for some, true in pairs]))

    usual = recall(await search(services, queries, top_k=10))
    for mult in (1, 10):
        assert recall(await search(services, queries, top_k=10, rerank_mult=mult)) >= usual
