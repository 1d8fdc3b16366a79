"""Statements on `users`."""

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Index, Permission, User
from app.store import indexes as index_rows
from app.store.indexes import StaleIndex
from app.store.tables import indexes, users

_COLUMNS = (users.c.index_id, users.c.user_id, users.c.wrapped_read_key, users.c.wrapped_write_key)


async def create(connection: AsyncConnection, user: User) -> None:
    """Insert a user. The caller holds its index in this transaction (`hold_index`)."""
    await connection.execute(
        sa.insert(users).values(
            index_id=user.index_id,
            user_id=user.user_id,
            wrapped_read_key=user.wrapped_keys.get(Permission.READ),
            wrapped_write_key=user.wrapped_keys.get(Permission.WRITE),
        )
    )


async def hold_index(connection: AsyncConnection, index: Index) -> None:
    """Keep `index` from being deleted until the transaction ends.

    Raises `StaleIndex` unless `index` is the row as it is now.
    """
    statement = sa.select(sa.literal(1)).where(
        indexes.c.id == index.id, indexes.c.revision == index.revision
    )
    if (
        await connection.execute(statement.with_for_update(read=True, key_share=True))
    ).one_or_none() is None:
        raise StaleIndex


async def of_index(connection: AsyncConnection, index_id: UUID) -> list[User]:
    """Return the users of an index, oldest first."""
    statement = (
        sa.select(*_COLUMNS)
        .where(users.c.index_id == index_id)
        .order_by(users.c.created_at, users.c.user_id)
    )
    return [_user(*row) for row in await connection.execute(statement)]


async def by_id(connection: AsyncConnection, user_id: bytes) -> tuple[User, Index] | None:
    """Return a user and its index as they are now, if there is such a user."""
    statement = sa.select(*_COLUMNS, *indexes.c).join(indexes, indexes.c.id == users.c.index_id)
    row = (await connection.execute(statement.where(users.c.user_id == user_id))).one_or_none()
    if row is None:
        return None
    n_columns = len(_COLUMNS)
    facts = dict(zip((column.name for column in indexes.c), row[n_columns:], strict=True))
    return _user(*row[:n_columns]), index_rows.to_index(facts)


async def delete(connection: AsyncConnection, index: Index, user_id: bytes) -> None:
    """Delete a user of `index`, if there is one, and let every worker notice.

    The next request on each worker reads the rows again.

    Raises `StaleIndex` unless `index` is the row as it is now.
    """
    # Every transaction on an index compares its revision, so a new one ends what workers remember
    # of the user.
    statement = (
        sa.update(indexes)
        .where(indexes.c.id == index.id, indexes.c.revision == index.revision)
        .values(revision=indexes.c.revision + 1)
    )
    if (await connection.execute(statement)).rowcount != 1:
        raise StaleIndex
    await connection.execute(
        sa.delete(users).where(users.c.index_id == index.id, users.c.user_id == user_id)
    )


def _user(index_id: UUID, user_id: bytes, read: bytes | None, write: bytes | None) -> User:
    wrapped = {Permission.READ: read, Permission.WRITE: write}
    return User(
        index_id,
        user_id,
        {permission: key for permission, key in wrapped.items() if key is not None},
    )
