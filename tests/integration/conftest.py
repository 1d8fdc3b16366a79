"""What tests of the database share."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from app.settings import Settings
from app.store.pg.scan_pool import ScanPool


@pytest.fixture
def pool(settings: Settings, database_dsn: str) -> Iterator[ScanPool]:
    with closing(ScanPool(settings, database_dsn)) as pool:
        yield pool
