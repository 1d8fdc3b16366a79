"""The steps of one training.

What needs the index key and what does not are apart: fitting the encoder, filling in its sketches
and the calibration open vectors; the build and the swap do not.

While they run, upserts, queries and deletes go on with the ivfflat index of before. Arithmetic is
done in threads, a few milliseconds at a time, so that requests of the same worker get their turn in
between; and while searches are under way, in whatever worker, they have one processor to themselves
(`traffic`).
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

import numpy as np
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from app import errors, store
from app.crypto import aead
from app.domain import AuditEntry, Index, Matrix, TrainingResult
from app.engine.keyed import KeyedIndex, open_row
from app.engine.opening import chunk_items, open_slice, open_vectors, slices
from app.engine.sketches import samples
from app.engine.sketches.encoder import Encoder
from app.engine.sketches.parameters import EncoderParameters
from app.engine.sketches.samples import SealedVector
from app.settings import Settings
from app.store.pg.engine import maintenance_connection
from app.store.training import Build, Claim, ClaimLost
from app.training.calibration import Calibration, Calibrator
from app.training.traffic import Traffic

logger = logging.getLogger(__name__)

MAX_LISTS = 32_768
# Searching fewer items than this takes less than a millisecond without lists.
MIN_ITEMS = 1_000

_FIRST_FITTED_VERSION = 1
_SAMPLE_ITEMS = 20_000
_SAMPLE_BYTES = 32 * 1024 * 1024
_MIN_SAMPLE = 256
_MB = 1024 * 1024
_ATTEMPTS = 5
_N_WRITERS = 2

# pgvector draws so many samples for its k-means: 50 a list, at least 10,000.
_SAMPLES_A_LIST = 50
_MIN_SAMPLES = 10_000


# Phases, and the per cent of a training that each takes.
_SHARES = {
    "fitting": (0, 5),
    "encoding": (5, 40),
    "building": (40, 65),
    "calibrating": (65, 97),
    "swapping": (97, 98),
    "cleaning": (98, 100),
}


@dataclass(slots=True)
class Progress:
    """How far a training is, for its heartbeat to report."""

    phase: str = "waiting"
    percent: int = 0

    def enter(self, phase: str) -> None:
        """Begin a phase."""
        self.phase = phase
        self.advance(0)

    def advance(self, share: float) -> None:
        """Say which share of the phase is done."""
        start, end = _SHARES[self.phase]
        self.percent = round(start + (end - start) * min(1.0, max(0.0, share)))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a training is asked for: with the keys of the index if someone brought them, and how many lists.

    `is_measuring_only` leaves encoder and lists as they are and brings the search profile up to
    date.
    """

    opened: KeyedIndex | None
    n_lists: int | None
    is_measuring_only: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One training: its claim, the generation of the ivfflat index it may build, and how far it is."""

    claim: Claim
    generation: int
    wanted: Wanted
    progress: Progress = field(default_factory=Progress)

    @property
    def opened(self) -> KeyedIndex | None:
        """The index with its keys, as it was when the training was asked for."""
        return self.wanted.opened


class Trainer:
    """Trains indexes; what it knows of a single training is in its `Job`."""

    def __init__(self, engine: AsyncEngine, settings: Settings, traffic: Traffic) -> None:
        self._engine = engine
        self._settings = settings
        self._traffic = traffic
        self._calibrator = Calibrator(engine, settings, traffic)

    async def train(self, job: Job) -> TrainingResult | None:
        """Train an index that is claimed. Returns None when it has too few items to need it.

        Raises `ClaimLost` when the claim or the index is gone, `TrainingFailed` with a reason for
        the caller.
        """
        index = await self._read(job)
        async with self._engine.connect() as connection:
            n_items, n_changes = await store.indexes.count(connection, index.id)
        if job.wanted.is_measuring_only:
            return await self._measure_again(job, index, n_items, n_changes)
        n_lists = self._choose_n_lists(index, n_items, job.wanted.n_lists)
        await self.drop_leftovers(job.claim.index_id)
        if n_lists is None or index.sketch_bits is None:
            return None
        if job.opened is not None:
            index = await self._fit(job, index)
        is_new_encoder = job.opened is not None and index.sealed_next_encoder is not None
        result = TrainingResult(
            generation=job.generation,
            n_lists=n_lists,
            encoder_version=index.encoder_version + is_new_encoder,
            n_items=n_items,
            n_changes=n_changes,
        )
        known = await self._build_and_look_around(job, index, result)
        if known is not None:
            result = await self._calibrate(job, index, result, known)
        await self._swap(job, index, result)
        return result

    async def _read(self, job: Job) -> Index:
        async with self._engine.connect() as connection:
            index = await store.indexes.by_id(connection, job.claim.index_id)
        if index is None:
            raise ClaimLost
        return index

    # ------------------------------------------------------------ how many lists

    def _choose_n_lists(self, index: Index, n_items: int, requested: int | None) -> int | None:
        """Return how many lists to make, None for an index that is better left alone. Raises `TrainingFailed`."""
        if n_items < min(MIN_ITEMS, self._settings.retrain_threshold + 1):
            return None
        if requested is None and index.requested_n_lists is not None:
            is_enough = n_items <= index.requested_n_lists * self._settings.retrain_threshold
            requested = index.requested_n_lists if is_enough else None
        n_lists = requested or automatic_n_lists(n_items)
        if 2 * n_lists > n_items:
            return None
        if n_lists > MAX_LISTS:
            raise errors.TrainingRefused(f"an index can have at most {MAX_LISTS} lists")
        limit = self._settings.training_memory_mb
        while build_memory_mb(n_items, index.sketch_bits or 0, n_lists) > limit:
            if requested:
                needed = build_memory_mb(n_items, index.sketch_bits or 0, n_lists)
                raise errors.TrainingRefused(
                    f"{n_lists} lists need {needed} MB of memory in the database, SEALDEX_TRAINING_MEMORY_MB is {limit}"
                )
            n_lists //= 2
        return n_lists

    # ------------------------------------------------------------ encoder

    async def _fit(self, job: Job, index: Index) -> Index:
        """Move to an encoder that is fitted to the vectors, if the index has none: once in its life."""
        assert job.opened is not None  # noqa: S101 - the caller has the keys
        if index.encoder_version >= _FIRST_FITTED_VERSION:
            return index
        if index.sealed_next_encoder is None:
            job.progress.enter("fitting")
            await self._announce(
                job, await self._fit_encoder(job, open_row(index, job.opened.keys))
            )
            index = await self._read(job)
        job.progress.enter("encoding")
        await self._fill_sketches(job, open_row(index, job.opened.keys))
        return index

    async def _fit_encoder(self, job: Job, opened: KeyedIndex) -> EncoderParameters:
        """Return the next encoder's parameters. Item keys are pseudo-random: the first items are a fair sample."""
        index = opened.index
        dimension = index.dimension or 1
        n_wanted = min(_SAMPLE_ITEMS, max(_MIN_SAMPLE, _SAMPLE_BYTES // (4 * dimension)))
        parts: list[Matrix] = []
        last = b""
        n_read = 0
        while n_read < n_wanted:
            limit = min(chunk_items(dimension), n_wanted - n_read)
            async with self._engine.connect() as connection:
                rows = await samples.vectors_after(connection, index, last, limit)
            if not rows:
                break
            parts.append(await open_vectors(opened, rows))
            last, n_read = rows[-1][0], n_read + len(rows)
            job.progress.advance(n_read / n_wanted)
        sample = np.concatenate(parts) if parts else np.empty((0, dimension), np.float32)
        version = index.encoder_version + 1
        return await asyncio.to_thread(EncoderParameters.fit, version, index.metric, sample)

    async def _announce(self, job: Job, parameters: EncoderParameters) -> None:
        assert job.opened is not None  # noqa: S101 - the caller has the keys
        sealed = job.opened.keys.parameters.seal(aead.INDEX_LEVEL, parameters.to_bytes())
        index = await self._read(job)
        async with self._engine.begin() as connection:
            await store.indexes.own_encoder(connection, index.id)
            await store.training.announce_encoder(connection, job.claim, index, sealed)

    async def _fill_sketches(self, job: Job, opened: KeyedIndex) -> None:
        """Give every item that was stored before the next encoder was announced its second sketch."""
        index, encoder = opened.index, opened.next_encoder
        assert encoder is not None  # noqa: S101 - it was announced before
        last, limit = b"", chunk_items(encoder.dimension)
        version = index.encoder_version + 1
        # While PostgreSQL writes some chunks, the next is encoded.
        writing: deque[asyncio.Task[None]] = deque()
        try:
            while rows := await self._lacking(index, last, limit, version):
                sketches: list[bytes] = []
                for part in slices(rows, encoder.dimension):
                    sketches += await asyncio.to_thread(_encode, opened, encoder, part)
                item_keys = [item_key for item_key, _ in rows]
                if len(writing) == _N_WRITERS:
                    await writing.popleft()
                writing.append(
                    asyncio.create_task(self._write_sketches(index, version, item_keys, sketches))
                )
                # While searches are under way, one processor is theirs: here, nothing is encoded.
                while writing and not self._traffic.is_quiet():
                    await writing.popleft()
                last = rows[-1][0]
                # Item keys are spread evenly, so a key tells how far it is.
                job.progress.advance(int.from_bytes(last[:2], "big") / 0x10000)
            await asyncio.gather(*writing)
        finally:
            for task in writing:
                task.cancel()
            await asyncio.gather(*writing, return_exceptions=True)

    async def _lacking(
        self, index: Index, last: bytes, limit: int, version: int
    ) -> list[SealedVector]:
        async with self._engine.connect() as connection:
            return await samples.vectors_after(connection, index, last, limit, lacking=version)

    async def _write_sketches(
        self, index: Index, version: int, item_keys: Sequence[bytes], sketches: Sequence[bytes]
    ) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                async with self._engine.begin() as connection:
                    await samples.write_sketches(connection, index, version, item_keys, sketches)
            except samples.Collision:
                if attempt == _ATTEMPTS - 1:
                    raise
                await asyncio.sleep(0.05 * 2**attempt)
            else:
                return

    # ------------------------------------------------------------ ivfflat index; no key is needed

    async def drop_leftovers(self, claimed: UUID | None = None) -> None:
        """Drop ivfflat indexes that trainings have left: broken, unfinished or out of use.

        The index `claimed` is the caller's; of others, those are left alone that somebody is
        training.
        """
        async with self._engine.connect() as connection:
            names = await store.training.leftovers(connection, claimed=claimed)
        if names:
            async with maintenance_connection(self._settings, self.dsn) as connection:
                for name in names:
                    await store.training.drop_ivf(connection, name)

    @property
    def dsn(self) -> str:
        """Address of the database for what takes long, which is not behind a pooler."""
        dsn = self._settings.maintenance_database_url or self._settings.database_url
        assert dsn is not None  # noqa: S101 - the service does not start without one
        return dsn

    async def _build(self, job: Job, index: Index, result: TrainingResult) -> None:
        job.progress.enter("building")
        bits = index.sketch_bits or 0
        memory_mb = build_memory_mb(result.n_items, bits, result.n_lists)
        wanted = Build(
            index.id, result.generation, result.encoder_version, bits, result.n_lists, memory_mb
        )
        watch = asyncio.create_task(self._watch_build(job))
        try:
            async with maintenance_connection(self._settings, self.dsn) as connection:
                await store.training.build(connection, wanted)
                if not await store.training.is_valid(connection, index.id, result.generation):
                    raise errors.TrainingFailed("PostgreSQL left the new index invalid")
        except DBAPIError as error:
            if await self._is_gone(job):
                raise ClaimLost from error
            raise errors.TrainingFailed(store.training.reason(error)) from error
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _watch_build(self, job: Job) -> None:
        while True:
            await asyncio.sleep(1)
            async with self._engine.connect() as connection:
                job.progress.advance(
                    await store.training.build_progress(connection, job.claim.index_id)
                )

    async def _is_gone(self, job: Job) -> bool:
        async with self._engine.connect() as connection:
            return await store.indexes.by_id(connection, job.claim.index_id) is None

    async def _swap(self, job: Job, index: Index, result: TrainingResult) -> None:
        job.progress.enter("swapping")
        async with self._engine.begin() as connection:
            await store.training.swap(connection, job.claim, index, result)
            await store.audit.record(connection, _audit_entry(index, result.n_items))
        job.progress.enter("cleaning")
        await self.drop_leftovers(job.claim.index_id)
        async with maintenance_connection(self._settings, self.dsn) as connection:
            await store.training.analyze(connection, index.id)

    # ------------------------------------------------------------ calibration

    async def _build_and_look_around(
        self, job: Job, index: Index, result: TrainingResult
    ) -> Calibration | None:
        """Build the ivfflat index; return the exact neighbours that its recall is measured by, if the keys are there.

        Neither needs the other: the one keeps the database busy, the other the service.
        """
        neighbours = asyncio.create_task(self._neighbours(job, index))
        try:
            await self._build(job, index, result)
            return await neighbours
        finally:
            neighbours.cancel()
            await asyncio.gather(neighbours, return_exceptions=True)

    async def _neighbours(self, job: Job, index: Index) -> Calibration | None:
        if job.opened is None:
            return None
        return await self._calibrator.neighbours(open_row(index, job.opened.keys))

    async def _calibrate(
        self, job: Job, index: Index, result: TrainingResult, known: Calibration
    ) -> TrainingResult:
        """Return `result` with the search profile of the index it has built, which no query uses yet."""
        job.progress.enter("calibrating")
        built = replace(
            index,
            generation=result.generation,
            n_lists=result.n_lists,
            encoder_version=result.encoder_version,
        )
        profile = await self._calibrator.profile(built, result.n_items, known, job.progress.advance)
        return replace(result, profile=profile, recall=profile["recall"])

    async def _measure_again(
        self, job: Job, index: Index, n_items: int, n_changes: int
    ) -> TrainingResult | None:
        job.progress.enter("calibrating")
        known = await self._neighbours(job, index) if index.is_trained else None
        if known is None:
            return None
        result = TrainingResult(
            index.generation, index.n_lists, index.encoder_version, n_items, n_changes
        )
        result = await self._calibrate(job, index, result, known)
        async with self._engine.begin() as connection:
            await store.training.renew_profile(connection, job.claim, index, result)
        return result


def automatic_n_lists(n_items: int) -> int:
    """Return the contract's number of lists: a power of two near the square root of the number of items."""
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
    return max(64, math.ceil(1.25 * n_bytes / _MB))


def _encode(opened: KeyedIndex, encoder: Encoder, rows: Sequence[SealedVector]) -> list[bytes]:
    vectors = open_slice(opened, rows)
    return [
        bits.tobytes() for bits in encoder.encode_items(vectors, [item_key for item_key, _ in rows])
    ]


def _audit_entry(index: Index, n_items: int) -> AuditEntry:
    """Return the entry of a training that has moved queries to a new ivfflat index, whoever asked for it."""
    return AuditEntry(
        caller="service",
        key_id=None,
        operation="train",
        index_id=index.id,
        index_name=index.name,
        n_items=n_items,
        request_id="",
        outcome="done",
    )
