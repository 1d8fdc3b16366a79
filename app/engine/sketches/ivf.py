"""Sketches in an ivfflat index, as a training sees them: the kind that PostgreSQL searches."""

import math
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app import errors
from app.domain import Index, Matrix
from app.engine.keyed import KeyedIndex
from app.engine.sketches import fitting, ivf_statements, samples
from app.engine.trainable import Work

MAX_LISTS = 32_768

# pgvector draws as many samples for its k-means as 50 a list, at least 10,000.
_SAMPLES_A_LIST = 50
_MIN_SAMPLES = 10_000
_MIN_MEMORY_MB = 64
_MB = 1024 * 1024


def automatic_n_lists(n_items: int) -> int:
    """Return the contract's number: a power of two near the square root of `n_items`."""
    magnitude = max(1, n_items).bit_length() - 1
    return min(MAX_LISTS, 1 << (magnitude + 1) // 2)


def build_memory_mb(n_items: int, sketch_bits: int, n_lists: int) -> int:
    """Return the `maintenance_work_mem` that pgvector's k-means needs, with some room.

    pgvector's `ComputeMemory` in ivfkmeans.c: samples, centres twice, bounds of every sample to
    every centre, distances between centres.
    """
    n_samples = min(max(_MIN_SAMPLES, _SAMPLES_A_LIST * n_lists), max(n_items, 1))
    item_bytes = sketch_bits // 8 + 8
    n_bytes = (
        4 * n_samples * n_lists + 4 * n_lists**2 + n_samples * item_bytes + 2 * n_lists * item_bytes
    )
    n_bytes += 4 * n_lists * sketch_bits
    return max(_MIN_MEMORY_MB, math.ceil(1.25 * n_bytes / _MB))


class IvfSketches:
    """The kind `ivfflat`: a sketch column, and an ivfflat index on it of the generation in use."""

    max_lists = MAX_LISTS

    def automatic_n_lists(self, n_items: int) -> int:
        """Return how many lists are good for a number of items."""
        return automatic_n_lists(n_items)

    def build_memory_mb(self, index: Index, n_items: int, n_lists: int) -> int:
        """Return how much memory of the database it takes to build so many lists."""
        return build_memory_mb(n_items, index.sketch_bits or 0, n_lists)

    async def prepare(self, work: Work) -> None:
        """Move to an encoder that is fitted to the vectors, once in the life of an index."""
        await fitting.prepare(work)

    def target(self, index: Index, generation: int, n_lists: int, *, is_prepared: bool) -> Index:
        """Return the row as it will be after the swap."""
        is_new_encoder = is_prepared and index.sealed_next_encoder is not None
        return replace(
            index,
            generation=generation,
            n_lists=n_lists,
            encoder_version=index.encoder_version + is_new_encoder,
        )

    async def build(self, connection: AsyncConnection, target: Index, n_items: int) -> None:
        """Build the ivfflat index of `target`. Raises `TrainingFailed`."""
        memory_mb = self.build_memory_mb(target, n_items, target.n_lists)
        try:
            await ivf_statements.build(connection, target, memory_mb)
        except DBAPIError as error:
            raise errors.TrainingFailed(ivf_statements.reason(error)) from error
        if not await ivf_statements.is_valid(connection, target):
            raise errors.TrainingFailed("PostgreSQL left the new index invalid")

    async def built_share(self, connection: AsyncConnection, target: Index) -> float:
        """Return which share of the build is done."""
        return await ivf_statements.built_share(connection, target.id)

    def questions(self, opened: KeyedIndex, vectors: Matrix) -> Sequence[bytes]:
        """Return the sketches of queries by the encoder that searches use after the swap."""
        encoder = opened.next_encoder or opened.encoder
        assert encoder is not None  # noqa: S101 - an index with items has an encoder
        return [sketch.tobytes() for sketch in encoder.encode_queries(vectors)]

    async def candidates(
        self,
        connection: AsyncConnection,
        target: Index,
        questions: Sequence[bytes],
        *,
        pool: int,
        n_probes: int,
    ) -> Sequence[bytes]:
        """Return the item keys of the candidates of each sketch, best first, joined to one."""
        return await samples.candidate_keys(
            connection, target, questions, pool=pool, n_probes=n_probes
        )

    async def list_sizes(
        self, connection: AsyncConnection, index: Index, n_samples: int
    ) -> Sequence[int]:
        """Return the size of the list that each of some items is in."""
        return await samples.list_sizes(connection, index, n_samples)

    async def swap(self, connection: AsyncConnection, index: Index, target: Index) -> bool:
        """Move searches to the ivfflat index of `target`."""
        return await ivf_statements.swap(connection, index, target)

    async def leftovers(
        self, connection: AsyncConnection, *, claimed: UUID | None = None
    ) -> Sequence[str]:
        """Name the ivfflat indexes that no search uses and no live training builds."""
        return await ivf_statements.leftovers(connection, claimed=claimed)

    async def drop(self, connection: AsyncConnection, name: str) -> None:
        """Drop an ivfflat index without holding up searches."""
        await ivf_statements.drop(connection, name)

    async def tidy(self, connection: AsyncConnection, index: Index) -> None:
        """Tell the planner about the items as they are now."""
        await ivf_statements.analyze(connection, index.id)
