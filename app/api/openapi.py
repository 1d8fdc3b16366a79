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

from app.api.around.auth import API_KEY_HEADER
from app.api.around.routes import PUBLIC
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
    "ListIdsRequest": "ListIDsRequest",
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
# What anybody may ask without a key, and the errors that come of it.
_PUBLIC_ERRORS: dict[str, tuple[str, ...]] = {"/v1/health": (), "/v1/ready": ("503",)}
# The protocol's document has a second schema for queries of several vectors.
_QUERY = "/v1/vectors/query"
_VECTORS = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
_REF = "#/components/schemas/"
_ERRORS = {
    "400": "The request is well formed but cannot be honoured",
    "401": "The API key or the index key is missing or wrong",
    "403": "The API key has no right to do this",
    "404": "There is no such index",
    "409": "The name is taken",
    "429": "This API key has sent too many requests",
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
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
}


def openapi_routes(routes: Sequence[Router]) -> list[HTTPRouteHandler]:
    """Return the routes of the document of `routes`, made when it is first asked for, and its page.

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
    schemas = document["components"]["schemas"]
    schemas |= _ERROR_SCHEMAS
    schemas["BatchQueryRequest"] = _batch_query(schemas["QueryRequest"])
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _name(operation, path, method)
            _describe_errors(operation, path)
    _offer_batches(document["paths"][_QUERY]["post"])
    return encode_json(document)


def _batch_query(single: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a query that must have several vectors."""
    return {
        **single,
        "title": "BatchQueryRequest",
        "properties": {**single["properties"], "query_vectors": _VECTORS},
        "required": [*single["required"], "query_vectors"],
    }


def _offer_batches(operation: dict[str, Any]) -> None:
    """Say that a query may have either form."""
    (content,) = operation["requestBody"]["content"].values()
    references = [{"$ref": _REF + name} for name in ("QueryRequest", "BatchQueryRequest")]
    content["schema"] = {"anyOf": references}


def _renamed(part: Any) -> Any:
    """Return a part of the document with the protocol's names, overlapping choices as `anyOf`."""
    if isinstance(part, list):
        return [_renamed(inner) for inner in part]
    if not isinstance(part, dict):
        return part
    renamed = {_schema_name(name): _renamed(inner) for name, inner in part.items()}
    _rename_reference(renamed)
    if isinstance(choices := renamed.pop("oneOf", None), list):
        renamed["anyOf"] = _overlapping(choices)
    return renamed


def _rename_reference(part: dict[str, Any]) -> None:
    if isinstance(reference := part.get("$ref"), str):
        part["$ref"] = _REF + _schema_name(reference.removeprefix(_REF))
    if isinstance(title := part.get("title"), str):
        part["title"] = _schema_name(title)


def _overlapping(choices: list[Any]) -> list[Any]:
    # An integer may be written 2.0, and so is a number, too; clients need not know.
    is_integer = {"type": "integer"} in choices
    return [choice for choice in choices if not (is_integer and choice == {"type": "number"})]


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
    if path in _PUBLIC_ERRORS:
        operation["security"] = []
    for status in _PUBLIC_ERRORS.get(path, tuple(_ERRORS)):
        responses[status] = _error(_ERRORS[status], "ErrorResponseModel")
    if "requestBody" in operation:
        responses["408"] = _error("The body does not come in time", "ErrorResponseModel")
        responses["413"] = _error("More than the limits allow", "ErrorResponseModel")
        responses["422"] = _error("The body does not fit the schema", "HTTPValidationError")


def _error(description: str, schema: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/json": {"schema": {"$ref": _REF + schema}}},
    }
