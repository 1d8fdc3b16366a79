"""A search: sketch the queries, scan, open the candidates, compute exact distances, keep the best.

It runs on the event loop: handing a few hundred candidates to a thread costs more than opening
them. What takes longer, and what blocks, as a search with a filter does, runs in threads
(docs/decisions/0076).
"""

import asyncio
import contextvars
import functools
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np

from app import errors
from app.domain import Candidates, Match, Matrix, Metadata, Vector
from app.engine import rank
from app.engine.batch import VECTOR_DTYPES
from app.engine.keyed import KeyedIndex
from app.engine.plan import Scan
from app.engine.sketches import sketch_scan
from app.engine.sketches.encoder import Encoder
from app.observe.stages import SCAN_QUEUE, stage, timed
from app.store.pg.pool import Pool

# Of the queries of a batch, so many go to the database at a time that the vectors of their
# candidates have at most these numbers: 16 MB.
_NUMBERS_AT_A_TIME = 4_000_000
# Opening vectors of so many numbers takes some milliseconds, for which the event loop stands still.
_FEW_NUMBERS = 500_000
# Opening an item's metadata takes as long as opening a vector of so many.
_NUMBERS_A_METADATA = 500

Answer = TypeVar("Answer")

_decode_metadata = msgspec.json.Decoder(dict).decode


class Winner(NamedTuple):
    """A candidate that made it into the answer, opened."""

    item_key: bytes
    id: str
    distance: float
    vector: Vector
    # Where the candidates have come with it.
    sealed_metadata: bytes | None = None

    def match(self, include: frozenset[str], metadata: Metadata | None = None) -> Match:
        """Return the fields of `include`; its opened metadata is given if it is one of them."""
        return Match(
            self.id,
            self.distance if "distance" in include else None,
            metadata,
            self.vector if "vector" in include else None,
        )


class Searcher:
    """Makes searches, as many at a time as there may be connections; a search waits for its turn `patience_s`."""

    def __init__(self, connections: Pool, n_at_a_time: int, patience_s: float) -> None:
        self._connections = connections
        self._threads = ThreadPoolExecutor(n_at_a_time, thread_name_prefix="search")
        self._turns = asyncio.Semaphore(n_at_a_time)
        self._patience_s = patience_s

    async def search(
        self,
        opened: KeyedIndex,
        encoder: Encoder,
        queries: Matrix,
        scan: Scan,
        include: frozenset[str],
    ) -> list[list[Match]]:
        """Return for each query (n, d) its nearest items, nearest first, with the fields of `include`."""
        async with stage(SCAN_QUEUE):
            await self._take_turn()
        try:
            return await self._search(opened, encoder, queries, scan, include)
        finally:
            self._turns.release()

    async def run(self, work: Callable[[Pool], Awaitable[Answer]]) -> Answer:
        """Return what `work` returns, in its turn, with these connections."""
        async with stage(SCAN_QUEUE):
            await self._take_turn()
        try:
            return await work(self._connections)
        finally:
            self._turns.release()

    async def _take_turn(self) -> None:
        if not self._turns.locked():
            # At once, and without a timer, which costs more than all the rest of it.
            await self._turns.acquire()
            return
        try:
            async with asyncio.timeout(self._patience_s):
                await self._turns.acquire()
        except TimeoutError:
            raise errors.Overloaded("All search connections are busy; try again later") from None

    def close(self) -> None:
        """Wait for the searches in work and let the threads go."""
        self._threads.shutdown()

    async def _search(
        self,
        opened: KeyedIndex,
        encoder: Encoder,
        queries: Matrix,
        scan: Scan,
        include: frozenset[str],
    ) -> list[list[Match]]:
        sketches = await self._computed(queries.size, lambda: _sketches(encoder, queries))
        at_a_time = max(1, _NUMBERS_AT_A_TIME // (scan.pool * encoder.dimension))
        answer: list[list[Match]] = []
        for start in range(0, len(sketches), at_a_time):
            part = slice(start, start + at_a_time)
            async with stage("sql"), self._connections.lend() as raw:
                candidates = await sketch_scan.nearest(
                    raw, opened.index, sketches[part], pool=scan.pool, n_probes=scan.n_probes
                )
            n_numbers = sum(len(found.item_keys) for found in candidates) * encoder.dimension
            found = await self._computed(
                n_numbers, functools.partial(best, opened, queries[part], candidates, scan.top_k)
            )
            answer += await self._matches(opened, found, include)
        return answer

    async def _matches(
        self, opened: KeyedIndex, found: list[list[Winner]], include: frozenset[str]
    ) -> list[list[Match]]:
        if "metadata" not in include:
            return [[winner.match(include) for winner in winners] for winners in found]
        item_keys = [winner.item_key for winners in found for winner in winners]
        async with stage("sql"), self._connections.lend() as raw:
            sealed = await sketch_scan.metadata(raw, opened.index, item_keys)
        metadata = await self._computed(
            _NUMBERS_A_METADATA * len(sealed),
            lambda: {
                item_key: open_metadata(opened, item_key, value) for item_key, value in sealed
            },
        )
        return [
            # An item that was deleted since it was found is gone from the answer, too.
            [
                winner.match(include, metadata[winner.item_key])
                for winner in winners
                if winner.item_key in metadata
            ]
            for winners in found
        ]

    async def _computed(self, n_numbers: int, work: Callable[[], Answer]) -> Answer:
        """Return what `work` returns: at once when it looks at few numbers, else from a thread."""
        return work() if n_numbers <= _FEW_NUMBERS else await self._in_thread(work)

    async def _in_thread(self, work: Callable[[], Answer]) -> Answer:
        # With the stopwatch of the request.
        run = functools.partial(contextvars.copy_context().run, work)
        return await asyncio.get_running_loop().run_in_executor(self._threads, run)


@timed("sketch")
def _sketches(encoder: Encoder, queries: Matrix) -> list[bytes]:
    return [row.tobytes() for row in encoder.encode_queries(queries)]


@timed("rerank")
def best(
    opened: KeyedIndex, queries: Matrix, candidates: Sequence[Candidates], top_k: int
) -> list[list[Winner]]:
    """Return for each query the `top_k` of its candidates with the smallest exact distances, nearest first."""
    if len(queries) == 1:
        found = candidates[0]
        vectors = _open(opened, found.item_keys, found.sealed_vectors)
        return [_best_of(opened, queries[0], found, vectors, top_k)]
    # Queries of a batch may share candidates: each is opened once.
    different = {
        item_key: sealed
        for found in candidates
        for item_key, sealed in zip(found.item_keys, found.sealed_vectors, strict=True)
    }
    vectors = _open(opened, list(different), list(different.values()))
    places = {item_key: place for place, item_key in enumerate(different)}
    return [
        _best_of(
            opened, query, found, vectors[[places[item_key] for item_key in found.item_keys]], top_k
        )
        for query, found in zip(queries, candidates, strict=True)
    ]


@timed("open")
def open_metadata(opened: KeyedIndex, item_key: bytes, sealed: bytes | None) -> Metadata:
    """Return the metadata of an item; empty when it has none."""
    return {} if sealed is None else _decode_metadata(opened.keys.metadata.open(item_key, sealed))


def _best_of(
    opened: KeyedIndex, query: Vector, found: Candidates, vectors: Matrix, top_k: int
) -> list[Winner]:
    order, distances = rank.nearest(opened.index.metric, query, vectors, top_k)
    rows = order.tolist()
    item_keys = [found.item_keys[row] for row in rows]
    ids = opened.keys.ids.open_all(item_keys, (found.sealed_ids[row] for row in rows))
    metadata = (
        [found.sealed_metadata[row] or None for row in rows]
        if found.sealed_metadata
        else repeat(None)
    )
    return list(
        map(Winner, item_keys, map(bytes.decode, ids), distances.tolist(), vectors[order], metadata)
    )


@timed("open")
def _open(
    opened: KeyedIndex, item_keys: Sequence[bytes], sealed_vectors: Sequence[bytes]
) -> Matrix:
    """Return vectors (n, d), as float32."""
    vectors = opened.keys.vectors.open_rows(
        item_keys,
        sealed_vectors,
        VECTOR_DTYPES[opened.index.storage_precision],
        opened.index.dimension or 0,
    )
    return vectors.astype(np.float32, copy=False)
