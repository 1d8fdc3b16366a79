"""The short way through the framework, for the routes of items: from the body to the handler to the answer.

A route is declared as any other. This middleware stands in front of the framework's own steps
(signature models, dependencies, response objects) and does in their place what these routes need,
in a third of the time (docs/decisions/0070). Guards, error handlers and whatever else surrounds a
request stay the framework's.
"""

from typing import Any

from litestar import Request
from litestar.enums import ScopeType
from litestar.handlers import HTTPRouteHandler
from litestar.middleware import ASGIMiddleware
from litestar.serialization import encode_json
from litestar.types import ASGIApp, Receive, Scope, Send

from app.api.json_bodies import decode_for
from app.errors import BodyProblem, InvalidBody
from app.observe.stages import stage
from app.services.context import ServiceContext


class DirectVectors(ASGIMiddleware):
    """Answers for handlers that take `data`, `caller` and `vectors` and return a struct."""

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Answer the request; `next_app`, the framework's way, is not taken."""
        del next_app
        handler = scope["route_handler"]
        assert isinstance(handler, HTTPRouteHandler)  # noqa: S101 - these routes are of no other kind
        request: Request[Any, Any, Any] = Request(scope, receive)
        for guard in handler.resolve_guards():
            await guard(request, handler)  # type: ignore[misc]  # the framework has made them all awaitable
        sent = await request.body()
        if not sent:
            raise InvalidBody(BodyProblem("missing", ("body",), "Field required"))
        data = decode_for(request, sent)
        services: ServiceContext = scope["litestar_app"].state.services
        answer = await handler.fn(data=data, caller=scope["user"], vectors=services.vectors)
        with stage("encode"):
            body = encode_json(answer)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})
