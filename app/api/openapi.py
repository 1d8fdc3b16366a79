"""The OpenAPI document, made from the routes themselves, and the page that shows it.

The framework names schemas and operations after our classes and functions. Clients are generated
from the document, so it uses the protocol's names instead: those of the vendor's own document, from
which its SDKs are made.
"""

import functools
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from litestar import Litestar, Router, get
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme
from litestar.response import Response
from litestar.serialization import encode_json

from app.api.around.auth import API_KEY_HEADER, PUBLIC
from app.api.health import service_version

_SECURITY = {
    "ApiKey": SecurityScheme(type="apiKey", name=API_KEY_HEADER, security_scheme_in="header")
}

# Our class → schema of the protocol. Of classes that are not here an "Answer" becomes a "Response".
_SCHEMAS = {
    "BinaryUpsertBatch": "BinaryVectorBatch",
    "CountAnswer": "NumVectorsResponse",
    "CreateRequest": "CreateIndexRequest",
    "DescribeAnswer": "IndexInfoResponseModel",
    "DoneAnswer": "SuccessResponseModel",
    "GetAnswer": "GetResponseModel",
    "HealthAnswer": "HealthResponse",
    "IdsAnswer": "ListIDsResponse",
    "IndexNamesAnswer": "IndexListResponseModel",
    "IndexRequest": "IndexOperationRequest",
    "ItemAnswer": "GetResultItemModel",
    "LegacyIndexConfig": "IndexConfig",
    "LegacyIndexDescription": "IndexConfigInfo",
    "MatchAnswer": "QueryResultItem",
    "QueryAnswer": "QueryResponse",
    "TrainAnswer": "TrainResponseModel",
    "TrainingStatusAnswer": "IndexTrainingStatusResponseModel",
    "UpsertAnswer": "UpsertResponseModel",
    "UpsertItem": "VectorItem",
    "UserAnswer": "UserInfo",
    "UserKeyAnswer": "CreateUserResponse",
    "UsersAnswer": "ListUsersResponse",
}
# Route → function of the service whose protocol this is: the first part of an operation's name.
# Others are ours alone.
_FUNCTIONS = {
    "/v1/health": "health_check",
    "/v1/indexes/create": "create_index",
    "/v1/indexes/describe": "get_index_info",
    "/v1/indexes/delete": "delete_index",
    "/v1/indexes/train": "train_index",
    "/v1/indexes/training-status": "get_training_status",
    "/v1/vectors/upsert": "upsert_vectors",
    "/v1/vectors/upsert_binary": "upsert_vectors_binary",
    "/v1/vectors/query": "query_vectors",
    "/v1/vectors/query_binary": "query_vectors_binary",
    "/v1/vectors/get": "get_vectors",
    "/v1/vectors/delete": "delete_vectors",
    "/v1/vectors/num_vectors": "get_index_size",
}
_REF = "#/components/schemas/"
_ERRORS = {
    "400": "The request is well formed but cannot be honoured",
    "401": "The API key or the index key is missing or wrong",
    "403": "The API key has no right to do this",
    "404": "There is no such index",
    "409": "The name is taken",
    "503": "Busy, or without its database: try again later",
}
_PROBLEM = {
    "type": "object",
    "required": ["type", "loc", "msg"],
    "properties": {
        "type": {"type": "string"},
        "loc": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}},
        "msg": {"type": "string"},
    },
}
_ERROR_SCHEMAS = {
    "ErrorResponseModel": {
        "type": "object",
        "required": ["detail"],
        "properties": {"detail": {"type": "string"}},
    },
    "HTTPValidationError": {
        "type": "object",
        "required": ["detail"],
        "properties": {"detail": {"type": "array", "items": {"$ref": f"{_REF}ValidationError"}}},
    },
    "ValidationError": _PROBLEM,
}
# The page has its script and style in itself and loads nothing but the document.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}


def openapi_routes(routes: Sequence[Router]) -> list[HTTPRouteHandler]:
    """Return the routes that serve the document of `routes`, which is made when it is first asked for, and its page.

    The framework's own routes for it would claim every path below the prefix that they share with
    ours.
    """
    document = functools.cache(functools.partial(describe, routes))

    @get("/openapi.json", opt=PUBLIC, media_type="application/json", include_in_schema=False)
    async def openapi() -> bytes:
        return document()

    @get(["/docs", "/redoc"], opt=PUBLIC, include_in_schema=False)
    async def docs() -> Response[str]:
        return Response(_page(), media_type="text/html", headers=_PAGE_HEADERS)

    return [openapi, docs]


@functools.cache
def _page() -> str:
    return resources.files("app.api").joinpath("docs.html").read_text(encoding="utf-8")


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
    document: dict[str, Any] = _renamed(application.openapi_schema.to_schema())
    document["components"]["schemas"] |= _ERROR_SCHEMAS
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _name(operation, path, method)
            _describe_errors(operation, path)
    return encode_json(document)


def _renamed(part: Any) -> Any:
    """Return a part of the document with the protocol's names, and with choices that overlap as `anyOf`."""
    if isinstance(part, list):
        return [_renamed(inner) for inner in part]
    if not isinstance(part, dict):
        return part
    renamed = {_schema_name(name): _renamed(inner) for name, inner in part.items()}
    if isinstance(reference := renamed.get("$ref"), str):
        renamed["$ref"] = _REF + _schema_name(reference.removeprefix(_REF))
    if isinstance(title := renamed.get("title"), str):
        renamed["title"] = _schema_name(title)
    if isinstance(choices := renamed.pop("oneOf", None), list):
        # An integer may be written 2.0, and so is a number, too; clients need not know.
        is_integer = {"type": "integer"} in choices
        renamed["anyOf"] = [
            choice for choice in choices if not (is_integer and choice == {"type": "number"})
        ]
    return renamed


def _schema_name(name: str) -> str:
    return _SCHEMAS.get(name) or re.sub(r"(?<=[a-z])Answer$", "Response", name)


def _name(operation: dict[str, Any], path: str, method: str) -> None:
    """Name an operation as the protocol does: function, path and method in one word."""
    words = re.sub(r"(?<!^)(?=[A-Z])", " ", operation["summary"])
    function = _FUNCTIONS.get(path, words.replace(" ", "_").lower())
    operation["operationId"] = f"{function}{re.sub(r'[^0-9A-Za-z]', '_', path)}_{method}".replace(
        "__", "_"
    )
    operation["summary"] = function.replace("_", " ").capitalize()


def _describe_errors(operation: dict[str, Any], path: str) -> None:
    responses = operation["responses"]
    # The framework's words for a bad body; ours are in the contract.
    responses.pop("400", None)
    if path == "/v1/health":
        operation["security"] = []
        return
    for status, description in _ERRORS.items():
        responses[status] = _error(description, "ErrorResponseModel")
    if "requestBody" in operation:
        responses["408"] = _error("The body does not come in time", "ErrorResponseModel")
        responses["413"] = _error("More than the limits allow", "ErrorResponseModel")
        responses["422"] = _error("The body does not fit the schema", "HTTPValidationError")


def _error(description: str, schema: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/json": {"schema": {"$ref": _REF + schema}}},
    }
