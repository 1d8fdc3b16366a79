"""Use cases of users: mint a token, list the users of an index, revoke one."""

from collections.abc import Sequence

from app import errors, store
from app.crypto import user_keys
from app.domain import Permission, User, UserToken
from app.engine.keyed import KeyedIndex
from app.services.access import IndexOpener, Use, on_index


class UserService:
    """What the root key can do about the users of an index."""

    def __init__(self, opener: IndexOpener) -> None:
        self._opener = opener

    @on_index(needs=None)
    async def create(self, use: Use, permissions: Sequence[str]) -> UserToken:
        """Make a user with `permissions`. Raises `InvalidInput` for none or unknown ones."""
        granted = _permissions(permissions)
        token = user_keys.mint()
        user = _wrapped(use.keyed, token, granted)
        async with use.engine.begin() as connection:
            await store.users.hold_index(connection, use.index)
            await store.users.create(connection, user)
            await use.record(connection, "create_user")
        return token

    @on_index(needs=None)
    async def of_index(self, use: Use) -> list[User]:
        """Return the users of an index, oldest first."""
        async with use.transaction() as connection:
            return await store.users.of_index(connection, use.index.id)

    @on_index(needs=None)
    async def delete(self, use: Use, user_id: str) -> None:
        """Revoke a user, if there is one: its token fails from the next request on, everywhere."""
        name = _user_id(user_id)
        async with use.engine.begin() as connection:
            await store.users.delete(connection, use.index, name)
            await use.record(connection, "delete_user")


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
