"""The database, for commands that look at it themselves: no service is needed, and no key."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.errors import AppError, ConfigurationError
from app.server.data_directory import data_dir_of
from app.server.postgres import EmbeddedPostgres, running_dsn
from app.settings import Settings
from app.store import schema
from app.store.pg.dsn import first_line
from app.store.pg.engine import create_engine

Answer = TypeVar("Answer")


def ask(
    settings: Settings,
    question: Callable[[AsyncEngine], Awaitable[Answer]],
    *,
    needs_schema: bool = True,
) -> Answer:
    """Return what `question` returns for the service's database; an embedded one is started.

    Raises `ConfigurationError` when the database does not answer, or its schema is not at head and
    `needs_schema`.
    """
    with _dsn(settings) as dsn:
        return asyncio.run(_ask(settings, dsn, question, needs_schema=needs_schema))


@contextlib.contextmanager
def _dsn(settings: Settings) -> Iterator[str]:
    """Provide the address of the database: the one that is set, or the embedded one's."""
    data_dir = data_dir_of(settings)
    if (known := settings.database_url or running_dsn(data_dir)) is not None:
        yield known
        return
    if not (data_dir / "postgres").is_dir():
        raise ConfigurationError(
            "There is no database: DATABASE_URL is not set, and the data directory "
            f"{str(data_dir)!r} has none"
        )
    with EmbeddedPostgres(data_dir) as server:
        yield server.dsn


async def _ask(
    settings: Settings,
    dsn: str,
    question: Callable[[AsyncEngine], Awaitable[Answer]],
    *,
    needs_schema: bool,
) -> Answer:
    async with _engine(settings, dsn) as engine:
        try:
            if needs_schema:
                async with engine.connect() as connection:
                    await schema.check(connection)
            return await question(engine)
        except (AppError, DBAPIError) as error:
            raise ConfigurationError(
                f"The database does not answer: {first_line(error.__cause__ or error)}"
            ) from error


@contextlib.asynccontextmanager
async def _engine(settings: Settings, dsn: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(settings, dsn)
    try:
        yield engine
    finally:
        await engine.dispose()
