"""Headers that every answer has: the name of its request, and what browsers and caches may do."""

import re
from collections.abc import Awaitable, Callable
from secrets import token_hex
from typing import cast

from litestar.config.cors import CORSConfig
from litestar.datastructures import Headers
from litestar.types import Message, Scope

from app.settings import Settings

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_FIXED = {
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}


def request_id(scope: Scope) -> str:
    """Return the name of a request: its X-Request-Id if a log can have it, else a new one."""
    state = scope["state"]
    if "request_id" not in state:
        sent = Headers.from_scope(scope).get("x-request-id", "")
        state["request_id"] = sent if _SANE_REQUEST_ID.fullmatch(sent) else token_hex(16)
    return cast("str", state["request_id"])


def header_hook(settings: Settings) -> Callable[[Message, Scope], Awaitable[None]]:
    """Return the hook that names the request in its answer and adds the headers of all answers.

    Browsers are to keep out, caches to keep nothing, and over TLS to stay with it.
    """
    fixed = dict(_FIXED)
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
