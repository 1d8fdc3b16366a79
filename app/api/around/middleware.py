"""What happens around every request: its name, its place in the queue, the shape of its path, what browsers may do.

An index name in a path may hold an escaped slash. Servers unescape the path before it is routed,
and the slash would part the name in two; so it goes through the router as U+001F, which no name can
hold (`keep_escaped_slashes`), and is put back where the parameter is read (`with_slashes`).
"""

import re
from collections.abc import Awaitable, Callable
from secrets import token_hex
from typing import Any, cast
from urllib.parse import quote, unquote

from litestar.config.cors import CORSConfig
from litestar.datastructures import Headers
from litestar.enums import ScopeType
from litestar.exceptions import MethodNotAllowedException
from litestar.middleware import ASGIMiddleware
from litestar.response import Response
from litestar.routes import HTTPRoute
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from app.errors import Overloaded
from app.settings import Settings

_ESCAPED_SLASH = b"%2f"
_STAND_IN = "\x1f"
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def keep_escaped_slashes(scope: Any) -> None:
    """Put another character for slashes that are escaped in the path of the request."""
    raw_path = (scope.get("raw_path") or b"").partition(b"?")[0]
    if _ESCAPED_SLASH in raw_path.lower():
        # A stand-in that the client has sent itself must not become a slash; no name holds U+001E
        # either.
        segments = [
            unquote(segment).replace(_STAND_IN, "\x1e")
            for segment in raw_path.decode("latin-1").split("/")
        ]
        scope["path"] = "/".join(segment.replace("/", _STAND_IN) for segment in segments)


def with_slashes(parameter: str) -> str:
    """Return a parameter of the path as the client meant it."""
    return parameter.replace(_STAND_IN, "/")


def request_id(scope: Scope) -> str:
    """Return the name of a request: the client's X-Request-Id if it is harmless in a log, else a new one."""
    state = scope["state"]
    if "request_id" not in state:
        sent = Headers.from_scope(scope).get("x-request-id", "")
        state["request_id"] = sent if _SANE_REQUEST_ID.fullmatch(sent) else token_hex(16)
    return cast("str", state["request_id"])


def header_hook(settings: Settings) -> Callable[[Message, Scope], Awaitable[None]]:
    """Return the hook that names the request in its answer and tells browsers and caches what to do with it.

    Browsers are to keep out, caches to keep nothing, and over TLS to stay with it.
    """
    fixed = {
        b"cache-control": b"no-store",
        b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
        b"referrer-policy": b"no-referrer",
        b"x-content-type-options": b"nosniff",
    }
    if settings.ssl_cert_path is not None:
        fixed[b"strict-transport-security"] = b"max-age=31536000"

    async def add_headers(message: Message, scope: Scope) -> None:
        if message["type"] != "http.response.start":
            return
        headers = list(message["headers"])
        # A page of ours that needs scripts says so itself.
        own = {name.lower() for name, _ in headers}
        headers += [(name, value) for name, value in fixed.items() if name not in own]
        headers.append((b"x-request-id", request_id(scope).encode()))
        message["headers"] = headers

    return add_headers


def cors(settings: Settings) -> CORSConfig | None:
    """Return which pages may call the service from a browser; None sends no CORS headers at all."""
    origins = [origin.strip() for origin in settings.cors_origins.split(",") if origin.strip()]
    if not origins:
        return None
    return CORSConfig(
        allow_origins=origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["Content-Type", "X-API-Key", "X-Index-Key", "X-Request-Id"],
        expose_headers=["Retry-After", "Server-Timing", "X-Request-Id"],
    )


class RequestLimit(ASGIMiddleware):
    """Lets at most `limit` requests into work at a time; for more there is a 503, before their body is read."""

    scopes = (ScopeType.HTTP,)
    exclude_opt_key = "is_public"

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._n_in_work = 0

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Pass the request on, or raise `Overloaded`."""
        if self._n_in_work >= self._limit:
            raise Overloaded("too many requests in work; try again later")
        self._n_in_work += 1
        try:
            await next_app(scope, receive, send)
        finally:
            self._n_in_work -= 1


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
