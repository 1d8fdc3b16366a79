"""What those who run the service ask of it: is it ready, and what is in it."""

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from app import errors, store
from app.domain import IndexFigures
from app.services.shared import Shared
from app.store import schema

_GOOD_S = 1.0


class OperationService:
    """Facts about the service as a whole; they need no key, so each is looked at once a second."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._readiness = Shared(self._check_ready, _GOOD_S)
        self._figures = Shared(self._index_figures, _GOOD_S)

    async def check_ready(self) -> None:
        """Raise `Overloaded` or `Unavailable` unless all that a request needs is there."""
        await self._readiness.answer()

    async def index_figures(self) -> IndexFigures | None:
        """Return the sizes of the largest indexes, or None when the database does not answer."""
        return await self._figures.answer()

    async def _check_ready(self) -> None:
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

    async def _index_figures(self) -> IndexFigures | None:
        try:
            async with self._engine.connect() as connection:
                return await store.overview.index_figures(connection)
        except (errors.Overloaded, DBAPIError):
            return None
