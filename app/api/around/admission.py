"""The way of a request to its place in work: who sends it, what may it, has its body come.

What costs least comes first. A key is checked before a statement is sent, a user before a byte of
the body is read, and a body has come in whole before its request takes a place in work.
"""

import math
from typing import Any, cast

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from app.api.around.arriving import Bodies, Body, announced_length, check_length
from app.api.around.auth import caller_of, check_route
from app.api.around.deadlines import Deadline, Deadlines
from app.api.around.limits import Places
from app.errors import Overloaded
from app.services.context import ServiceContext
from app.settings import Settings


class Admission(ASGIMiddleware):
    """Lets requests in, as many as there are places, and ends those that take too long."""

    scopes = (ScopeType.HTTP,)
    exclude_opt_key = "is_public"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._places = Places(settings.max_requests_in_work)
        self._bodies = Bodies(settings)
        self._deadlines = Deadlines(min(settings.receive_timeout_s, settings.request_timeout_s))

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Pass the request on with its caller and its body."""
        scope = cast("HTTPScope", scope)
        with self._deadline(scope) as deadline, self._bodies.held() as body:
            await self._check(scope)
            self._places.check()
            whole = await self._receive(body, scope, receive, deadline)
            scope["state"]["body"] = whole
            with self._places:
                await next_app(scope, _again(whole, receive), send)

    async def _check(self, scope: HTTPScope) -> None:
        """Remember the sender of a request, and raise unless it may send more.

        The errors are `ApiKeyRejected`, `Forbidden`, and `RateLimited`.
        """
        root_key = self._settings.root_key
        scope["user"] = caller = caller_of(scope, root_key)
        check_route(scope, caller, root_key)
        services: ServiceContext = scope["litestar_app"].state.services
        if caller.user is not None:
            await services.access.check_user(caller.user)
        await services.limiter.check(caller.name)

    def _deadline(self, scope: HTTPScope) -> Deadline:
        takes_long = scope["route_handler"].opt.get("takes_long")
        return self._deadlines.within(
            math.inf if takes_long else self._settings.request_timeout_s,
            Overloaded("the request took too long and was given up; a change may have been made"),
        )

    async def _receive(
        self, body: Body, scope: HTTPScope, receive: Receive, deadline: Deadline
    ) -> bytes:
        """Return the body of a request, if its route takes one."""
        handler: Any = scope["route_handler"]
        if handler.parsed_data_field is None:
            return b""
        takes_batches = handler.opt["takes_batches"]
        settings = self._settings
        limit = settings.max_body_bytes if takes_batches else settings.max_small_body_bytes
        check_length(announced_length(scope), limit)
        with self._bodies.arriving(_sender(scope)):
            return await body.receive(receive, limit, deadline)


def _sender(scope: HTTPScope) -> str:
    """Return whose bodies are counted together: a key's, and in an open service an address's."""
    client = scope["client"]
    address = client[0] if client else ""
    name: str = scope["user"].name
    return f"{name} {address}" if name == "open" else name


def _again(body: bytes, receive: Receive) -> Receive:
    """Return what gives a body that has been received once more."""
    is_given = False

    async def receive_again() -> Any:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


def body_of(scope: Scope) -> bytes:
    """Return the body of a request that was let in."""
    return cast("bytes", scope["state"]["body"])
