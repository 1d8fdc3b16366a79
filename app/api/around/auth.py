"""Who sends a request: the API-key guard.

A route says what it asks of the caller in its `opt`: nothing for most (any valid key will do),
`PUBLIC`, `ROOT_ONLY` or `NEEDS_ROOT_KEY`. Without a root key in the settings the service is open,
and everybody counts as root.

A user's token is checked here for its tag only; whether the user still exists is found out with its
index.
"""

import hmac
from dataclasses import replace
from typing import Any

from litestar.connection import ASGIConnection, Request
from litestar.handlers import BaseRouteHandler

from app.api.around.middleware import request_id
from app.crypto import user_keys
from app.crypto.keys import root_key_id
from app.domain import Caller
from app.errors import ApiKeyRejected, Forbidden

API_KEY_HEADER = "X-API-Key"

PUBLIC = {"is_public": True}
ROOT_ONLY = {"is_root_only": True}
# Makes no sense in an open service.
NEEDS_ROOT_KEY = {"is_root_only": True, "needs_root_key": True}


async def require_api_key(
    connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler
) -> None:
    """Remember the caller, or raise: `ApiKeyRejected`, or `Forbidden` on a route for the root key alone.

    `async` although it awaits nothing: the framework runs a plain function in a thread.
    """
    if handler.opt.get("is_public"):
        return
    root_key = connection.app.state.settings.root_key
    if handler.opt.get("needs_root_key") and root_key is None:
        raise Forbidden("permission denied: users need a service with a root key")
    caller = identify(connection.headers.get(API_KEY_HEADER), root_key)
    if handler.opt.get("is_root_only") and not caller.is_root:
        raise Forbidden("permission denied: this operation requires the root API key")
    connection.scope["user"] = _named(caller, connection, handler)


async def limit_rate(
    connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler
) -> None:
    """Count the request for its caller. Raises `RateLimited`."""
    if not handler.opt.get("is_public"):
        await connection.app.state.services.limiter.check(connection.scope["user"].name)


def identify(api_key: str | None, root_key: str | None) -> Caller:
    """Return the sender of `api_key`. Raises `ApiKeyRejected`."""
    if root_key is None:
        return Caller()
    if not api_key:
        raise ApiKeyRejected("API Key is required")
    # As bytes, because compare_digest refuses text outside ASCII; headers are decoded as Latin-1.
    if hmac.compare_digest(api_key.encode("latin-1"), root_key.encode()):
        return Caller()
    return Caller(user_keys.parse_token(api_key, root_key))


def _named(
    caller: Caller, connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler
) -> Caller:
    """Return `caller` with what the audit log says of it."""
    root_key = connection.app.state.settings.root_key
    if caller.user is not None:
        name = f"user {caller.user.user_id.hex()}"
    elif root_key is None:
        name = "open"
    else:
        key_id = root_key_id(root_key)
        name = f"root {key_id}" if key_id else "root"
    return replace(
        caller, name=name, request_id=request_id(connection.scope), operation=handler.handler_name
    )


def provide_caller(request: Request[Caller, Any, Any]) -> Caller:
    """Return the caller that the guard has let in."""
    return request.user
