"""Whether metadata matches a filter: this decides, whatever the database has preselected.

A filter is compiled into a decision graph: each condition has one condition to go to when it holds,
and another when it does not. The walk needs no recursion and stops as soon as the answer is known.
"""

from collections.abc import Callable, Iterable, Mapping
from operator import ge, gt, le, lt
from typing import Any, TypeAlias, assert_never

from app.domain import Metadata
from app.filters.nodes import (
    AllOf,
    AnyOf,
    Compared,
    Comparison,
    Condition,
    Containing,
    Group,
    Like,
    Node,
    Not,
    OfType,
    OneOf,
    Present,
)
from app.filters.operands import compiled

Predicate: TypeAlias = Callable[[Metadata], bool]
_ElementTest: TypeAlias = Callable[[Any], bool]
_Lookup: TypeAlias = Callable[[Metadata], Iterable[Any]]
# A condition, where to go when it holds, and where to go otherwise.
_Step: TypeAlias = tuple[Predicate, int, int]
# A node, its step, and where to go from it.
_Placing: TypeAlias = tuple[Node, int, int, int]

_ACCEPT, _REJECT = -1, -2
_COMPARE = {
    Comparison.GREATER: gt,
    Comparison.GREATER_OR_EQUAL: ge,
    Comparison.LESS: lt,
    Comparison.LESS_OR_EQUAL: le,
}
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}
_MISSING = object()


def matches(root: Node, metadata: Metadata) -> bool:
    """Whether `metadata` matches the filter; for many items, `matcher` compiles it once."""
    return matcher(root)(metadata)


def matcher(root: Node) -> Predicate:
    """Return the filter as a function of metadata."""
    if not isinstance(root, AllOf | AnyOf | Not):
        return _predicate(root)
    graph = _decision_graph(root)

    def is_match(metadata: Metadata) -> bool:
        step = 0
        while step >= 0:
            predicate, if_true, if_false = graph[step]
            step = if_true if predicate(metadata) else if_false
        return step == _ACCEPT

    return is_match


def _decision_graph(root: Node) -> list[_Step]:
    """Return for each step its predicate and the two that may follow; the first step is 0."""
    graph: list[_Step] = [(_always, _ACCEPT, _REJECT)]
    tasks: list[_Placing] = [(root, 0, _ACCEPT, _REJECT)]
    while tasks:
        node, step, if_true, if_false = tasks.pop()
        if isinstance(node, Not):
            graph[step] = (_predicate(node.condition), if_false, if_true)
        elif isinstance(node, AllOf | AnyOf):
            tasks += _placed_members(graph, node, step, if_true, if_false)
        else:
            graph[step] = (_predicate(node), if_true, if_false)
    return graph


def _placed_members(
    graph: list[_Step], group: Group, step: int, if_true: int, if_false: int
) -> list[_Placing]:
    """Give each member of a group a step, and return the members with what follows them."""
    is_all = isinstance(group, AllOf)
    if not group.members:
        graph[step] = (_always, if_true, if_true) if is_all else (_always, if_false, if_false)
        return []
    # The first member stands where the group stood, the others get steps of their own.
    steps = [step, *range(len(graph), len(graph) + len(group.members) - 1)]
    graph += [graph[0]] * (len(group.members) - 1)
    following = [*steps[1:], if_true if is_all else if_false]
    return [
        (member, own, following_step, if_false)
        if is_all
        else (member, own, if_true, following_step)
        for member, own, following_step in zip(group.members, steps, following, strict=True)
    ]


def _always(_: Metadata) -> bool:
    return True


def _predicate(condition: Condition) -> Predicate:
    lookup = _lookup(condition.path)
    match condition:
        case Present():
            return lambda metadata: any(value is not None for value in lookup(metadata))
        case OfType():
            types = _TYPES[condition.name]
            return lambda metadata: any(type(value) in types for value in lookup(metadata))
        case OneOf():
            return _some_element(lookup, _is_one_of(condition.values))
        case Compared():
            return _some_element(lookup, _compares(condition))
        case Like():
            return _some_element(lookup, _is_like(condition.pattern))
        case Containing():
            text = condition.text
            return _some_element(lookup, lambda element: type(element) is str and text in element)
        case _:
            assert_never(condition)


def _some_element(lookup: _Lookup, test: _ElementTest) -> Predicate:
    """Return whether an element of the field passes: a list's member, or else the value itself."""

    def predicate(metadata: Metadata) -> bool:
        for value in lookup(metadata):
            if type(value) is list:
                for element in value:
                    if test(element):
                        return True
            elif test(value):
                return True
        return False

    return predicate


def _lookup(path: str) -> _Lookup:
    """Return a function that finds the values at `path`, of which there may be several.

    A dot leads into a nested object, or belongs to a key: "a.b" finds 1 and 2 in {"a": {"b": 1},
    "a.b": 2}.
    """
    if "." not in path:
        return lambda metadata: (metadata[path],) if path in metadata else ()
    ends = [position for position, character in enumerate(path) if character == "."]

    def lookup(metadata: Metadata) -> Iterable[Any]:
        values = []
        # Objects on the way, with the position in `path` from which on the path goes through them.
        places: list[tuple[Mapping[str, Any], int]] = [(metadata, 0)]
        for place, start in places:
            value = place.get(path[start:], _MISSING)
            if value is not _MISSING:
                values.append(value)
            places.extend(
                (inner, end + 1)
                for end in ends
                if end >= start and type(inner := place.get(path[start:end])) is dict
            )
        return values

    return lookup


def _is_one_of(values: tuple[Any, ...]) -> _ElementTest:
    strings = {value for value in values if isinstance(value, str)}
    numbers = {value for value in values if _is_number(value)}
    # True, False and None are what they are; Python would take true for 1.
    singletons = [value for value in values if value is None or isinstance(value, bool)]
    composites = [value for value in values if isinstance(value, list | tuple | Mapping)]

    def test(element: Any) -> bool:
        kind = type(element)
        if kind is str:
            return element in strings
        if kind is int or kind is float:
            return element in numbers
        if kind is list or kind is dict:
            return any(equal(element, value) for value in composites)
        return any(element is value for value in singletons)

    return test


def _compares(condition: Compared) -> _ElementTest:
    compare, bound = _COMPARE[condition.comparison], condition.bound
    # Python compares integers of any size with floats exactly.
    return lambda element: (
        (type(element) is int or type(element) is float) and compare(element, bound)
    )


def _is_like(pattern: str) -> _ElementTest:
    search = compiled(pattern).search
    return lambda element: type(element) is str and search(element.encode()) is not None


def equal(left: Any, right: Any) -> bool:
    """Whether two JSON values are equal: numbers by value, and never equal to a boolean.

    The order of an object's keys does not count.
    """
    pairs = [(left, right)]
    for one, other in pairs:
        if isinstance(one, Mapping):
            if not isinstance(other, Mapping) or one.keys() != other.keys():
                return False
            pairs.extend((one[key], other[key]) for key in one)
        elif isinstance(one, list | tuple):
            if not isinstance(other, list | tuple) or len(one) != len(other):
                return False
            pairs.extend(zip(one, other, strict=True))
        elif not _are_equal_scalars(one, other):
            return False
    return True


def _are_equal_scalars(one: Any, other: Any) -> bool:
    is_boolean = isinstance(one, bool)
    return is_boolean == isinstance(other, bool) and bool(one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
