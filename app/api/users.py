"""Routes of users, and their bodies. They serve the root key alone, and nobody without one."""

from typing import Annotated

from litestar import Router, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, HeaderParameter, JSONBody
from msgspec import Struct

from app.api.around.paths import with_slashes
from app.api.around.routes import changes, reads
from app.crypto import user_keys
from app.domain import Caller, IndexAccess, Permission
from app.services.context import ServiceContext

# The place of `index_key` in requests without a body.
IndexKeyHeader = Annotated[str | None, HeaderParameter(name="X-Index-Key")]


class CreateUserRequest(Struct, frozen=True, kw_only=True):
    """Body of the creation of a user."""

    permissions: list[str]
    index_key: str | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(permissions={self.permissions!r}, …)"


class UserKeyAnswer(Struct, frozen=True):
    """Answer to the creation of a user."""

    user_id: str
    api_key: str

    def __repr__(self) -> str:
        return f"{type(self).__name__}(user_id={self.user_id!r}, …)"


class UserAnswer(Struct, frozen=True):
    """One user of an index."""

    user_id: str
    permissions: list[Permission]


class UsersAnswer(Struct, frozen=True):
    """Answer to the list of users."""

    users: list[UserAnswer]


@post("/{index_name:str}/users", status_code=200, opt=changes("create_user", needs_root_key=True))
async def create_user(
    index_name: FromPath[str],
    data: JSONBody[CreateUserRequest],
    caller: NamedDependency[Caller],
    services: NamedDependency[ServiceContext],
) -> UserKeyAnswer:
    """Make a user of an index. Its API key is in this answer and nowhere else."""
    access = IndexAccess(with_slashes(index_name), data.index_key, caller)
    token = await services.users.create(access, data.permissions)
    root_key = services.settings.root_key
    assert root_key is not None  # noqa: S101 - nobody gets here without one
    api_key = user_keys.format_token(token, root_key)
    return UserKeyAnswer(token.user_id.hex(), api_key)


@get("/{index_name:str}/users", opt=reads("list_users", needs_root_key=True))
async def list_users(
    index_name: FromPath[str],
    caller: NamedDependency[Caller],
    services: NamedDependency[ServiceContext],
    x_index_key: IndexKeyHeader = None,
) -> UsersAnswer:
    """Name the users of an index and what they may do."""
    access = IndexAccess(with_slashes(index_name), x_index_key, caller)
    found = await services.users.of_index(access)
    return UsersAnswer([UserAnswer(user.user_id.hex(), [*user.wrapped_keys]) for user in found])


@delete("/{index_name:str}/users/{user_id:str}", opt=changes("delete_user", needs_root_key=True))
async def delete_user(
    index_name: FromPath[str],
    user_id: FromPath[str],
    caller: NamedDependency[Caller],
    services: NamedDependency[ServiceContext],
    x_index_key: IndexKeyHeader = None,
) -> None:
    """Revoke a user: its API key fails from the next request on."""
    access = IndexAccess(with_slashes(index_name), x_index_key, caller)
    await services.users.delete(access, with_slashes(user_id))


router = Router("/indexes", route_handlers=[create_user, list_users, delete_user], tags=["users"])
