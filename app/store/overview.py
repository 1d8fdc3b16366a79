"""Statements on the database as a whole, for those who run it. None needs a key."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import IndexFigures, IndexOverview

# As many indexes have metrics of their own, or a thousand small ones would drown a dashboard.
_N_LARGEST = 100


async def indexes(connection: AsyncConnection, limit: int | None = None) -> list[IndexOverview]:
    """Return every index with its size, or the `limit` largest ones, largest first."""
    statement = sa.text(
        "SELECT name, n_items, n_lists, is_training, is_drifted, size_bytes, ivf_size_bytes,"
        " coalesce(extract(epoch FROM trained_at), 0)::float8, recall"
        " FROM sealdex_views.indexes ORDER BY size_bytes DESC, name LIMIT :limit"
    )
    return [IndexOverview(*row) for row in await connection.execute(statement, {"limit": limit})]


async def index_figures(connection: AsyncConnection) -> IndexFigures:
    """Return what a dashboard shows of the indexes."""
    n_indexes = (await connection.execute(sa.text("SELECT count(*) FROM indexes"))).scalar_one()
    progress = (
        "SELECT count(*) FROM pg_stat_progress_create_index WHERE datname = current_database()"
    )
    n_builds = (await connection.execute(sa.text(progress))).scalar_one()
    return IndexFigures(n_indexes, n_builds, await indexes(connection, _N_LARGEST))


async def status(connection: AsyncConnection) -> list[dict[str, Any]]:
    """Return every index as the database's owner sees it: size, lists, recall, drift, training."""
    statement = sa.text("SELECT * FROM sealdex_views.indexes ORDER BY name")
    return [dict(row._mapping) for row in await connection.execute(statement)]  # noqa: SLF001  # SQLAlchemy's documented way
