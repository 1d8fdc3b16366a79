"""Who sends a request.

A route says in its `opt` what it asks of the caller (`routes`): nothing for most, so that any valid
key will do. Without a root key in the settings the service is open, and everybody counts as root.

A user's token is checked here for its tag only; whether the user still exists is looked up after
that, and again with its index.
"""

import hmac
from typing import Any

from litestar.datastructures import Headers
from litestar.types import HTTPScope

from app.api.around.headers import request_id
from app.crypto import user_keys
from app.crypto.keys import root_key_id
from app.domain import Caller, UserToken
from app.errors import ApiKeyRejected, Forbidden

API_KEY_HEADER = "X-API-Key"


def caller_of(scope: HTTPScope, root_key: str | None) -> Caller:
    """Return the sender of a request, with what the audit log says. Raises `ApiKeyRejected`."""
    opt: dict[str, Any] = scope["route_handler"].opt
    user = identify(Headers.from_scope(scope).get(API_KEY_HEADER), root_key)
    return Caller(
        user,
        name=_name(user, root_key),
        request_id=request_id(scope),
        operation=opt["operation"],
        is_read=opt["is_read"],
    )


def check_route(scope: HTTPScope, caller: Caller, root_key: str | None) -> None:
    """Raise `Forbidden` if the route of a request is not for `caller`."""
    opt: dict[str, Any] = scope["route_handler"].opt
    if opt["needs_root_key"] and root_key is None:
        raise Forbidden("permission denied: users need a service with a root key")
    if opt["is_root_only"] and not caller.is_root:
        raise Forbidden("permission denied: this operation requires the root API key")


def identify(api_key: str | None, root_key: str | None) -> UserToken | None:
    """Return the user that `api_key` is of; None is who may do everything.

    Raises `ApiKeyRejected`.
    """
    if root_key is None:
        return None
    if not api_key:
        raise ApiKeyRejected("API Key is required")
    # As bytes, because compare_digest refuses text outside ASCII; headers are decoded as Latin-1.
    if hmac.compare_digest(api_key.encode("latin-1"), root_key.encode()):
        return None
    return user_keys.parse_token(api_key, root_key)


def _name(user: UserToken | None, root_key: str | None) -> str:
    """Return what the audit log calls a caller."""
    if user is not None:
        return f"user {user.user_id.hex()}"
    if root_key is None:
        return "open"
    key_id = root_key_id(root_key)
    return f"root {key_id}" if key_id else "root"
