"""JSON bodies: from bytes to a struct, or to what does not fit.

`JSONStruct` is the DTO of all routes. It decodes the raw bytes straight into the struct that the
handler asks for, and strictly; the framework's own way decodes twice and takes "1" and true for
numbers. What msgspec says about a bad body is put into pydantic's words, which clients of this
protocol know. No value of the body gets into them.
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

from app.errors import BodyProblem, InvalidBody, InvalidInput
from app.observe.stages import timed

T = TypeVar("T")
Choice = TypeVar("Choice", bound=StrEnum)

_OBJECT_EXPECTED = (
    "model_attributes_type",
    "Input should be a valid dictionary or object to extract fields from",
)

# What msgspec expected → pydantic's type and message.
_EXPECTED = {
    "str": ("string_type", "Input should be a valid string"),
    "str | array": ("string_type", "Input should be a valid string"),
    "object": ("dict_type", "Input should be a valid dictionary"),
    "array": ("list_type", "Input should be a valid list"),
    "bool": ("bool_type", "Input should be a valid boolean"),
    "float": ("float_type", "Input should be a valid number"),
    "float | array": ("float_type", "Input should be a valid number"),
    "int | float": ("int_type", "Input should be a valid integer"),
}
_OUT_OF_RANGE = ("finite_number", "Input should be a finite number")
# The contract answers a number of a filter that is none with 400, like everything else that is
# wrong with a filter.
_FILTERS = ("body", "filters")
_CONSTANTS = (b"NaN", b"Infinity")
_OTHERWISE = ("value_error", "Input should be valid")


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
    """Return `body` as the struct that annotates `data` of the connection's handler, as `decode_bytes` does."""
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
        raise InvalidBody(BodyProblem(_OBJECT_EXPECTED[0], ("body",), _OBJECT_EXPECTED[1]))


def decode(body: bytes, kind: type[T]) -> T:
    """Return `body` as a `kind`. Raises `InvalidBody`.

    The errors of msgspec and Python are not chained: they can hold parts of the body.
    """
    decoder: msgspec.json.Decoder[T] = _decoder(kind)  # type: ignore[arg-type]  # a class is hashable
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        problem = _validation_problem(str(error))
        _refuse_filters(problem)
    except msgspec.DecodeError as error:
        _refuse_constant_in_filters(body, str(error), decoder)
        problem = BodyProblem(
            "json_invalid", ("body", _position(str(error), len(body))), "JSON decode error"
        )
    except UnicodeDecodeError:
        problem = BodyProblem("json_invalid", ("body",), "JSON decode error: the text is not UTF-8")
    except RecursionError:
        if b'"filters"' in body and hasattr(kind, "filters"):
            raise InvalidInput("filters: nested too deeply") from None
        problem = BodyProblem("json_invalid", ("body",), "JSON decode error: nested too deeply")
    raise InvalidBody(problem)


def _refuse_constant_in_filters(body: bytes, error: str, decoder: msgspec.json.Decoder[T]) -> None:
    """Raise `InvalidInput` if what is no JSON is NaN or Infinity as a number of `filters`, where it is a 400.

    A number out of range is put in its place, of which the decoder tells where it is.
    """
    position = _position(error, len(body))
    constant = next((name for name in _CONSTANTS if body.startswith(name, position)), None)
    if constant is None:
        return
    try:
        decoder.decode(body[:position] + b"1e999" + body[position + len(constant) :])
    except msgspec.ValidationError as out_of_range:
        _refuse_filters(_validation_problem(str(out_of_range)))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Something else is wrong as well.
        return


def _refuse_filters(problem: BodyProblem) -> None:
    """Raise `InvalidInput` if `problem` is a number out of range in `filters`."""
    if problem.type == _OUT_OF_RANGE[0] and problem.loc == _FILTERS:
        raise InvalidInput("filters: every number must be finite") from None


@functools.cache
def _decoder(kind: Any) -> Any:
    return msgspec.json.Decoder(kind)


def integer(value: float | None, *path: str) -> int | None:
    """Return a JSON number of the field at `path` as an integer. Raises `InvalidBody` for a fraction."""
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


def _validation_problem(text: str) -> BodyProblem:
    """Translate msgspec's message, the only thing it tells: "<what> - at `$.items[3].id`"."""
    what, _, path = text.partition(" - at `")
    loc = ("body", *_steps(path.rstrip("`")))
    quoted = what.split("`")
    if what.startswith("Object missing required field"):
        return BodyProblem("missing", (*loc, quoted[1]), "Field required")
    if what.endswith("out of range"):
        return BodyProblem(_OUT_OF_RANGE[0], loc, _OUT_OF_RANGE[1])
    if not what.startswith("Expected `"):
        return BodyProblem(_OTHERWISE[0], loc, _OTHERWISE[1])
    expected = quoted[1].removesuffix(" | null")
    # A whole body or a list's element is a struct, a field is a dictionary.
    is_struct = expected == "object" and not (len(loc) > 1 and isinstance(loc[-1], str))
    kind, message = _OBJECT_EXPECTED if is_struct else _EXPECTED.get(expected, _OTHERWISE)
    return BodyProblem(kind, loc, message)


def _steps(path: str) -> list[str | int]:
    """Split "$.items[3].id" into ["items", 3, "id"]. Below a "[...]", a key of the client's, it says nothing."""
    known = path.partition("[...]")[0].replace("[", ".").replace("]", "")
    return [int(step) if step.isdecimal() else step for step in known.split(".")[1:]]


def _position(text: str, end: int) -> int:
    """Return the offset in msgspec's "… (byte 7)"; a truncated body has none and ends too early."""
    number = text.rpartition("(byte ")[2].rstrip(")")
    return int(number) if number.isdecimal() else end
