"""What does not fit in a body, in pydantic's words, which clients of this protocol know.

msgspec tells it in a message and nothing else. No value of the body gets into a problem.
"""

from app.errors import BodyProblem

OBJECT_EXPECTED = (
    "model_attributes_type",
    "Input should be a valid dictionary or object to extract fields from",
)
OUT_OF_RANGE = ("finite_number", "Input should be a finite number")

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
_OTHERWISE = ("value_error", "Input should be valid")

Place = tuple[str | int, ...]


def invalid_json(place: Place, why: str = "") -> BodyProblem:
    """Return the problem of a body that is no JSON at `place`."""
    return BodyProblem("json_invalid", place, "JSON decode error" + why)


def problem_of(text: str, place: Place) -> BodyProblem:
    """Translate msgspec's "<what> - at `$.items[3].id`" about the part of a body at `place`."""
    what, _, path = text.partition(" - at `")
    loc = (*place, *_steps(path.rstrip("`")))
    quoted = what.split("`")
    if what.startswith("Object missing required field"):
        return BodyProblem("missing", (*loc, quoted[1]), "Field required")
    if what.endswith("out of range"):
        return BodyProblem(OUT_OF_RANGE[0], loc, OUT_OF_RANGE[1])
    if not what.startswith("Expected `"):
        return BodyProblem(_OTHERWISE[0], loc, _OTHERWISE[1])
    kind, message = _unexpected(quoted[1].removesuffix(" | null"), loc)
    return BodyProblem(kind, loc, message)


def _unexpected(expected: str, loc: Place) -> tuple[str, str]:
    """Return type and message for what is not what msgspec `expected` at `loc`."""
    # A whole body or a list's element is a struct, a field is a dictionary.
    is_field = len(loc) > 1 and isinstance(loc[-1], str)
    if expected == "object" and not is_field:
        return OBJECT_EXPECTED
    return _EXPECTED.get(expected, _OTHERWISE)


def _steps(path: str) -> list[str | int]:
    """Split "$.items[3].id" into ["items", 3, "id"], up to a "[...]", a key of the client's."""
    known = path.partition("[...]")[0].replace("[", ".").replace("]", "")
    return [int(step) if step.isdecimal() else step for step in known.split(".")[1:]]


def position_of(text: str, end: int) -> int:
    """Return the offset in msgspec's "… (byte 7)"; a truncated body ends at `end`, too early."""
    number = text.rpartition("(byte ")[2].rstrip(")")
    return int(number) if number.isdecimal() else end
