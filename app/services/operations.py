"""What those who run the service ask of it: is it ready, and what is in it."""

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from app import errors, store
from app.domain import IndexFigures
from app.store import schema


class OperationService:
    """Facts about the service as a whole; they need no key."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def check_ready(self) -> None:
        """Raise `Overloaded` or `Unavailable` unless pool, database and schema are as a request needs them."""
        try:
            async with self._engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
                revision = await schema.current_revision(connection)
        except DBAPIError as error:
            raise errors.Unavailable("The database does not answer") from error
        if revision != schema.head_revision():
            raise errors.Unavailable(
                f"The schema is at revision {revision or 'none'}, not at the one this version needs"
            )

    async def index_figures(self) -> IndexFigures | None:
        """Return the sizes of the largest indexes, or None when the database does not answer."""
        try:
            async with self._engine.connect() as connection:
                return await store.overview.index_figures(connection)
        except (errors.Overloaded, DBAPIError):
            return None
