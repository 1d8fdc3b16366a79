"""The filter language: from a JSON object to a syntax tree, or to an error that names the place.

    filter      an object whose entries must all hold
    entry       "$and" | "$or" | "$nor": list of filters
                "$not": filter
                path: condition
    path        names of fields joined by dots, through nested objects
    condition   a JSON value (equality), or an object of operators that must all hold:
                $eq $ne $gt $gte $lt $lte $in $nin $exists $regex $contains $type $not

No recursion: a filter may be nested as deep as `MAX_DEPTH`, which is more than Python's stack
likes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import re2

from app.errors import InvalidInput
from app.filters.nodes import (
    AllOf,
    AnyOf,
    Compared,
    Comparison,
    Condition,
    Containing,
    Like,
    Node,
    Not,
    OfType,
    OneOf,
    Present,
)

MAX_DEPTH = 1_000
# Conditions and groups of a filter; members of all its lists.
MAX_NODES = 10_000
MAX_VALUES = 100_000
# Comparing with a list or an object cannot be looked up in a set.
MAX_COMPOSITE_VALUES = 100
MAX_PATH_LENGTH = 1_024
MAX_PATH_LEVELS = 256
MAX_PATTERNS = 100
MAX_PATTERN_LENGTH = 1_000
# Bounds what a pattern may cost for each character: without a limit, counted repetitions multiply.
MAX_PATTERN_PROGRAM = 1_000

TYPE_NAMES = ("string", "number", "boolean", "array", "object")

_LOGICAL = ("$and", "$or", "$nor", "$not")
_COMPARISONS = {member.value: member for member in Comparison}
# What an error shows of a place deep down.
_MAX_PLACE = 200


@dataclass(frozen=True, slots=True)
class _Task:
    """A filter, or the condition of the field `path`, that is still to be read into group number `parent`."""

    value: Any
    parent: int
    is_negated: bool
    depth: int
    place: "_Place"
    path: str | None = None

    def below(
        self, value: Any, group: int, step: str, *, path: str | None = None, negates: bool = False
    ) -> "_Task":
        """Return the task of reading `value`, one level deeper."""
        return _Task(
            value, group, self.is_negated ^ negates, self.depth + 1, self.place.below(step), path
        )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the filter something is: a step below another place, put into words only for an error."""

    step: str
    above: "_Place | None" = None

    def __str__(self) -> str:
        steps: list[str] = []
        place: _Place | None = self
        n_characters = 0
        while place is not None and n_characters <= _MAX_PLACE:
            steps.append(place.step)
            n_characters += len(place.step)
            place = place.above
        text = "".join(reversed(steps))
        return text if place is None and len(text) <= _MAX_PLACE else "…" + text[-_MAX_PLACE:]

    def below(self, step: str) -> "_Place":
        return _Place(step, self)


@dataclass(slots=True)
class _Group:
    """A group whose members are still coming; an int among them is the number of another group."""

    kind: type[AllOf | AnyOf]
    members: "list[int | Not | Condition]" = field(default_factory=list)


def parse(filters: Mapping[str, Any]) -> Node:
    """Return the syntax tree of `filters`. Raises `InvalidInput` naming the path and the operator."""
    reader = _Reader()
    return reader.read(filters)


class _Reader:
    """Reads one filter: groups in the order in which they were found, and what is still to be read."""

    def __init__(self) -> None:
        self._groups = [_Group(AllOf)]
        self._tasks: list[_Task] = []
        self._n_nodes = 0
        self._n_values = 0
        self._n_composite_values = 0
        self._n_patterns = 0

    def read(self, filters: Mapping[str, Any]) -> Node:
        self._tasks.append(_Task(filters, 0, is_negated=False, depth=1, place=_Place("filters")))
        while self._tasks:
            task = self._tasks.pop()
            if task.depth > MAX_DEPTH:
                raise InvalidInput(f"{task.place}: a filter can be nested at most {MAX_DEPTH} deep")
            if task.path is None:
                self._read_filter(task)
            else:
                self._read_condition(task, task.path)
        return self._frozen()

    def _frozen(self) -> Node:
        """Return the groups as nodes; a group's members have higher numbers than itself."""
        nodes: dict[int, Node] = {}
        for number in reversed(range(len(self._groups))):
            group = self._groups[number]
            members = tuple(
                nodes.pop(member) if isinstance(member, int) else member for member in group.members
            )
            nodes[number] = members[0] if len(members) == 1 else group.kind(members)
        return nodes[0]

    def _read_filter(self, task: _Task) -> None:
        """Read an object whose entries must all hold."""
        if not isinstance(task.value, Mapping):
            raise InvalidInput(f"{task.place}: a filter must be an object")
        group = self._group(task, all_of=True)
        for name, value in task.value.items():
            if name in {"$and", "$or", "$nor"}:
                self._read_members(task, group, name, value)
            elif name == "$not":
                if not isinstance(value, Mapping):
                    raise InvalidInput(f"{task.place}.$not: takes a filter, that is an object")
                self._tasks.append(task.below(value, group, ".$not", negates=True))
            elif name.startswith("$"):
                raise InvalidInput(
                    f"{task.place}.{_shown(name)}: unknown operator; here may stand a field or {', '.join(_LOGICAL)}"
                )
            else:
                _check_path(name, task.place)
                self._tasks.append(task.below(value, group, f".{_shown(name)}", path=name))

    def _read_members(self, task: _Task, parent: int, name: str, filters: Any) -> None:
        if not isinstance(filters, list | tuple):
            raise InvalidInput(f"{task.place}.{name}: takes a list of filters")
        negates = name == "$nor"
        group = self._group(task, parent=parent, all_of=name == "$and", negates=negates)
        for position, member in enumerate(filters):
            self._tasks.append(task.below(member, group, f".{name}[{position}]", negates=negates))

    def _read_condition(self, task: _Task, path: str) -> None:
        """Read what is said of one field: a value, or operators."""
        if not isinstance(task.value, Mapping):
            self._add_equality(task, path, task.value, task.place)
            return
        operators = [name for name in task.value if name.startswith("$")]
        if not task.value:
            raise InvalidInput(
                f"{task.place}: an empty condition says nothing; $eq compares with an empty object"
            )
        if not operators:
            _refuse_nested_operators(task.value, task.place)
            self._add_equality(task, path, task.value, task.place)
            return
        if len(operators) < len(task.value):
            raise InvalidInput(
                f"{task.place}: operators ({_shown(operators[0])}) cannot be mixed with plain keys"
            )
        group = self._group(task, all_of=True)
        for name in operators:
            self._add_operator(task, group, path, name)

    def _add_operator(self, task: _Task, group: int, path: str, name: str) -> None:
        place, value = task.place.below(f".{_shown(name)}"), task.value[name]
        below = _Task(value, group, task.is_negated, task.depth, place, path)
        if name == "$not":
            if not isinstance(value, Mapping) or not any(key.startswith("$") for key in value):
                raise InvalidInput(f"{place}: takes an object of operators")
            self._tasks.append(task.below(value, group, ".$not", path=path, negates=True))
        elif name == "$eq":
            self._add_equality(below, path, value, place)
        elif name == "$ne":
            self._add_inequality(below, path, value, place)
        elif name in {"$in", "$nin"}:
            values = self._checked_values(_as_list(value, place), place)
            self._add_membership(below, path, values, negates=name == "$nin")
        elif name in _COMPARISONS:
            self._add(below, Compared(path, _COMPARISONS[name], _number(value, place)))
        elif name in _READERS:
            self._add(
                below,
                _READERS[name](path, value, place),
                negates=name == "$exists" and value is False,
            )
            self._count_pattern(name, place)
        else:
            raise InvalidInput(f"{place}: unknown operator; a field knows {', '.join(_OPERATORS)}")

    def _add_equality(self, task: _Task, path: str, value: Any, place: _Place) -> None:
        if value is None:
            self._add(task, Present(path), negates=True)
        else:
            self._add(task, OneOf(path, self._checked_values((value,), place)))

    def _add_inequality(self, task: _Task, path: str, value: Any, place: _Place) -> None:
        """`$ne`, unlike `$nin` and `$not`, asks for the field to be there."""
        group = self._group(task, all_of=True)
        below = _Task(value, group, task.is_negated, task.depth, place, path)
        self._add(below, Present(path))
        if value is not None:
            self._add(below, OneOf(path, self._checked_values((value,), place)), negates=True)

    def _add_membership(
        self, task: _Task, path: str, values: tuple[Any, ...], *, negates: bool
    ) -> None:
        if None not in values:
            self._add(task, OneOf(path, values), negates=negates)
            return
        group = self._group(task, all_of=False, negates=negates)
        below = _Task(values, group, task.is_negated, task.depth, task.place, path)
        self._add(below, OneOf(path, values), negates=negates)
        self._add(below, Present(path), negates=not negates)

    def _count_pattern(self, name: str, place: _Place) -> None:
        self._n_patterns += name == "$regex"
        if self._n_patterns > MAX_PATTERNS:
            raise InvalidInput(
                f"{place}: a filter can have at most {MAX_PATTERNS} regular expressions"
            )

    def _checked_values(self, values: tuple[Any, ...], place: _Place) -> tuple[Any, ...]:
        """Return `values` if each is a JSON value and they are not too many."""
        self._n_values += len(values)
        self._n_composite_values += sum(
            isinstance(value, Mapping | list | tuple) for value in values
        )
        if self._n_values > MAX_VALUES:
            raise InvalidInput(f"{place}: a filter can compare with at most {MAX_VALUES} values")
        if self._n_composite_values > MAX_COMPOSITE_VALUES:
            raise InvalidInput(
                f"{place}: a filter can compare with at most {MAX_COMPOSITE_VALUES} lists and objects"
            )
        _check_json(values, place)
        return values

    def _add(self, task: _Task, condition: Condition, *, negates: bool = False) -> None:
        self._count(task.place)
        is_negated = task.is_negated ^ negates
        self._groups[task.parent].members.append(Not(condition) if is_negated else condition)

    def _group(
        self, task: _Task, *, all_of: bool, parent: int | None = None, negates: bool = False
    ) -> int:
        """Open a group in that of `task`, or in `parent`; a negated one is of the other kind."""
        self._count(task.place)
        self._groups.append(_Group(AllOf if all_of ^ task.is_negated ^ negates else AnyOf))
        number = len(self._groups) - 1
        self._groups[task.parent if parent is None else parent].members.append(number)
        return number

    def _count(self, place: _Place) -> None:
        self._n_nodes += 1
        if self._n_nodes > MAX_NODES:
            raise InvalidInput(f"{place}: a filter can have at most {MAX_NODES} conditions")


def _check_path(path: str, place: _Place) -> None:
    if len(path) > MAX_PATH_LENGTH or path.count(".") >= MAX_PATH_LEVELS:
        raise InvalidInput(
            f"{place}: a path can have at most {MAX_PATH_LENGTH} characters and {MAX_PATH_LEVELS} levels"
        )


def _refuse_nested_operators(value: Mapping[str, Any], place: _Place) -> None:
    """Raise `InvalidInput` for an operator below a plain key.

    It is meant for a nested field, and as a part of a value it would silently match nothing.
    """
    for name, inner in value.items():
        operator = (
            next((key for key in inner if key.startswith("$")), None)
            if isinstance(inner, Mapping)
            else None
        )
        if operator is not None:
            raise InvalidInput(
                f"{place}.{_shown(name)}.{_shown(operator)}: an operator cannot stand inside a value; reach a nested "
                "field by its dotted path, or compare with such an object by $eq"
            )


def _as_list(value: Any, place: _Place) -> tuple[Any, ...]:
    if value is None or isinstance(value, Mapping):
        raise InvalidInput(f"{place}: takes a list of values")
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _number(value: Any, place: _Place) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or (isinstance(value, float) and not math.isfinite(value)):
        raise InvalidInput(
            f"{place}: takes a finite number; dates are stored and compared as epoch milliseconds"
        )
    number: float = value
    return number


def _read_exists(path: str, value: Any, place: _Place) -> Condition:
    if not isinstance(value, bool):
        raise InvalidInput(f"{place}: takes true or false")
    return Present(path)


def _read_type(path: str, value: Any, place: _Place) -> Condition:
    if value not in TYPE_NAMES:
        raise InvalidInput(f"{place}: takes one of {', '.join(TYPE_NAMES)}")
    return OfType(path, value)


def _read_contains(path: str, value: Any, place: _Place) -> Condition:
    if not isinstance(value, str):
        raise InvalidInput(f"{place}: takes a string")
    return Containing(path, value)


def _read_regex(path: str, value: Any, place: _Place) -> Condition:
    if not isinstance(value, str):
        raise InvalidInput(f"{place}: takes a regular expression, that is a string")
    if len(value) > MAX_PATTERN_LENGTH:
        raise InvalidInput(
            f"{place}: a regular expression can have at most {MAX_PATTERN_LENGTH} characters"
        )
    try:
        program = compiled(value).programsize
    except re2.error as error:
        # RE2 quotes the pattern behind the colon.
        reason = (error.args[0] if error.args else b"").decode(errors="replace").partition(":")[0]
        raise InvalidInput(
            f"{place}: no regular expression that RE2 understands ({reason})"
        ) from None
    if program > MAX_PATTERN_PROGRAM:
        raise InvalidInput(
            f"{place}: the regular expression is too large; use fewer or shorter repetitions"
        )
    return Like(path, value)


def compiled(pattern: str) -> Any:
    """Return `pattern` ready to search in UTF-8 bytes, in time linear in their number. Raises `re2.error`."""
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    # Of which a part is for the states that make matching fast; what needs more is slower, not
    # wrong.
    options.max_mem = 1 << 20
    return re2.compile(pattern.encode(), options)


_READERS: dict[str, Callable[[str, Any, _Place], Condition]] = {
    "$exists": _read_exists,
    "$type": _read_type,
    "$contains": _read_contains,
    "$regex": _read_regex,
}
_OPERATORS = ("$eq", "$ne", *_COMPARISONS, "$in", "$nin", *_READERS, "$not")


def _check_json(values: tuple[Any, ...], place: _Place) -> None:
    """Raise `InvalidInput` unless each of `values` is a JSON value with finite numbers, not nested too deeply."""
    level: list[Any] = list(values)
    for _ in range(MAX_DEPTH):
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
        if not below:
            return
        level = below
    raise InvalidInput(f"{place}: a value can be nested at most {MAX_DEPTH} deep")


def _shown(name: str) -> str:
    """Return a name of the client's as an error shows it."""
    return name if len(name) <= _MAX_PLACE else name[:_MAX_PLACE] + "…"
