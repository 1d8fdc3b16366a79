"""What a request costs in statements, round trips and rows: counted on the wire, not timed."""

import asyncio
import re
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from psycopg.pq import Trace

from app.domain import Caller, Candidates, IndexAccess, Item, NewIndex, Query
from app.engine.sketches import estimates
from app.services.context import ServiceContext
from app.settings import Settings
from app.store.pg import packed_rows
from app.store.pg.pool import Pool

D = 32
# Twice as many as an index has that is ranked exactly: it is not counted for a while.
N_ITEMS = 4_200
ACCESS = IndexAccess("counted", secrets.token_hex(32), Caller())
# A line of the trace: direction, length, message. Statements may go on over several lines.
_MESSAGE = re.compile(r"^([FB])\t\d+\t(\w+)", re.MULTILINE)
# Twenty items close to each of some centres: what is near is near by sketch, too.
CENTRES = np.random.default_rng(1).standard_normal((N_ITEMS // 20, D))
QUERY = CENTRES[:3].astype(np.float32)


@pytest.fixture
async def services(settings: Settings) -> AsyncIterator[ServiceContext]:
    """A pool of one connection, so that it is the one traced."""
    async with ServiceContext.open(
        Settings(database_url=settings.database_url, pool_size=1)
    ) as context:
        await context.indexes.create(NewIndex(name=ACCESS.index_name, index_key=ACCESS.index_key))
        noise = np.random.default_rng(0).standard_normal((N_ITEMS, D))
        vectors = (np.repeat(CENTRES, 20, axis=0) + 0.05 * noise).astype(np.float32)
        items = [Item(str(row), vector, "text", {"n": row}) for row, vector in enumerate(vectors)]
        await context.vectors.upsert(ACCESS, items)
        yield context


@asynccontextmanager
async def counted(pool: Pool, path: Path) -> AsyncIterator[Counter[str]]:
    """Count the messages of the protocol on the pool's connection until the block ends."""
    counts: Counter[str] = Counter()
    async with pool.lend() as raw:
        pgconn = raw.pgconn
    with path.open("w+") as trace:
        pgconn.trace(trace.fileno())
        pgconn.set_trace_flags(Trace.SUPPRESS_TIMESTAMPS)
        yield counts
        pgconn.untrace()
        counts.update(
            " ".join(found) for found in _MESSAGE.findall(await asyncio.to_thread(path.read_text))
        )


async def search(services: ServiceContext, tmp_path: Path, query: Query) -> Counter[str]:
    """Search, then search again with everything prepared and remembered, and count that."""
    await services.vectors.query(ACCESS, query)
    unpacked, n_rows = packed_rows.unpacked, []

    def remembered(*columns: bytes | None) -> Candidates:
        candidates = unpacked(*columns)
        n_rows.append(len(candidates.item_keys))
        return candidates

    with patch.object(packed_rows, "unpacked", remembered):
        async with counted(services.vectors._searcher._connections, tmp_path / "trace") as counts:
            await services.vectors.query(ACCESS, query)
    counts["candidates"] = sum(n_rows)
    return counts


async def test_a_search_is_one_round_trip_of_three_statements(
    services: ServiceContext, tmp_path: Path
) -> None:
    counts = await search(services, tmp_path, Query(vectors=QUERY[:1], top_k=10))
    assert counts["F Sync"] == 1
    assert counts["F Execute"] == 3
    assert counts["F Parse"] == 0
    # The settings, the revision, and the candidates, of which none more is read or opened.
    assert counts["B DataRow"] == 1 + 1 + 1
    assert counts["candidates"] == 200


async def test_metadata_is_one_more_round_trip_for_the_winners_alone(
    services: ServiceContext, tmp_path: Path
) -> None:
    counts = await search(
        services,
        tmp_path,
        Query(vectors=QUERY[:1], top_k=10, include=frozenset({"distance", "metadata"})),
    )
    assert counts["F Sync"] == 2
    # The revision once more.
    assert counts["B DataRow"] == 1 + 1 + 1 + 1 + 10
    assert counts["candidates"] == 200


async def test_a_batch_of_queries_is_one_statement(
    services: ServiceContext, tmp_path: Path
) -> None:
    counts = await search(services, tmp_path, Query(vectors=QUERY, top_k=10))
    assert counts["F Sync"] == 1
    assert counts["F Execute"] == 3
    assert counts["B DataRow"] == 1 + 1 + len(QUERY)
    assert counts["candidates"] == len(QUERY) * 200


async def test_a_filter_asked_for_again_is_one_round_trip(
    services: ServiceContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "MIN_ESTIMATED_ITEMS", 0)
    query = Query(
        vectors=QUERY[:1], top_k=10, rerank_mult=1, filters={"n": {"$in": list(range(100))}}
    )
    await services.vectors.query(ACCESS, query)
    counts = await search(services, tmp_path, query)
    assert counts["F Sync"] == 1
    # The revision, the number of changes, and the candidates with their metadata.
    assert counts["F Execute"] == 3
    assert counts["B DataRow"] == 1 + 1 + 1
