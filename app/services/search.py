"""A search: sketch the queries, scan, open the candidates, compute exact distances, keep the best.

It runs in a thread from end to end, so that the event loop neither waits for the arithmetic nor wakes for every
piece of a scan's answer.
"""

import asyncio
import contextvars
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np
import sqlalchemy as sa

from app import errors, search, store
from app.crypto import sketch
from app.domain import Candidates, Match, Matrix, Metadata, Vector
from app.services.batch import VECTOR_DTYPES
from app.services.opener import OpenIndex
from app.services.plan import Scan
from app.stages import SCAN_QUEUE, stage, timed
from app.store.engine import scan_driver

# Queries of a batch go to the database so many candidates at a time, which bounds the memory of a batch.
_CANDIDATES_AT_A_TIME = 20_000

Answer = TypeVar("Answer")

_decode_metadata = msgspec.json.Decoder(dict).decode


class Searcher:
    """Runs searches in threads of its own, as many as there are connections; a search waits for one `patience_s`."""

    def __init__(self, engine: sa.Engine, n_threads: int, patience_s: float) -> None:
        self._engine = engine
        self._threads = ThreadPoolExecutor(n_threads, thread_name_prefix="search")
        self._free = asyncio.Semaphore(n_threads)
        self._patience_s = patience_s

    async def search(
        self, opened: OpenIndex, encoder: sketch.Encoder, queries: Matrix, scan: Scan, include: frozenset[str]
    ) -> list[list[Match]]:
        """Return for each query (n, d) its nearest items, nearest first, with the fields of `include`."""
        return await self._run(lambda: self._search(opened, encoder, queries, scan, include))

    async def run(self, work: Callable[[sa.Engine], Answer]) -> Answer:
        """Return what `work`, which blocks, returns when it runs in a thread with this engine."""
        return await self._run(lambda: work(self._engine))

    async def _run(self, work: Callable[[], Answer]) -> Answer:
        """Return what `work` returns in a thread. Raises `Overloaded` when all stay busy."""
        async with stage(SCAN_QUEUE):
            await self._take_thread()
            try:
                # With the stopwatch of the request; what is no other stage of the thread's is waiting for it.
                run = functools.partial(contextvars.copy_context().run, work)
                return await asyncio.get_running_loop().run_in_executor(self._threads, run)
            finally:
                self._free.release()

    async def _take_thread(self) -> None:
        if not self._free.locked():
            # At once, and without a timer, which costs more than all the rest of it.
            await self._free.acquire()
            return
        try:
            async with asyncio.timeout(self._patience_s):
                await self._free.acquire()
        except TimeoutError:
            raise errors.Overloaded("All search threads are busy; try again later") from None

    def close(self) -> None:
        """Wait for the searches in work and let the threads go."""
        self._threads.shutdown()

    def _search(
        self, opened: OpenIndex, encoder: sketch.Encoder, queries: Matrix, scan: Scan, include: frozenset[str]
    ) -> list[list[Match]]:
        with stage("sketch"):
            sketches = [row.tobytes() for row in encoder.encode_queries(queries)]
        at_a_time = max(1, _CANDIDATES_AT_A_TIME // scan.pool)
        answer: list[list[Match]] = []
        for start in range(0, len(sketches), at_a_time):
            part = slice(start, start + at_a_time)
            with stage("sql"), scan_driver(self._engine) as raw:
                candidates = store.candidates.nearest(
                    raw, opened.index, sketches[part], pool=scan.pool, n_probes=scan.n_probes
                )
            found = best(opened, queries[part], candidates, scan.top_k)
            answer += self._matches(opened, found, include)
        return answer

    def _matches(self, opened: OpenIndex, found: list[list["Winner"]], include: frozenset[str]) -> list[list[Match]]:
        metadata: Mapping[bytes, Metadata] = {}
        if "metadata" in include:
            metadata = self._metadata(opened, [winner.item_key for winners in found for winner in winners])
        return [
            [
                Match(
                    winner.id,
                    winner.distance if "distance" in include else None,
                    metadata[winner.item_key] if "metadata" in include else None,
                    winner.vector if "vector" in include else None,
                )
                # An item that was deleted since it was found is gone from the answer, too.
                for winner in winners
                if "metadata" not in include or winner.item_key in metadata
            ]
            for winners in found
        ]

    def _metadata(self, opened: OpenIndex, item_keys: list[bytes]) -> dict[bytes, Metadata]:
        with stage("sql"), scan_driver(self._engine) as raw:
            sealed = store.candidates.metadata(raw, opened.index, item_keys)
        return {item_key: open_metadata(opened, item_key, value) for item_key, value in sealed}


@dataclass(frozen=True, slots=True)
class Winner:
    """A candidate that made it into the answer, opened."""

    item_key: bytes
    id: str
    distance: float
    vector: Vector
    # Where the candidates have come with it.
    sealed_metadata: bytes | None = None


@timed("rerank")
def best(opened: OpenIndex, queries: Matrix, candidates: Sequence[Candidates], top_k: int) -> list[list[Winner]]:
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
        _best_of(opened, query, found, vectors[[places[item_key] for item_key in found.item_keys]], top_k)
        for query, found in zip(queries, candidates, strict=True)
    ]


@timed("open")
def open_metadata(opened: OpenIndex, item_key: bytes, sealed: bytes | None) -> Metadata:
    """Return the metadata of an item; empty when it has none."""
    return {} if sealed is None else _decode_metadata(opened.keys.metadata.open(item_key, sealed))


def _best_of(opened: OpenIndex, query: Vector, found: Candidates, vectors: Matrix, top_k: int) -> list[Winner]:
    order, distances = search.rerank.nearest(opened.index.metric, query, vectors, top_k)
    winners = []
    for row, distance in zip(order.tolist(), distances.tolist(), strict=True):
        item_key = found.item_keys[row]
        item_id = opened.keys.ids.open(item_key, found.sealed_ids[row]).decode()
        sealed_metadata = found.sealed_metadata[row] or None if found.sealed_metadata else None
        winners.append(Winner(item_key, item_id, distance, vectors[row], sealed_metadata))
    return winners


@timed("open")
def _open(opened: OpenIndex, item_keys: Sequence[bytes], sealed_vectors: Sequence[bytes]) -> Matrix:
    """Return vectors (n, d), as float32."""
    vectors = opened.keys.vectors.open_rows(
        item_keys, sealed_vectors, VECTOR_DTYPES[opened.index.storage_precision], opened.index.dimension or 0
    )
    return vectors.astype(np.float32, copy=False)
