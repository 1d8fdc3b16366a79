"""Errors as HTTP answers: the only place that knows both.

Every error is answered with `{"detail": …}`: a text, or for a body that does not fit a list of its
problems. Nothing else of an exception gets out, and only bugs, damage and a missing database are
logged with their traceback.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from litestar import MediaType, Request, Response
from litestar.exceptions import HTTPException, MethodNotAllowedException, ValidationException
from litestar.types import ExceptionHandlersMap

from app.errors import (
    ApiKeyRejected,
    AppError,
    BodyProblem,
    Conflict,
    DataCorrupted,
    Forbidden,
    Incomplete,
    InvalidBody,
    InvalidInput,
    KeyRejected,
    ModelUnavailable,
    NotFound,
    Overloaded,
    RateLimited,
    TooLarge,
    TooSlow,
    Unavailable,
)

AnyRequest = Request[Any, Any, Any]

STATUS_CODES: dict[type[AppError], int] = {
    InvalidInput: 400,
    InvalidBody: 422,
    ApiKeyRejected: 401,
    KeyRejected: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    TooLarge: 413,
    TooSlow: 408,
    # Nobody is there to read it, but it is counted.
    Incomplete: 499,
    RateLimited: 429,
    Overloaded: 503,
    Unavailable: 503,
    ModelUnavailable: 503,
    DataCorrupted: 500,
    AppError: 500,
}

# Answered as the client's own doing, and no news for the log.
UNLOGGED: set[type[Exception] | int] = {
    *(error for error, status in STATUS_CODES.items() if status < HTTPStatus.INTERNAL_SERVER_ERROR),
    *range(HTTPStatus.BAD_REQUEST, HTTPStatus.INTERNAL_SERVER_ERROR),
    Overloaded,
    # Logged where it is loaded.
    ModelUnavailable,
}


def answer_app_error(_: AnyRequest, error: AppError) -> Response[Any]:
    """Answer with the nearest class in the table; the text was written for the caller."""
    status = next(STATUS_CODES[cls] for cls in type(error).__mro__ if cls in STATUS_CODES)
    return _answer(status, str(error))


def answer_invalid_body(_: AnyRequest, error: InvalidBody) -> Response[Any]:
    """Answer with the list of problems."""
    return _answer(HTTPStatus.UNPROCESSABLE_ENTITY, list(error.problems))


def answer_overloaded(request: AnyRequest, error: Overloaded) -> Response[Any]:
    """Answer with the time to wait."""
    answer = answer_app_error(request, error)
    answer.headers["Retry-After"] = str(error.retry_after_s)
    return answer


def answer_http_error(_: AnyRequest, error: HTTPException) -> Response[Any]:
    """Answer the framework's own errors as ours; it hides nothing in those below 500."""
    if error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _answer(error.status_code, HTTPStatus(error.status_code).phrase)
    return _answer(error.status_code, error.detail, error.headers)


def answer_wrong_method(_: AnyRequest, error: MethodNotAllowedException) -> Response[Any]:
    """Answer with the methods there are; OPTIONS, which the framework adds, is none."""
    allowed = (error.headers or {}).get("allow", "").split(", ")
    headers = {"Allow": ", ".join(sorted(set(allowed) - {"OPTIONS"}))}
    return _answer(error.status_code, error.detail, headers)


def answer_framework_validation(_: AnyRequest, error: ValidationException) -> Response[Any]:
    """Answer what the framework checks by itself, as of `data` that a body is there at all."""
    fields = [entry["key"] for entry in error.extra or [] if isinstance(entry, Mapping)]
    problems = [
        BodyProblem("missing", ("body",) if name == "data" else (name,), "Field required")
        for name in fields
    ]
    return _answer(HTTPStatus.UNPROCESSABLE_ENTITY, problems)


def answer_bug(_: AnyRequest, __: Exception) -> Response[Any]:
    """Answer an exception that nobody raised on purpose; the log has its traceback."""
    return _answer(HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.INTERNAL_SERVER_ERROR.phrase)


def _answer(
    status: int, detail: str | list[BodyProblem], headers: Mapping[str, str] | None = None
) -> Response[dict[str, Any]]:
    return Response(
        {"detail": detail},
        status_code=status,
        headers=dict(headers or {}),
        media_type=MediaType.JSON,
    )


EXCEPTION_HANDLERS: ExceptionHandlersMap = {
    AppError: answer_app_error,
    InvalidBody: answer_invalid_body,
    Overloaded: answer_overloaded,
    HTTPException: answer_http_error,
    MethodNotAllowedException: answer_wrong_method,
    ValidationException: answer_framework_validation,
    Exception: answer_bug,
}
