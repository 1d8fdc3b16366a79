"""The services of one worker process and what they share."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from app.embeddings.embedder import Embedder
from app.errors import ConfigurationError
from app.services.embedding import EmbeddingService
from app.services.indexes import IndexService
from app.services.opener import IndexOpener
from app.services.search import Searcher
from app.services.training import TrainingService
from app.services.users import UserService
from app.services.vectors import VectorService
from app.settings import Settings
from app.store.engine import check_database, create_engine, create_scan_engine

_EXPIRY_INTERVAL_S = 5.0


@dataclass(frozen=True, slots=True)
class ServiceContext:
    """All services, wired to one database."""

    settings: Settings
    indexes: IndexService
    training: TrainingService
    vectors: VectorService
    users: UserService
    embedding: EmbeddingService

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator[Self]:
        """Connect to the database and offer the services until the block ends.

        Raises `ConfigurationError` when there is no database, or not one that will do.
        """
        if settings.database_url is None:
            raise ConfigurationError("DATABASE_URL is not set")
        engine = create_engine(settings, settings.database_url)
        scan_engine = create_scan_engine(settings, settings.database_url)
        searcher = Searcher(scan_engine, settings.pool_size)
        opener = IndexOpener(engine, settings)
        embedder = Embedder(settings)
        embedding = EmbeddingService(embedder, settings)
        try:
            await check_database(engine)
            indexes = IndexService(engine, opener, settings, embedding)
            indexes.sweep()
            training = TrainingService(engine, opener, settings)
            training.start()
            expiry = asyncio.create_task(_expire_keys(opener))
            try:
                vectors = VectorService(engine, searcher, opener, training, settings, embedding)
                yield cls(settings, indexes, training, vectors, UserService(engine, opener), embedding)
            finally:
                expiry.cancel()
                await asyncio.gather(expiry, return_exceptions=True)
                await training.close()
                await indexes.close()
        finally:
            searcher.close()
            scan_engine.dispose()
            embedder.close()
            await engine.dispose()


async def _expire_keys(opener: IndexOpener) -> None:
    while True:
        await asyncio.sleep(_EXPIRY_INTERVAL_S)
        opener.forget_expired()
