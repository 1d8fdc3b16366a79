"""The filter language: from a JSON object to a syntax tree, or to an error that names the place.

    filter      an object whose entries must all hold
    entry       "$and" | "$or" | "$nor": list of filters
                "$not": filter
                path: condition
    path        names of fields joined by dots, through nested objects
    condition   a JSON value (equality), or an object of operators that must all hold:
                $eq $ne $gt $gte $lt $lte $in $nin $exists $regex $contains $type $not

Nothing here calls itself: a filter may be nested as deep as `MAX_DEPTH`, which is more than
Python's stack takes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from app.errors import InvalidInput
from app.filters.nodes import (
    AllOf,
    AnyOf,
    Compared,
    Comparison,
    Condition,
    Node,
    Not,
    OneOf,
    Present,
)
from app.filters.operands import (
    READERS,
    Place,
    as_list,
    as_number,
    check_json,
    check_path,
    refuse_nested_operators,
    shown,
)

MAX_DEPTH = 1_000
# Conditions of a filter; members of all its lists. A condition in an object of its own takes two
# groups, so groups have a limit that conditions reach first, unless groups are empty.
MAX_CONDITIONS = 10_000
MAX_GROUPS = 4 * MAX_CONDITIONS
MAX_VALUES = 100_000
# Comparing with a list or an object cannot be looked up in a set.
MAX_COMPOSITE_VALUES = 100
MAX_PATTERNS = 100

_LOGICAL = ("$and", "$or", "$nor", "$not")
_COMPARISONS = {member.value: member for member in Comparison}


@dataclass(frozen=True, slots=True)
class _Task:
    """A filter that is still to be read into the group number `parent`."""

    value: Any
    parent: int
    is_negated: bool
    depth: int
    place: Place


@dataclass(frozen=True, slots=True)
class _ConditionTask(_Task):
    """What is said of the field `path`, still to be read into the group number `parent`."""

    path: str


@dataclass(slots=True)
class _Group:
    """A group whose members are still coming; an int among them is the number of another group."""

    kind: type[AllOf | AnyOf]
    members: "list[int | Not | Condition]" = field(default_factory=list)


def parse(filters: Mapping[str, Any]) -> Node:
    """Return the syntax tree of `filters`. Raises `InvalidInput` naming path and operator."""
    return _Reader().read(filters)


class _Reader:
    """Reads one filter: its groups in the order in which they come, and what is still to read."""

    def __init__(self) -> None:
        self._groups = [_Group(AllOf)]
        self._tasks: list[_Task] = []
        self._limits = _Limits()

    def read(self, filters: Mapping[str, Any]) -> Node:
        """Return the syntax tree. Raises `InvalidInput`."""
        self._tasks.append(_Task(filters, 0, is_negated=False, depth=1, place=Place("filters")))
        while self._tasks:
            task = self._tasks.pop()
            if task.depth > MAX_DEPTH:
                raise InvalidInput(f"{task.place}: a filter can be nested at most {MAX_DEPTH} deep")
            if isinstance(task, _ConditionTask):
                self._read_condition(task)
            else:
                self._read_filter(task)
        return self._frozen()

    def _frozen(self) -> Node:
        """Return the groups as nodes; a group's members have higher numbers than the group."""
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
            if not name.startswith("$"):
                self._read_field(task, group, name, value)
            elif name == "$not":
                self._read_negation(task, group, value)
            elif name in _LOGICAL:
                self._read_members(task, group, name, value)
            else:
                raise InvalidInput(
                    f"{task.place}.{shown(name)}: unknown operator; "
                    f"here may stand a field or {', '.join(_LOGICAL)}"
                )

    def _read_field(self, task: _Task, group: int, path: str, value: Any) -> None:
        check_path(path, task.place)
        place = task.place.below(f".{shown(path)}")
        self._tasks.append(
            _ConditionTask(value, group, task.is_negated, task.depth + 1, place, path)
        )

    def _read_negation(self, task: _Task, group: int, value: Any) -> None:
        if not isinstance(value, Mapping):
            raise InvalidInput(f"{task.place}.$not: takes a filter, that is an object")
        place = task.place.below(".$not")
        self._tasks.append(_Task(value, group, not task.is_negated, task.depth + 1, place))

    def _read_members(self, task: _Task, parent: int, name: str, filters: Any) -> None:
        if not isinstance(filters, list | tuple):
            raise InvalidInput(f"{task.place}.{name}: takes a list of filters")
        is_negated = task.is_negated ^ (name == "$nor")
        group = self._add_group(parent, all_of=(name == "$and") ^ is_negated, place=task.place)
        for position, member in enumerate(filters):
            place = task.place.below(f".{name}[{position}]")
            self._tasks.append(_Task(member, group, is_negated, task.depth + 1, place))

    def _read_condition(self, task: _ConditionTask) -> None:
        """Read what is said of one field: a value, or operators."""
        operators = _operators(task)
        if not operators:
            _add_equality(self, task)
            return
        group = self._group(task, all_of=True)
        for name in operators:
            add = _ADDERS.get(name)
            place = task.place.below(f".{shown(name)}")
            if add is None:
                raise InvalidInput(f"{place}: unknown operator; a field knows {', '.join(_ADDERS)}")
            operand = task.value[name]
            add(
                self,
                _ConditionTask(operand, group, task.is_negated, task.depth, place, task.path),
            )

    def add(self, task: _ConditionTask, condition: Condition, *, negates: bool = False) -> None:
        """Add a condition, of one or more that an operator stands for, to the group of `task`."""
        is_negated = task.is_negated ^ negates
        self._groups[task.parent].members.append(Not(condition) if is_negated else condition)

    def add_values(
        self, task: _ConditionTask, values: tuple[Any, ...], *, negates: bool = False
    ) -> None:
        """Add the condition that an element is one of `values`, which must be JSON."""
        self._limits.count_values(values, task.place)
        check_json(values, task.place)
        self.add(task, OneOf(task.path, values), negates=negates)

    def count(self, task: _ConditionTask, *, n_patterns: int = 0) -> None:
        """Count an operator of the client's as one condition. Raises `InvalidInput`."""
        self._limits.count_condition(task.place, n_patterns)

    def again(self, task: _ConditionTask) -> None:
        """Read the negation of what `task` says, later."""
        self._tasks.append(
            _ConditionTask(
                task.value,
                task.parent,
                not task.is_negated,
                task.depth + 1,
                task.place,
                task.path,
            )
        )

    def within(
        self, task: _ConditionTask, *, all_of: bool, negates: bool = False
    ) -> _ConditionTask:
        """Return `task` in a new group, for an operator that stands for several conditions."""
        group = self._group(task, all_of=all_of ^ negates)
        return _ConditionTask(task.value, group, task.is_negated, task.depth, task.place, task.path)

    def _group(self, task: _Task, *, all_of: bool) -> int:
        """Open a group in that of `task`; a negated one is of the other kind."""
        return self._add_group(task.parent, all_of=all_of ^ task.is_negated, place=task.place)

    def _add_group(self, parent: int, *, all_of: bool, place: Place) -> int:
        number = len(self._groups)
        if number > MAX_GROUPS:
            raise InvalidInput(f"{place}: a filter can have at most {MAX_GROUPS} groups")
        self._groups.append(_Group(AllOf if all_of else AnyOf))
        self._groups[parent].members.append(number)
        return number


class _Limits:
    """How much of each kind a filter has so far."""

    def __init__(self) -> None:
        self._n_conditions = self._n_patterns = 0
        self._n_values = self._n_composite_values = 0

    def count_condition(self, place: Place, n_patterns: int) -> None:
        """Count a condition, and the regular expression in it. Raises `InvalidInput`."""
        self._n_conditions += 1
        self._n_patterns += n_patterns
        if self._n_conditions > MAX_CONDITIONS:
            raise InvalidInput(f"{place}: a filter can have at most {MAX_CONDITIONS} conditions")
        if self._n_patterns > MAX_PATTERNS:
            raise InvalidInput(
                f"{place}: a filter can have at most {MAX_PATTERNS} regular expressions"
            )

    def count_values(self, values: tuple[Any, ...], place: Place) -> None:
        """Count the values of a condition. Raises `InvalidInput`."""
        self._n_values += len(values)
        self._n_composite_values += sum(
            isinstance(value, Mapping | list | tuple) for value in values
        )
        if self._n_values > MAX_VALUES:
            raise InvalidInput(f"{place}: a filter can compare with at most {MAX_VALUES} values")
        if self._n_composite_values > MAX_COMPOSITE_VALUES:
            raise InvalidInput(
                f"{place}: a filter can compare with at most {MAX_COMPOSITE_VALUES} lists "
                "and objects"
            )


def _operators(task: _ConditionTask) -> list[str]:
    """Return the operators of a condition, or none for a value that is to be equal.

    Raises `InvalidInput` for an object that could be meant as either.
    """
    if not isinstance(task.value, Mapping):
        return []
    if not task.value:
        raise InvalidInput(
            f"{task.place}: an empty condition says nothing; $eq compares with an empty object"
        )
    operators = [name for name in task.value if name.startswith("$")]
    if not operators:
        refuse_nested_operators(task.value, task.place)
    elif len(operators) < len(task.value):
        raise InvalidInput(
            f"{task.place}: operators ({shown(operators[0])}) cannot be mixed with plain keys"
        )
    return operators


def _add_equality(reader: _Reader, task: _ConditionTask) -> None:
    reader.count(task)
    if task.value is None:
        reader.add(task, Present(task.path), negates=True)
    else:
        reader.add_values(task, (task.value,))


def _add_inequality(reader: _Reader, task: _ConditionTask) -> None:
    """`$ne`, unlike `$nin` and `$not`, asks for the field to be there."""
    reader.count(task)
    both = reader.within(task, all_of=True)
    reader.add(both, Present(task.path))
    if task.value is not None:
        reader.add_values(both, (task.value,), negates=True)


def _add_membership(reader: _Reader, task: _ConditionTask, *, negates: bool = False) -> None:
    reader.count(task)
    values = as_list(task.value, task.place)
    if None not in values:
        reader.add_values(task, values, negates=negates)
        return
    # A field that is not there, or null, is one of these values, too.
    either = reader.within(task, all_of=False, negates=negates)
    reader.add_values(either, values, negates=negates)
    reader.add(either, Present(task.path), negates=not negates)


def _add_exclusion(reader: _Reader, task: _ConditionTask) -> None:
    _add_membership(reader, task, negates=True)


def _add_negation(reader: _Reader, task: _ConditionTask) -> None:
    value = task.value
    if not isinstance(value, Mapping) or not any(key.startswith("$") for key in value):
        raise InvalidInput(f"{task.place}: takes an object of operators")
    reader.again(task)


def _adder_of_comparison(comparison: Comparison) -> "_Adder":
    def add(reader: _Reader, task: _ConditionTask) -> None:
        reader.count(task)
        bound = as_number(task.value, task.place)
        reader.add(task, Compared(task.path, comparison, bound))

    return add


def _adder_of_test(name: str) -> "_Adder":
    def add(reader: _Reader, task: _ConditionTask) -> None:
        condition = READERS[name](task.path, task.value, task.place)
        reader.count(task, n_patterns=name == "$regex")
        reader.add(task, condition, negates=name == "$exists" and task.value is False)

    return add


_Adder: TypeAlias = Callable[[_Reader, _ConditionTask], None]
_ADDERS: dict[str, _Adder] = {
    "$eq": _add_equality,
    "$ne": _add_inequality,
    **{name: _adder_of_comparison(comparison) for name, comparison in _COMPARISONS.items()},
    "$in": _add_membership,
    "$nin": _add_exclusion,
    **{name: _adder_of_test(name) for name in READERS},
    "$not": _add_negation,
}
