"""What tests of the database share."""

from collections.abc import AsyncIterator

import pytest

from app.services.context import ServiceContext
from app.settings import Settings
from app.store.pg.pool import Pool


@pytest.fixture
async def pool(settings: Settings, database_dsn: str) -> AsyncIterator[Pool]:
    async with Pool(settings, database_dsn) as pool:
        yield pool


@pytest.fixture
async def services(settings: Settings) -> AsyncIterator[ServiceContext]:
    """The services of one worker."""
    async with ServiceContext.open(settings) as context:
        yield context
