import logging
from typing import Any, cast

import httpx
import pytest
from litestar import Litestar, get

from app import errors
from app.api.around.errors import EXCEPTION_HANDLERS, STATUS_CODES, UNLOGGED
from app.server.application import create_app
from app.settings import Settings

ERRORS: list[tuple[errors.AppError, int]] = [
    (errors.InvalidInput("text"), 400),
    (errors.ApiKeyRejected("text"), 401),
    (errors.KeyRejected("text"), 401),
    (errors.Forbidden("text"), 403),
    (errors.NotFound("text"), 404),
    (errors.Conflict("text"), 409),
    (errors.TooLarge("text"), 413),
    (errors.TooSlow("text"), 408),
    (errors.Incomplete("text"), 499),
    (errors.Overloaded("text"), 503),
    (errors.RateLimited("text"), 429),
    (errors.Unavailable("text"), 503),
    (errors.ModelUnavailable("text"), 503),
    (errors.DataCorrupted("text"), 500),
    (errors.AppError("text"), 500),
]


async def answer_to(error: Exception) -> httpx.Response:
    @get("/")
    async def fail() -> None:
        raise error

    app = Litestar(
        [fail], exception_handlers=EXCEPTION_HANDLERS, openapi_config=None, logging_config=None
    )
    return await call(app, "/")


async def call(app: Litestar, path: str, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(cast("Any", app), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.get(path, headers=headers)


@pytest.mark.parametrize(("error", "status"), ERRORS, ids=lambda value: type(value).__name__)
async def test_every_error_has_its_status_and_its_text(error: errors.AppError, status: int) -> None:
    answer = await answer_to(error)
    assert (answer.status_code, answer.json()) == (status, {"detail": "text"})


def test_the_table_knows_every_error() -> None:
    known = {type(error) for error, _ in ERRORS} | {errors.InvalidBody}
    assert set(STATUS_CODES) == known == {errors.AppError, *all_subclasses(errors.AppError)}


def all_subclasses(cls: type[Any]) -> set[type[Any]]:
    return {inner for direct in cls.__subclasses__() for inner in {direct, *all_subclasses(direct)}}


def test_only_damage_bugs_and_a_missing_database_are_logged() -> None:
    assert set(STATUS_CODES) - UNLOGGED == {
        errors.Unavailable,
        errors.DataCorrupted,
        errors.AppError,
    }


async def test_problems_of_a_body_are_listed() -> None:
    problems = [
        errors.BodyProblem("a", ("body", "x", 1), "b"),
        errors.BodyProblem("c", ("body",), "d"),
    ]
    answer = await answer_to(errors.InvalidBody(*problems))
    assert answer.status_code == 422
    assert answer.json() == {
        "detail": [
            {"type": "a", "loc": ["body", "x", 1], "msg": "b"},
            {"type": "c", "loc": ["body"], "msg": "d"},
        ]
    }


@pytest.mark.parametrize("error", [errors.Overloaded("text", 7), errors.Unavailable("text", 7)])
async def test_who_comes_at_a_bad_time_is_told_when_to_come_back(error: errors.AppError) -> None:
    assert (await answer_to(error)).headers["retry-after"] == "7"


@pytest.mark.parametrize(
    "error", [ValueError("SECRET"), KeyError("SECRET"), RecursionError("SECRET")]
)
async def test_a_bug_shows_nothing_of_itself(error: Exception) -> None:
    answer = await answer_to(error)
    assert (answer.status_code, answer.json()) == (500, {"detail": "Internal Server Error"})


async def test_a_bug_is_logged_with_its_traceback_and_the_name_of_the_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = create_app(Settings())
    logging.getLogger().addHandler(
        caplog.handler
    )  # the application has replaced the root's handlers
    try:
        # Without its lifespan the application has no services.
        answer = await call(
            app, "/v1/indexes/list?a=SECRET", **{"X-Request-Id": "request-7", "X-API-Key": "SECRET"}
        )
    finally:
        logging.getLogger().removeHandler(caplog.handler)
    assert (answer.status_code, answer.json()) == (500, {"detail": "Internal Server Error"})
    assert answer.headers["x-request-id"] == "request-7"
    (record,) = caplog.records
    assert record.getMessage() == "request request-7 to /v1/indexes/list failed"
    assert "Traceback" in caplog.text
    assert "SECRET" not in caplog.text


async def test_what_the_client_did_wrong_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(Settings(root_key="key"))
    logging.getLogger().addHandler(caplog.handler)
    try:
        for path in ["/v1/indexes/list", "/v1/nope", "/v1/indexes/create", "/v1/health/"]:
            await call(app, path)
    finally:
        logging.getLogger().removeHandler(caplog.handler)
    assert [record for record in caplog.records if not record.name.startswith("httpx")] == []
