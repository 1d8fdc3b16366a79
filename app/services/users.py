"""Use cases of users: mint a token, list the users of an index, revoke one."""

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncEngine

from app import errors, store
from app.crypto import user_keys
from app.domain import IndexAccess, Permission, User, UserToken
from app.engine.keyed import KeyedIndex
from app.services import audit
from app.services.access import IndexOpener


class UserService:
    """What the root key can do about the users of an index."""

    def __init__(self, engine: AsyncEngine, opener: IndexOpener) -> None:
        self._engine = engine
        self._opener = opener

    async def create(self, access: IndexAccess, permissions: Sequence[str]) -> UserToken:
        """Make a user with `permissions`, repeats allowed. Raises `InvalidInput` for none or unknown ones."""

        async def create(opened: KeyedIndex) -> UserToken:
            granted = _permissions(permissions)
            token = user_keys.mint()
            user = _wrapped(opened, token, granted)
            async with self._engine.begin() as connection:
                await store.users.hold_index(connection, opened.index)
                await store.users.create(connection, user)
                await store.audit.record(
                    connection, audit.entry(access, "create_user", opened.index.id)
                )
            return token

        return await self._opener.with_index(access, create, needs=None)

    async def of_index(self, access: IndexAccess) -> list[User]:
        """Return the users of an index, oldest first."""

        async def read(opened: KeyedIndex) -> list[User]:
            async with self._engine.connect() as connection:
                await store.indexes.check_revision(connection, opened.index)
                return await store.users.of_index(connection, opened.index.id)

        return await self._opener.with_index(access, read, needs=None)

    async def delete(self, access: IndexAccess, user_id: str) -> None:
        """Revoke a user; its token fails from the next request on, on every worker. An unknown one is fine."""

        async def delete(opened: KeyedIndex) -> None:
            name = _user_id(user_id)
            async with self._engine.begin() as connection:
                await store.users.delete(connection, opened.index, name)
                await store.audit.record(
                    connection, audit.entry(access, "delete_user", opened.index.id)
                )

        await self._opener.with_index(access, delete, needs=None)


def _wrapped(opened: KeyedIndex, token: UserToken, granted: set[Permission]) -> User:
    index_id, index_keys = opened.index.id, opened.keys
    unwrapped = {Permission.READ: index_keys.read_key, Permission.WRITE: index_keys.write_key}
    wrapped = {
        permission: user_keys.wrap(token, unwrapped[permission](), index_id, permission)
        for permission in granted
    }
    return User(index_id, token.user_id, wrapped)


def _permissions(names: Sequence[str]) -> set[Permission]:
    try:
        granted = set(map(Permission, names))
    except ValueError:
        raise errors.InvalidInput(f"permissions must be among {', '.join(Permission)}") from None
    if not granted:
        raise errors.InvalidInput(f"permissions must name at least one of {', '.join(Permission)}")
    return granted


def _user_id(text: str) -> bytes:
    try:
        user_id = bytes.fromhex(text)
    except ValueError:
        user_id = b""
    # fromhex skips white space, so the length of the text counts too.
    if len(user_id) != user_keys.USER_ID_BYTES or len(text) != 2 * user_keys.USER_ID_BYTES:
        raise errors.InvalidInput("user_id must be 16 bytes (32 hex digits)")
    return user_id
