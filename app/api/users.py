"""Routes of users. They serve the root key alone, and nobody where none is set."""

from typing import Annotated

from litestar import Router, delete, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath, HeaderParameter, JSONBody

from app.api.around.auth import NEEDS_ROOT_KEY
from app.api.around.middleware import with_slashes
from app.api.schemas import CreateUserRequest, UserAnswer, UserKeyAnswer, UsersAnswer
from app.crypto import user_keys
from app.domain import Caller, IndexAccess
from app.services.users import UserService

# The place of `index_key` in requests without a body.
IndexKeyHeader = Annotated[str | None, HeaderParameter(name="X-Index-Key")]


@post("/{index_name:str}/users", status_code=200, opt=NEEDS_ROOT_KEY)
async def create_user(
    index_name: FromPath[str],
    data: JSONBody[CreateUserRequest],
    caller: NamedDependency[Caller],
    users: NamedDependency[UserService],
    state: State,
) -> UserKeyAnswer:
    """Make a user of an index. Its API key is in this answer and nowhere else."""
    access = IndexAccess(with_slashes(index_name), data.index_key, caller)
    token = await users.create(access, data.permissions)
    return UserKeyAnswer(
        token.user_id.hex(), user_keys.format_token(token, state.settings.root_key)
    )


@get("/{index_name:str}/users", opt=NEEDS_ROOT_KEY)
async def list_users(
    index_name: FromPath[str],
    caller: NamedDependency[Caller],
    users: NamedDependency[UserService],
    x_index_key: IndexKeyHeader = None,
) -> UsersAnswer:
    """Name the users of an index and what they may do."""
    found = await users.of_index(IndexAccess(with_slashes(index_name), x_index_key, caller))
    return UsersAnswer([UserAnswer(user.user_id.hex(), [*user.wrapped_keys]) for user in found])


@delete("/{index_name:str}/users/{user_id:str}", opt=NEEDS_ROOT_KEY)
async def delete_user(
    index_name: FromPath[str],
    user_id: FromPath[str],
    caller: NamedDependency[Caller],
    users: NamedDependency[UserService],
    x_index_key: IndexKeyHeader = None,
) -> None:
    """Revoke a user: its API key fails from the next request on."""
    access = IndexAccess(with_slashes(index_name), x_index_key, caller)
    await users.delete(access, with_slashes(user_id))


router = Router("/indexes", route_handlers=[create_user, list_users, delete_user], tags=["users"])
