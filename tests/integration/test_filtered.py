"""Filtered search on PostgreSQL: what is stored, which plan is used, that no match is missing."""

import asyncio
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from app import errors, filters, store
from app.crypto import keys, tokens
from app.domain import Caller, FieldPolicy, Index, IndexAccess, Item, Matrix, NewIndex, Query
from app.engine import costs
from app.engine.kind import Wanted
from app.engine.matches import Matches, all_matching
from app.engine.sketches import estimates, statements
from app.engine.sketches.kind import Sketches
from app.services.context import ServiceContext
from app.settings import Settings
from app.store.pg import packed_rows
from app.store.pg.adapters import Tokens
from app.store.pg.pool import Pool
from tests import filter_strategies, naive_filters
from tests.integration.an_index import ACCESS, KEY
from tests.plans import plan_by_lists, plan_by_tokens

pytestmark = pytest.mark.anyio

D = 16
N_ITEMS = 600
EVERYTHING = 10 * N_ITEMS


def random_vectors(n: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)


def metadata_of(row: int) -> dict[str, Any]:
    """Values of every frequency: half, a tenth, a hundredth, one."""
    return {
        "half": "even" if row % 2 == 0 else "odd",
        "tenth": row % 10,
        "rare": f"r{row // 6}",
        "one": row,
        "tags": [f"t{row % 3}", f"t{row % 7}", row % 5],
        "flag": row % 4 == 0,
        "deep": {"er": {"est": row % 20}},
    }


async def fill(services: ServiceContext, **fields: Any) -> list[Item]:
    await services.indexes.create(NewIndex(name="test", index_key=KEY, metric="cosine", **fields))
    vectors = random_vectors(N_ITEMS)
    items = [Item(str(row), vector, None, metadata_of(row)) for row, vector in enumerate(vectors)]
    await services.vectors.upsert(ACCESS, items)
    return items


async def divide(engine: AsyncEngine, n_lists: int = 8) -> None:
    """Leave the index as a training does: with several IVF lists."""
    async with engine.begin() as connection:
        index = await row_of(connection)
        name, definition = (
            store.tables.ivf_name(index.id, index.generation + 1),
            store.partitions.ivf_definition(
                index.encoder_version, index.sketch_bits or 0, n_lists, index.generation + 1
            ),
        )
        await connection.exec_driver_sql(
            f"CREATE INDEX {name} ON {store.tables.partition_name(index.id)} {definition}"
        )
        await connection.exec_driver_sql(
            "UPDATE indexes SET n_lists = %s, generation = generation + 1,"
            " revision = revision + 1, trained_at = now()",
            (n_lists,),
        )


async def row_of(connection: Any) -> Index:
    index = await store.indexes.by_name(connection, "test")
    assert index is not None
    return index


FILTERS: dict[str, dict[str, Any]] = {
    "half": {"half": "even"},
    "tenth": {"tenth": 3},
    "rare": {"rare": "r7"},
    "one": {"one": 17},
    "none": {"one": -1},
    "never": {"one": {"$in": []}},
    "all": {"$and": []},
    "two": {"half": "even", "tenth": 4},
    "either": {"$or": [{"rare": "r7"}, {"tenth": 1}]},
    "member": {"tags": "t6"},
    "deep": {"deep.er.est": 19},
    "range, half": {"one": {"$lt": 300}},
    "range, few": {"one": {"$gte": 595}},
    "boolean": {"flag": True},
    "regex": {"rare": {"$regex": "^r[19].$"}},
    "complement": {"$not": {"half": "even"}},
    "not equal": {"tenth": {"$ne": 3}},
    "token and range": {"half": "odd", "one": {"$lt": 40}},
    "absent": {"missing": None},
}


@pytest.mark.parametrize("n_lists", [1, 8])
@pytest.mark.parametrize("min_pool", [5, 200])
async def test_every_filter_gives_the_true_nearest_and_all_there_are(
    services: ServiceContext,
    engine: AsyncEngine,
    monkeypatch: pytest.MonkeyPatch,
    n_lists: int,
    min_pool: int,
) -> None:
    monkeypatch.setattr(costs, "UNMEASURED_POOLS", ((1.0, min_pool),))
    monkeypatch.setattr(costs, "MIN_FILTERED_POOL", min_pool)
    items = await fill(services)
    if n_lists > 1:
        await divide(engine, n_lists)
    queries = random_vectors(3, seed=1)
    for name, wanted in FILTERS.items():
        rows = [row for row in range(N_ITEMS) if naive_filters.matches(wanted, metadata_of(row))]
        assert await services.vectors.count(ACCESS, wanted) == len(rows), name
        for top_k in (1, 10, EVERYTHING):
            query = Query(
                vectors=queries,
                top_k=top_k,
                filters=wanted,
                include=frozenset({"distance", "metadata"}),
            )
            for vector, found in zip(
                queries, await services.vectors.query(ACCESS, query), strict=True
            ):
                assert len(found) == min(top_k, len(rows)), name
                assert {int(match.id) for match in found} <= set(rows), name
                distances = [match.distance or 0 for match in found]
                assert distances == sorted(distances), name
                assert all(match.metadata == items[int(match.id)].metadata for match in found)
                if min_pool == 200 and top_k == 10:
                    assert recall(vector, rows, [int(match.id) for match in found]) >= 0.8, name


def recall(query: Matrix, rows: list[int], found: list[int]) -> float:
    if not rows:
        return 1
    vectors = random_vectors(N_ITEMS)[rows]
    order = np.argsort(-(vectors @ query) / np.linalg.norm(vectors, axis=1))[:10]
    return len({rows[place] for place in order} & set(found)) / len(order)


@pytest.mark.parametrize("n_lists", [1, 8])
async def test_random_filters_find_what_the_naive_matcher_finds(
    services: ServiceContext, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, n_lists: int
) -> None:
    """Items change between the filters, so the index is never in the same state twice."""
    monkeypatch.setattr(costs, "UNMEASURED_POOLS", ((1.0, 3),))
    monkeypatch.setattr(costs, "MIN_FILTERED_POOL", 3)
    monkeypatch.setattr(estimates, "MIN_ESTIMATED_ITEMS", 0)
    monkeypatch.setattr(costs, "MAX_EXACT", 10)
    await services.indexes.create(NewIndex(name="test", index_key=KEY, metric="cosine"))
    n_random = 40
    stored: dict[str, dict[str, Any]] = {}
    loop = asyncio.get_running_loop()

    async def write(changes: dict[str, dict[str, Any] | None]) -> None:
        new = [
            Item(one, random_vectors(1, int(one))[0], None, value)
            for one, value in changes.items()
            if value
        ]
        gone = [one for one, value in changes.items() if not value]
        if new:
            await services.vectors.upsert(ACCESS, new)
        await services.vectors.delete(ACCESS, gone)

    async def check(changes: dict[str, dict[str, Any] | None], wanted: dict[str, Any]) -> None:
        await write(changes)
        stored.update({one: value for one, value in changes.items() if value})
        for one, value in changes.items():
            if not value:
                stored.pop(one, None)
        expected = {one for one, value in stored.items() if naive_filters.matches(wanted, value)}
        assert await services.vectors.count(ACCESS, wanted) == len(expected)
        # Asked for again, a filter is answered by what is remembered of it.
        for top_k in (3, 1_000, 3):
            query = Query(vectors=random_vectors(2, 9), top_k=top_k, rerank_mult=1, filters=wanted)
            for found in await services.vectors.query(ACCESS, query):
                assert {match.id for match in found} <= expected
                assert len(found) == min(top_k, len(expected))

    @given(
        changes=st.dictionaries(
            st.integers(0, n_random - 1).map(str),
            st.none() | filter_strategies.metadata,
            max_size=8,
        ),
        wanted=filter_strategies.filters,
    )
    @hypothesis_settings(
        max_examples=filter_strategies.N_EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def run(changes: dict[str, dict[str, Any] | None], wanted: dict[str, Any]) -> None:
        asyncio.run_coroutine_threadsafe(check(changes, wanted), loop).result()

    await write({str(row): metadata_of(row) for row in range(n_random, 200)})
    stored.update({str(row): metadata_of(row) for row in range(n_random, 200)})
    if n_lists > 1:
        await divide(engine, n_lists)
    await asyncio.to_thread(run)


async def stored_tokens(engine: AsyncEngine) -> dict[bytes, list[int] | None]:
    async with engine.connect() as connection:
        rows = await connection.execute(sa.text("SELECT item_key, tokens FROM items"))
        return {row[0]: row[1] for row in rows}


async def test_tokens_are_written_with_the_item_replaced_on_update_and_gone_on_delete(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    await services.indexes.create(NewIndex(name="test", index_key=KEY))

    async def tokens_of(metadata: dict[str, Any] | None) -> list[int] | None:
        await services.vectors.upsert(ACCESS, [Item("a", np.ones(D, np.float32), None, metadata)])
        (found,) = (await stored_tokens(engine)).values()
        return found

    both = await tokens_of({"x": "one", "y": 2})
    assert both is not None
    assert len(both) == 2
    assert both == sorted(both, key=lambda number: number % 2**64)
    only = await tokens_of({"y": 2.0, "z": True, "n": None, "o": {}})
    assert only is not None
    assert len(only) == 1
    assert set(only) < set(both)
    assert await tokens_of({"z": True}) is None
    assert await tokens_of(None) is None
    await services.vectors.delete(ACCESS, ["a"])
    assert await stored_tokens(engine) == {}


async def test_tokens_are_bound_to_index_path_and_type(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    for name in ("test", "other"):
        await services.indexes.create(NewIndex(name=name, index_key=KEY))
        metadata = {"a": "1", "b": "1", "c": 1, "d": {"a": "1"}, "e": ["1"]}
        await services.vectors.upsert(
            IndexAccess(name, KEY, Caller()), [Item("a", np.ones(D, np.float32), None, metadata)]
        )
    found = [token for one in (await stored_tokens(engine)).values() for token in one or []]
    assert len(found) == len(set(found)) == 10


async def test_fields_that_are_not_filterable_have_no_tokens_and_are_found_all_the_same(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    schema = {
        "half": FieldPolicy(filterable=False),
        "deep": FieldPolicy(filterable=False),
        "one": FieldPolicy(),
    }
    await fill(services, metadata_schema=schema)
    async with engine.connect() as connection:
        index = await row_of(connection)
    index_keys = keys.IndexKeys.derive(
        keys.unwrap_dek(bytes.fromhex(KEY), index.wrapped_dek, index.id), index.id
    )
    terms: list[filters.terms.Term] = [("half", "even"), ("half", "odd")]
    terms += [("deep.er.est", number) for number in range(20)]
    hidden = {
        int.from_bytes(
            tokens.token(index_keys.token_key, filters.terms.message(term)), "big", signed=True
        )
        for term in terms
    }
    assert not hidden & {
        token for one in (await stored_tokens(engine)).values() for token in one or []
    }
    assert await services.vectors.count(ACCESS, {"half": "even", "deep.er.est": 18}) == 30
    assert b"half" not in (index.sealed_schema or b"half")


@pytest.mark.parametrize("is_analysed", [False, True])
async def test_the_plans_use_the_indexes_they_are_made_for(
    services: ServiceContext, pool: Pool, engine: AsyncEngine, is_analysed: bool
) -> None:
    await fill(services)
    async with engine.connect() as connection:
        index = await row_of(connection)
        if is_analysed:
            await connection.execute(sa.text("ANALYZE"))
            statistics = sa.text("SELECT tablename FROM pg_stats WHERE attname = 'tokens'")
            assert (await connection.execute(statistics)).all() == []
    clauses = [Tokens([bytes(8)]), Tokens([bytes(8), bytes([1] * 8)])]
    by_tokens = await plan_by_tokens(pool, index, clauses)
    by_sketch = await plan_by_lists(pool, index, clauses)
    assert f"Bitmap Index Scan on {store.tables.partition_name(index.id)}_tokens_idx" in by_tokens
    assert f"Index Scan using {store.tables.ivf_name(index.id, 1)}" in by_sketch
    for text in (by_tokens, by_sketch):
        assert "Seq Scan" not in text
        assert "pkey" not in text


async def test_long_lists_are_found_though_they_have_no_tokens_of_their_own(
    services: ServiceContext,
) -> None:
    await fill(services)
    many = {"tags": [f"x{number}" for number in range(5_000)], "half": "even"}
    wide = {f"field{number}": number for number in range(2_000)}
    extra = [
        Item("many", random_vectors(1, 5)[0], None, many),
        Item("wide", random_vectors(1, 6)[0], None, wide),
    ]
    await services.vectors.upsert(ACCESS, extra)
    for wanted, expected in (({"tags": "x4999"}, "many"), ({"field1999": 1999}, "wide")):
        query = Query(vectors=random_vectors(1, 7), top_k=5, filters=wanted)
        assert [match.id for match in (await services.vectors.query(ACCESS, query))[0]] == [
            expected
        ]
        assert await services.vectors.count(ACCESS, wanted) == 1


async def test_a_filter_that_takes_too_long_is_given_up(settings: Settings, pool: Pool) -> None:
    async with ServiceContext.open(settings) as services:
        await fill(services)
        assert await services.vectors.count(ACCESS) == N_ITEMS
        opened = await services.vectors._opener.open(ACCESS)
        assert opened.shape is not None
        tree = filters.grammar.parse({"one": {"$gt": 1}})
        nothing = np.empty((0, D), np.float32)
        ask = costs.Ask(top_k=1, pool=1, n_probes=1, target_recall=1)
        wanted = Wanted(opened, opened.shape, nothing, ask)
        scan = Sketches().filtered(wanted, tree, pool)
        matches = Matches(opened, tree, timeout_ms=1)
        matches._deadline = 0
        with pytest.raises(errors.Unavailable, match="too long"):
            await all_matching(scan, matches)


async def test_a_changed_metadata_value_is_reported_and_never_skipped(
    services: ServiceContext, engine: AsyncEngine
) -> None:
    await fill(services)
    async with engine.begin() as connection:
        flipped = "set_byte(sealed_metadata, 20, get_byte(sealed_metadata, 20) # 1)"
        flip = f"UPDATE items SET sealed_metadata = {flipped}"  # noqa: S608
        await connection.execute(sa.text(flip))
    for wanted in ({"half": "even"}, {"one": {"$gt": 5}}):
        with pytest.raises(errors.DataCorrupted):
            await services.vectors.query(ACCESS, Query(vectors=random_vectors(1), filters=wanted))
        with pytest.raises(errors.DataCorrupted):
            await services.vectors.count(ACCESS, wanted)


async def found_ids(
    services: ServiceContext, wanted: dict[str, Any], top_k: int = EVERYTHING
) -> set[str]:
    (found,) = await services.vectors.query(
        ACCESS, Query(vectors=random_vectors(1), top_k=top_k, filters=wanted)
    )
    return {match.id for match in found}


async def test_a_filter_asked_for_again_is_answered_from_memory_and_sees_every_change(
    services: ServiceContext, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = await fill(services)
    wanted = {"tenth": 3}
    matching = {item.id for item in items if (item.metadata or {})["tenth"] == 3}
    everything = Mock(wraps=statements.everything)
    monkeypatch.setattr(statements, "everything", everything)
    for _ in range(3):
        assert await found_ids(services, wanted) == matching
    assert everything.call_count == 1
    # The other ways are not taken, even when the rows have moved.
    for name in ("by_tokens", "by_lists"):
        monkeypatch.setattr(statements, name, Mock(side_effect=AssertionError))
    async with engine.connect() as connection:
        index = await row_of(connection)
    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.execute(sa.text(f"VACUUM FULL {store.tables.partition_name(index.id)}"))
    assert await found_ids(services, wanted) == matching
    monkeypatch.undo()
    async with ServiceContext.open(services.settings) as other:
        await other.vectors.upsert(
            ACCESS, [Item("new", random_vectors(1, 5)[0], None, {"tenth": 3})]
        )
        assert await found_ids(services, wanted) == {*matching, "new"}
        await other.vectors.delete(ACCESS, ["new", "3"])
        assert await found_ids(services, wanted) == matching - {"3"}
        await other.vectors.upsert(
            ACCESS, [items[13], Item("23", items[23].vector, None, {"tenth": 4})]
        )
        assert await found_ids(services, wanted) == matching - {"3", "23"}


@pytest.mark.parametrize("n_lists", [1, 8])
async def test_filtered_candidates_that_come_as_several_rows_are_the_same(
    services: ServiceContext, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, n_lists: int
) -> None:
    await fill(services)
    if n_lists > 1:
        await divide(engine, n_lists)
    names = ("half", "tenth", "rare", "none", "two", "token and range")
    # The third time from memory.
    whole = {name: await found_ids(services, FILTERS[name], 50) for name in names for _ in range(3)}
    monkeypatch.setattr(packed_rows, "_VALUE_BYTES", 7 * 8 * D)
    async with ServiceContext.open(services.settings) as other:
        for name in names:
            for _ in range(3):
                assert await found_ids(other, FILTERS[name], 50) == whole[name]


async def test_what_too_many_items_have_is_not_remembered(
    services: ServiceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "MAX_SET_ITEMS", N_ITEMS // 10)
    await fill(services)
    monkeypatch.setattr(statements, "everything", Mock(side_effect=AssertionError))
    for wanted, count in (({"half": "even"}, N_ITEMS // 2), ({"flag": True}, N_ITEMS // 4)):
        for _ in range(3):
            assert len(await found_ids(services, wanted)) == count


async def test_another_worker_searches_a_recreated_index(
    services: ServiceContext, settings: Settings
) -> None:
    await fill(services)
    query = Query(vectors=random_vectors(1), top_k=3, filters={"half": "even"})
    async with ServiceContext.open(settings) as other:
        assert len((await other.vectors.query(ACCESS, query))[0]) == 3
        await services.indexes.delete(ACCESS)
        with pytest.raises(errors.NotFound):
            await other.vectors.query(ACCESS, query)
        await fill(services)
        assert len((await other.vectors.query(ACCESS, query))[0]) == 3
        assert await other.vectors.count(ACCESS, {"half": "even"}) == N_ITEMS // 2
