"""JSON bodies: from bytes to a struct, or to what does not fit.

`JSONStruct` is the DTO of all routes. It decodes the raw bytes straight into the struct that the
handler asks for, and strictly; the framework's own way decodes twice and takes "1" and true for
numbers.
"""

import functools
from collections.abc import Generator, Mapping
from enum import StrEnum
from typing import Any, TypeVar

import msgspec
from litestar.connection import ASGIConnection
from litestar.dto import AbstractDTO
from litestar.dto.data_structures import DTOFieldDefinition
from litestar.openapi.spec import Reference, Schema
from litestar.typing import FieldDefinition

from app.api.json_problems import (
    OBJECT_EXPECTED,
    OUT_OF_RANGE,
    Place,
    invalid_json,
    position_of,
    problem_of,
)
from app.errors import BodyProblem, InvalidBody, InvalidInput
from app.observe.stages import timed

T = TypeVar("T")
Choice = TypeVar("Choice", bound=StrEnum)

BODY: Place = ("body",)
# RFC 8259, section 8.1: a parser may ignore it.
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# The contract answers a number of a filter that is none with 400, like everything else that is
# wrong with a filter.
_FILTERS = ("body", "filters")
_CONSTANTS = (b"NaN", b"Infinity")


class JSONStruct(AbstractDTO[Any]):
    """Decodes a body into the struct that annotates `data`. An empty body never gets here."""

    def decode_bytes(self, value: bytes) -> Any:
        """Return the struct. Raises `InvalidBody`, and `InvalidInput` for a compressed body."""
        return decode_for(self.asgi_connection, value)

    @classmethod
    def create_for_field_definition(cls, *_: Any, **__: Any) -> None:
        """Build nothing: there is no transfer model between the bytes and the struct."""

    @classmethod
    def create_openapi_schema(
        cls,
        field_definition: FieldDefinition,
        handler_id: str,  # noqa: ARG003  # the framework passes it by name
        schema_creator: Any,
    ) -> Reference | Schema:
        """Describe the struct itself."""
        schema: Reference | Schema = schema_creator.for_field_definition(field_definition)
        return schema

    @classmethod
    def generate_field_definitions(
        cls, model_type: type[Any]
    ) -> Generator[DTOFieldDefinition, None, None]:
        """Refuse: transfer models alone need it."""
        raise NotImplementedError(model_type)

    @classmethod
    def detect_nested_field(cls, field_definition: FieldDefinition) -> bool:
        """Refuse: transfer models alone need it."""
        raise NotImplementedError(field_definition)


@timed("parse")
def decode_for(connection: ASGIConnection[Any, Any, Any, Any], body: bytes) -> Any:
    """Return `body` as the struct that annotates `data` of the connection's handler."""
    check_headers(connection.headers)
    return decode(body, connection.route_handler.parsed_data_field.annotation)


def check_headers(headers: Mapping[str, str]) -> None:
    """Raise unless the headers announce plain JSON."""
    if headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}:
        raise InvalidInput("Content-Encoding is not supported; send the body uncompressed")
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = media_type == "application/json" or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )
    if not is_json:
        raise InvalidBody(BodyProblem(OBJECT_EXPECTED[0], BODY, OBJECT_EXPECTED[1]))


def decode(body: bytes, kind: type[T], place: Place = BODY) -> T:
    """Return `body`, or the part of a body that is at `place`, as a `kind`. Raises `InvalidBody`.

    The errors of msgspec and Python are not chained: they can hold parts of the body.
    """
    body = body.removeprefix(_BYTE_ORDER_MARK)
    decoder: msgspec.json.Decoder[T] = _decoder(kind)  # type: ignore[arg-type]  # a class is hashable
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        problem = problem_of(str(error), place)
        _refuse_filters(problem)
    except msgspec.DecodeError as error:
        _refuse_constant_in_filters(body, str(error), decoder)
        problem = invalid_json((*place, position_of(str(error), len(body))))
    except UnicodeDecodeError:
        problem = invalid_json(place, ": the text is not UTF-8")
    except RecursionError:
        problem = _too_deep(body, kind, place)
    raise InvalidBody(problem)


def _too_deep(body: bytes, kind: type[Any], place: Place) -> BodyProblem:
    """Return the problem of what is nested too deeply; raise `InvalidInput` if it is a filter."""
    if b'"filters"' in body and hasattr(kind, "filters"):
        raise InvalidInput("filters: nested too deeply") from None
    return invalid_json(place, ": nested too deeply")


def _refuse_constant_in_filters(body: bytes, error: str, decoder: msgspec.json.Decoder[T]) -> None:
    """Raise `InvalidInput` if what is no JSON is NaN or Infinity as a number of `filters`.

    A number out of range is put in its place, of which the decoder tells where it is.
    """
    position = position_of(error, len(body))
    constant = next((name for name in _CONSTANTS if body.startswith(name, position)), None)
    if constant is None:
        return
    try:
        decoder.decode(body[:position] + b"1e999" + body[position + len(constant) :])
    except msgspec.ValidationError as out_of_range:
        _refuse_filters(problem_of(str(out_of_range), BODY))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Something else is wrong as well.
        return


def _refuse_filters(problem: BodyProblem) -> None:
    """Raise `InvalidInput` if `problem` is a number out of range in `filters`."""
    if problem.type == OUT_OF_RANGE[0] and problem.loc == _FILTERS:
        raise InvalidInput("filters: every number must be finite") from None


@functools.cache
def _decoder(kind: Any) -> Any:
    return msgspec.json.Decoder(kind)


def integer(value: float | None, *path: str) -> int | None:
    """Return a JSON number of the field at `path` as an integer, or raise `InvalidBody`."""
    if isinstance(value, float) and not value.is_integer():
        message = "Input should be a valid integer, got a number with a fractional part"
        raise InvalidBody(BodyProblem("int_from_float", ("body", *path), message))
    return None if value is None else int(value)


def choice(value: str | None, choices: type[Choice], *path: str) -> Choice | None:
    """Return the member of `choices` that the field at `path` names. Raises `InvalidBody`."""
    try:
        return None if value is None else choices(value)
    except ValueError:
        message = "Input should be " + " or ".join(f"'{member}'" for member in choices)
        raise InvalidBody(BodyProblem("literal_error", ("body", *path), message)) from None
