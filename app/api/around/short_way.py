"""The short way through the framework, for the routes of items: from the body to the answer.

A route is declared as any other. This middleware stands in front of the framework's own steps
(signature models, dependencies, response objects) and does in their place what these routes need,
in a third of the time (docs/decisions/0070). Error handlers and whatever else surrounds a request
stay the framework's.
"""

import asyncio
import contextvars
from concurrent.futures import Executor
from typing import Any, cast

from litestar import Request
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.serialization import encode_json
from litestar.types import ASGIApp, Receive, Scope, Send
from litestar.typing import FieldDefinition

from app.api.answers import check_length
from app.api.around.admission import body_of
from app.api.json_bodies import check_headers, decode_for
from app.api.large_bodies import LARGE_BYTES, decode_large
from app.errors import BodyProblem, InvalidBody
from app.observe.stages import stage
from app.services.context import ServiceContext


class ShortWay(ASGIMiddleware):
    """Answers for handlers that take `data`, `caller` and `services` and return a struct."""

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Answer the request; `next_app`, the framework's way, is not taken."""
        del next_app
        services: ServiceContext = scope["litestar_app"].state.services
        data = await _data(Request(scope, receive), body_of(scope), services)
        handler: Any = scope["route_handler"]
        answer = await handler.fn(data=data, caller=scope["user"], services=services)
        await _send(send, answer, services.settings.max_answer_bytes)


async def _data(request: Request[Any, Any, Any], body: bytes, services: ServiceContext) -> Any:
    """Return the body of a request as the handler takes it."""
    if not body:
        raise InvalidBody(BodyProblem("missing", ("body",), "Field required"))
    if len(body) <= LARGE_BYTES:
        return decode_for(request, body)
    check_headers(request.headers)
    # One thread decodes for all: several would only wait for each other, and hold more.
    threads: Executor = request.app.state.decoder
    kind = cast("FieldDefinition", request.route_handler.parsed_data_field).annotation
    return await asyncio.get_running_loop().run_in_executor(
        threads, contextvars.copy_context().run, decode_large, body, kind, services.settings
    )


async def _send(send: Send, answer: Any, limit: int) -> None:
    with stage("encode"):
        body = encode_json(answer)
    check_length(len(body), limit)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
