"""What stands behind an operator of a filter: checked, or refused with the place of the fault."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import re2

from app.errors import InvalidInput
from app.filters.nodes import Condition, Containing, Like, OfType, Present

MAX_PATH_LENGTH = 1_024
MAX_PATH_LEVELS = 256
MAX_PATTERN_LENGTH = 1_000
# Bounds what a pattern may cost for each character: without a limit, counted repetitions multiply.
MAX_PATTERN_PROGRAM = 1_000
MAX_VALUE_DEPTH = 1_000

TYPE_NAMES = ("string", "number", "boolean", "array", "object")

# What an error shows of a place deep down.
_MAX_PLACE = 200
_MATCHING_MEMORY = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the filter something is: a step below another place, put into words for an error."""

    step: str
    above: "Place | None" = None

    def __str__(self) -> str:
        steps: list[str] = []
        place: Place | None = self
        n_characters = 0
        while place is not None and n_characters <= _MAX_PLACE:
            steps.append(place.step)
            n_characters += len(place.step)
            place = place.above
        text = "".join(reversed(steps))
        return text if place is None and len(text) <= _MAX_PLACE else "…" + text[-_MAX_PLACE:]

    def below(self, step: str) -> "Place":
        """Return a place one step further down."""
        return Place(step, self)


def shown(name: str) -> str:
    """Return a name of the client's as an error shows it."""
    return name if len(name) <= _MAX_PLACE else name[:_MAX_PLACE] + "…"


def check_path(path: str, place: Place) -> None:
    """Raise `InvalidInput` for a path that is too long."""
    if len(path) > MAX_PATH_LENGTH or path.count(".") >= MAX_PATH_LEVELS:
        raise InvalidInput(
            f"{place}: a path can have at most {MAX_PATH_LENGTH} characters "
            f"and {MAX_PATH_LEVELS} levels"
        )


def refuse_nested_operators(value: Mapping[str, Any], place: Place) -> None:
    """Raise `InvalidInput` for an operator below a plain key.

    The operator is meant for a nested field. As a part of a value it would silently match nothing.
    """
    for name, inner in value.items():
        operator = _first_operator(inner)
        if operator is not None:
            raise InvalidInput(
                f"{place}.{shown(name)}.{shown(operator)}: an operator cannot stand inside a "
                "value; reach a nested field by its dotted path, or compare with such an object "
                "by $eq"
            )


def as_list(value: Any, place: Place) -> tuple[Any, ...]:
    """Return the values of a list; a single value is a list of one."""
    if value is None or isinstance(value, Mapping):
        raise InvalidInput(f"{place}: takes a list of values")
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def as_number(value: Any, place: Place) -> float:
    """Return a number that others can be compared with."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or (isinstance(value, float) and not math.isfinite(value)):
        raise InvalidInput(
            f"{place}: takes a finite number; dates are stored and compared as epoch milliseconds"
        )
    number: float = value
    return number


def check_json(values: tuple[Any, ...], place: Place) -> None:
    """Raise `InvalidInput` unless each value is JSON, finite, and not nested too deeply."""
    level: list[Any] = list(values)
    for _ in range(MAX_VALUE_DEPTH):
        level = _level_below(level, place)
        if not level:
            return
    raise InvalidInput(f"{place}: a value can be nested at most {MAX_VALUE_DEPTH} deep")


def _level_below(level: Iterable[Any], place: Place) -> list[Any]:
    """Return the members of all lists and objects of a level. Raises for what is no JSON."""
    below: list[Any] = []
    for value in level:
        if isinstance(value, Mapping):
            below.extend(value.values())
        elif isinstance(value, list | tuple):
            below.extend(value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise InvalidInput(f"{place}: every number must be finite")
        elif value is not None and not isinstance(value, str | int | float):
            raise InvalidInput(f"{place}: takes a JSON value")
    return below


def _first_operator(value: Any) -> str | None:
    if not isinstance(value, Mapping):
        return None
    return next((key for key in value if key.startswith("$")), None)


def _read_exists(path: str, value: Any, place: Place) -> Condition:
    if not isinstance(value, bool):
        raise InvalidInput(f"{place}: takes true or false")
    return Present(path)


def _read_type(path: str, value: Any, place: Place) -> Condition:
    if value not in TYPE_NAMES:
        raise InvalidInput(f"{place}: takes one of {', '.join(TYPE_NAMES)}")
    return OfType(path, value)


def _read_contains(path: str, value: Any, place: Place) -> Condition:
    if not isinstance(value, str):
        raise InvalidInput(f"{place}: takes a string")
    return Containing(path, value)


def _read_regex(path: str, value: Any, place: Place) -> Condition:
    if not isinstance(value, str):
        raise InvalidInput(f"{place}: takes a regular expression, that is a string")
    if len(value) > MAX_PATTERN_LENGTH:
        raise InvalidInput(
            f"{place}: a regular expression can have at most {MAX_PATTERN_LENGTH} characters"
        )
    if _program_size(value, place) > MAX_PATTERN_PROGRAM:
        raise InvalidInput(
            f"{place}: the regular expression is too large; use fewer or shorter repetitions"
        )
    return Like(path, value)


def _program_size(pattern: str, place: Place) -> int:
    """Return how many instructions a pattern takes. Raises `InvalidInput` when RE2 refuses it."""
    try:
        n_instructions: int = compiled(pattern).programsize
    except re2.error as error:
        # RE2 quotes the pattern behind the colon.
        reason = (error.args[0] if error.args else b"").decode(errors="replace").partition(":")[0]
        raise InvalidInput(
            f"{place}: no regular expression that RE2 understands ({reason})"
        ) from None
    return n_instructions


def compiled(pattern: str) -> Any:
    """Return `pattern` ready to search in UTF-8 bytes, in time linear in their number.

    Raises `re2.error`.
    """
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    # A part of this memory is for the states that make matching fast. A pattern that needs more
    # states is slower, and not wrong.
    options.max_mem = _MATCHING_MEMORY
    return re2.compile(pattern.encode(), options)


# The operators whose operand makes a condition by itself.
READERS: dict[str, Callable[[str, Any, Place], Condition]] = {
    "$exists": _read_exists,
    "$type": _read_type,
    "$contains": _read_contains,
    "$regex": _read_regex,
}
