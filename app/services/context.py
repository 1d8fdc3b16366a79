"""The services of one worker process and what they share."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from app import store
from app.embeddings.embedder import Embedder
from app.engine.search import Searcher
from app.errors import AppError, ConfigurationError
from app.observe.figures import Figures
from app.services.access import IndexOpener
from app.services.embedding import EmbeddingService
from app.services.indexes import IndexService
from app.services.limits import RateLimiter
from app.services.operations import OperationService
from app.services.trail import Trail
from app.services.training import TrainingService
from app.services.users import UserService
from app.services.vectors import VectorService
from app.settings import Settings
from app.store.pg.engine import check_database
from app.store.pg.pool import Pool
from app.training.traffic import Traffic

_EXPIRY_INTERVAL_S = 5.0
_AUDIT_MONTHS_INTERVAL_S = 6 * 3600.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServiceContext:
    """All services, wired to one database."""

    settings: Settings
    indexes: IndexService
    training: TrainingService
    vectors: VectorService
    users: UserService
    embedding: EmbeddingService
    operations: OperationService
    limiter: RateLimiter
    access: IndexOpener
    trail: Trail

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, figures: Figures | None = None) -> AsyncIterator[Self]:
        """Connect to the database and offer the services until the block ends.

        Raises `ConfigurationError` when there is no database, or not one that will do.
        """
        if settings.database_url is None:
            raise ConfigurationError("DATABASE_URL is not set")
        pool = Pool(settings, settings.database_url, _pool_figures(figures, settings.pool_size))
        engine = pool.engine
        searcher = Searcher(pool, settings)
        opener = IndexOpener(engine, settings)
        embedder = Embedder(settings)
        embedding = EmbeddingService(embedder, settings)
        try:
            await pool.open()
            await check_database(engine)
            indexes = IndexService(engine, opener, settings, embedding)
            indexes.sweep()
            training = TrainingService(engine, opener, settings, Traffic(figures))
            training.start()
            # Before the first write: one that goes to the default partition while its month is made
            # would fail.
            await _add_audit_months(engine)
            tasks = [
                asyncio.create_task(_expire_keys(opener)),
                asyncio.create_task(_keep_adding_audit_months(engine)),
            ]
            try:
                vectors = VectorService(searcher, opener, training, embedding, settings)
                users = UserService(opener)
                limiter = RateLimiter(engine, settings)
                operations = OperationService(engine)
                yield cls(
                    settings,
                    indexes,
                    training,
                    vectors,
                    users,
                    embedding,
                    operations,
                    limiter,
                    opener,
                    Trail(engine, settings),
                )
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await training.close()
                await indexes.close()
        finally:
            embedder.close()
            await pool.close()


def _pool_figures(figures: Figures | None, size: int) -> Callable[[int], None]:
    """Return what the pool tells how many of its `size` connections are lent."""
    if figures is None:
        return lambda _: None
    figures.set_pool(0, size)
    return lambda n_lent: figures.set_pool(n_lent, size)


async def _expire_keys(opener: IndexOpener) -> None:
    while True:
        await asyncio.sleep(_EXPIRY_INTERVAL_S)
        opener.forget_expired()


async def _keep_adding_audit_months(engine: AsyncEngine) -> None:
    while True:
        await asyncio.sleep(_AUDIT_MONTHS_INTERVAL_S)
        await _add_audit_months(engine)


async def _add_audit_months(engine: AsyncEngine) -> None:
    """Keep partitions of the audit log ready. Without them entries go to the default one."""
    try:
        async with engine.begin() as connection:
            await store.audit.add_partitions(connection)
    except (AppError, DBAPIError) as error:
        logger.warning(
            "the audit log has no partitions for the next months: %s", type(error).__name__
        )
