"""What the audit log costs an upsert: batches with the log and without, in turns, so that noise
falls on both.
"""

import statistics
import time

import numpy as np
import pytest

from app import store
from app.domain import AuditEntry, Caller, IndexAccess, Item, NewIndex
from app.services.context import ServiceContext
from app.settings import Settings

KEY = "ab" * 32
ACCESS = IndexAccess("bench", KEY, Caller(name="root"))
N_ROUNDS = 60


@pytest.mark.parametrize("batch", [1, 100])
async def test_an_upsert_with_and_without_the_audit_log(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    vectors = np.random.default_rng(7).standard_normal((batch, 384), dtype=np.float32)
    items = [Item(f"id-{row}", vector) for row, vector in enumerate(vectors)]
    record = store.audit.record

    async def nothing(_connection: object, _entry: AuditEntry) -> None:
        pass

    times: dict[bool, list[float]] = {True: [], False: []}
    async with ServiceContext.open(settings) as services:
        await services.indexes.create(NewIndex(name="bench", index_key=KEY))
        await services.vectors.upsert(ACCESS, items)
        for turn in range(2 * N_ROUNDS):
            is_on = turn % 2 == 0
            monkeypatch.setattr(store.audit, "record", record if is_on else nothing)
            start = time.perf_counter()
            await services.vectors.upsert(ACCESS, items)
            times[is_on].append(time.perf_counter() - start)
    with_log, without = (statistics.median(times[is_on]) * 1000 for is_on in (True, False))
    print(
        f"\nbatch {batch}: {with_log:.2f} ms with the log, {without:.2f} ms without, ratio "
        f"{with_log / without:.3f}"
    )
