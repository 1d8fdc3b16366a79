"""One service for all cells, and the page with their figures."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from app.services.context import ServiceContext
from app.settings import Settings
from app.store.pg.dsn import database_url
from tests.conftest import new_database
from tests.recall.measure import Measured
from tests.recall.page import page

PAGE = Path(os.environ.get("SEALDEX_RECALL_PAGE", "docs/recall.md"))


@pytest.fixture(scope="module")
def recall_dsn(server_dsn: str, template_dsn: str) -> Iterator[str]:
    with new_database(server_dsn, database_url(template_dsn).database or "") as dsn:
        yield dsn


@pytest.fixture(scope="module")
async def services(recall_dsn: str) -> AsyncIterator[ServiceContext]:
    settings = Settings(database_url=recall_dsn, workers=1)
    async with ServiceContext.open(settings) as context:
        yield context


@pytest.fixture(scope="module")
def report() -> Iterator[list[Measured]]:
    """What was measured. When that was to be every cell, it becomes the page."""
    results: list[Measured] = []
    yield results
    if os.environ.get("SEALDEX_RECALL_CELLS") == "all":
        PAGE.write_text(page(results), encoding="utf-8")
