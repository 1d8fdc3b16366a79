"""The paths of requests: slashes in names of indexes, slashes at the end, and OPTIONS.

An index name in a path may hold an escaped slash. Servers unescape the path before it is routed,
and the slash would part the name in two; so it goes through the router as U+001F, which no name can
hold (`keep_escaped_slashes`), and is put back where the parameter is read (`with_slashes`).
"""

import re
from typing import Any, cast
from urllib.parse import quote, unquote

from litestar.enums import ScopeType
from litestar.exceptions import MethodNotAllowedException
from litestar.middleware import ASGIMiddleware
from litestar.response import Response
from litestar.routes import HTTPRoute
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

_STAND_IN = "\x1f"
# What the client has sent itself must not become a slash; no name holds U+001E either.
_STAND_IN_OF_STAND_IN = "\x1e"
_SPECIAL = re.compile(rb"%2f|%1f", re.IGNORECASE)


def keep_escaped_slashes(scope: Any) -> None:
    """Put another character for slashes that are escaped in the path of the request."""
    raw_path = (scope.get("raw_path") or b"").partition(b"?")[0]
    if _SPECIAL.search(raw_path):
        segments = map(unquote, raw_path.decode("latin-1").split("/"))
        scope["path"] = "/".join(map(_routable, segments))


def _routable(segment: str) -> str:
    return segment.replace(_STAND_IN, _STAND_IN_OF_STAND_IN).replace("/", _STAND_IN)


def with_slashes(parameter: str) -> str:
    """Return a parameter of the path as the client meant it."""
    return parameter.replace(_STAND_IN, "/")


class ContractPaths(ASGIMiddleware):
    """Undoes what the framework is generous with: trailing slashes and OPTIONS."""

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Pass the request on, redirect it, or raise `MethodNotAllowedException`."""
        scope = cast("HTTPScope", scope)
        if scope["method"] == "OPTIONS":
            raise MethodNotAllowedException(headers={"allow": ", ".join(_methods(scope))})
        raw_path = scope.get("raw_path", b"").partition(b"?")[0].decode("latin-1")
        if raw_path.endswith("/"):
            await _redirect(raw_path, scope, receive, send)
        else:
            await next_app(scope, receive, send)


async def _redirect(raw_path: str, scope: HTTPScope, receive: Receive, send: Send) -> None:
    # One slash in front: with two, the rest would name another host.
    query = scope["query_string"].decode("latin-1")
    location = "/" + quote(raw_path.strip("/"), safe="/%") + ("?" + query if query else "")
    answer = Response(b"", status_code=307, headers={"Location": location})
    await answer.to_asgi_response(app=None, request=scope["litestar_app"].request_class(scope))(
        scope, receive, send
    )


def _methods(scope: HTTPScope) -> set[str]:
    """Return the methods of the request's route."""
    routes = (route for route in scope["litestar_app"].routes if isinstance(route, HTTPRoute))
    return {
        method
        for route in routes
        if route.path_format == scope["path_template"]
        for method in route.methods
    }
