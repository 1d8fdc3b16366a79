"""The OpenAPI document, made from the routes themselves."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from litestar import Litestar, Router, get
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme
from litestar.serialization import encode_json

from app.api.auth import API_KEY_HEADER, PUBLIC
from app.api.health import service_version

_SECURITY = {"ApiKey": SecurityScheme(type="apiKey", name=API_KEY_HEADER, security_scheme_in="header")}


def openapi_route(routes: Sequence[Router]) -> HTTPRouteHandler:
    """Return the route that serves the document of `routes`, which is made when it is first asked for.

    The framework's own routes for it would claim every path below the prefix that they share with ours.
    """
    document = functools.cache(functools.partial(describe, routes))

    @get("/openapi.json", opt=PUBLIC, media_type="application/json", include_in_schema=False)
    async def openapi() -> bytes:
        return document()

    return openapi


def describe(routes: Sequence[Router]) -> bytes:
    """Return the document of `routes`. An application that serves nothing makes it."""
    config = OpenAPIConfig(
        title="Sealdex",
        version=service_version(),
        security=[{name: [] for name in _SECURITY}],
        components=Components(security_schemes=dict(_SECURITY)),
        use_handler_docstrings=True,
    )
    application = Litestar(routes, openapi_config=config, logging_config=None)
    document = application.openapi_schema.to_schema()
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        # The framework's words for a bad body; ours are in the contract.
        operation["responses"].pop("400", None)
        operation["responses"] |= _REFUSALS if "requestBody" in operation else _REFUSALS_WITHOUT_BODY
    return encode_json(document)


def _refusal(description: str, detail: Mapping[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"detail": detail}, "required": ["detail"]}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_TEXT = {"type": "string"}
_PROBLEMS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "type": _TEXT,
            "loc": {"type": "array", "items": {"type": ["string", "integer"]}},
            "msg": _TEXT,
        },
        "required": ["type", "loc", "msg"],
    },
}
# What any route may answer instead; `errors.py` has who raises what.
_REFUSALS_WITHOUT_BODY = {
    "400": _refusal("Well-formed, but refused", _TEXT),
    "401": _refusal("API key or index key missing or wrong", _TEXT),
    "403": _refusal("A valid API key without the right", _TEXT),
    "404": _refusal("Unknown index", _TEXT),
    "409": _refusal("The name is taken", _TEXT),
    "503": _refusal("Busy, or without its database: try again later", _TEXT),
}
_REFUSALS = _REFUSALS_WITHOUT_BODY | {
    "413": _refusal("More than the limits allow", _TEXT),
    "422": _refusal("The body does not fit the schema", {"anyOf": [_TEXT, _PROBLEMS]}),
}
