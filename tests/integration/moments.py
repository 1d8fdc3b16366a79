"""Moments of a training that a test holds still, and what a trainer that is gone has left."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app import store
from app.settings import Settings
from app.store.presence import Presence
from app.store.training import Claim

_PATIENCE_S = 30


@dataclass(frozen=True)
class Moment:
    """Where the work stands still until the test lets it go."""

    _reached: asyncio.Event = field(default_factory=asyncio.Event)
    _let_go: asyncio.Event = field(default_factory=asyncio.Event)

    async def reached(self) -> None:
        """Wait until the work has come here."""
        await asyncio.wait_for(self._reached.wait(), _PATIENCE_S)

    def let_go(self) -> None:
        """Let this and all later work pass."""
        self._let_go.set()

    async def hold(self) -> None:
        self._reached.set()
        await self._let_go.wait()


def hold(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, is_after: bool = False
) -> Moment:
    """Make an asynchronous function of `owner` stand still before its work, or after."""
    moment, work = Moment(), getattr(owner, name)

    async def held(*arguments: Any, **named: Any) -> Any:
        if not is_after:
            await moment.hold()
        answer = await work(*arguments, **named)
        if is_after:
            await moment.hold()
        return answer

    monkeypatch.setattr(owner, name, held)
    return moment


@dataclass(frozen=True)
class Gone:
    """A trainer on another host: its claim on the index, and its sign of life."""

    claim: Claim
    presence: Presence
    rival: Claim

    @classmethod
    @asynccontextmanager
    async def trainer(cls, settings: Settings, engine: AsyncEngine) -> AsyncIterator["Gone"]:
        """Claim the job of the index, and be there for as long as the block runs."""
        async with engine.connect() as connection:
            index = await store.indexes.by_name(connection, "test")
        assert index is not None
        presence = Presence(settings, settings.database_url or "")
        claim, rival = Claim(index.id, presence.new_claim()), Claim(index.id, uuid4())
        async with presence.held():
            async with engine.begin() as connection:
                assert await store.training.enqueue(connection, claim, n_lists=32, is_patient=False)
            yield cls(claim, presence, rival)


async def expire_claims(engine: AsyncEngine) -> None:
    """Let half a minute pass since the last heartbeat."""
    async with engine.begin() as connection:
        await connection.exec_driver_sql(
            "UPDATE training_jobs SET heartbeat_at = now() - interval '31 seconds'"
        )
