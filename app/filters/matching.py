"""Whether metadata matches a filter: the reference for every answer, whatever the database has preselected.

A filter is compiled into a decision graph: conditions, each with the one to go to when it holds and
the one to go to when it does not. Walking it needs no recursion and stops as soon as the answer is
known.
"""

from collections.abc import Callable, Iterable, Mapping
from operator import ge, gt, le, lt
from typing import Any, TypeAlias, assert_never

from app.domain import Metadata
from app.filters import grammar
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

Predicate: TypeAlias = Callable[[Metadata], bool]
_ElementTest: TypeAlias = Callable[[Any], bool]
_Lookup: TypeAlias = Callable[[Metadata], Iterable[Any]]

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


def _decision_graph(root: Node) -> list[tuple[Predicate, int, int]]:
    """Return for each step its predicate and the step, `_ACCEPT` or `_REJECT`, that follows; the first is 0."""
    graph: list[tuple[Predicate, int, int]] = [(_always, _ACCEPT, _REJECT)]
    tasks: list[tuple[Node, int, int, int]] = [(root, 0, _ACCEPT, _REJECT)]
    while tasks:
        node, step, if_true, if_false = tasks.pop()
        if isinstance(node, Not):
            graph[step] = (_predicate(node.condition), if_false, if_true)
        elif not isinstance(node, AllOf | AnyOf):
            graph[step] = (_predicate(node), if_true, if_false)
        elif not node.members:
            target = if_true if isinstance(node, AllOf) else if_false
            graph[step] = (_always, target, target)
        else:
            # The first member stands where the group stood, the others get steps of their own.
            start = len(graph)
            steps = [step, *range(start, start + len(node.members) - 1)]
            graph += [graph[0]] * (len(node.members) - 1)
            ends = (if_true, if_false)
            for position, member in enumerate(node.members):
                next_step = steps[position + 1] if position + 1 < len(steps) else None
                goes_on = isinstance(node, AllOf)
                on_true = ends[0] if next_step is None or not goes_on else next_step
                on_false = ends[1] if next_step is None or goes_on else next_step
                tasks.append((member, steps[position], on_true, on_false))
    return graph


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
    """Return whether some element of the field passes: a list's members, or else the value itself."""

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
            for end in ends:
                if end >= start:
                    inner = place.get(path[start:end])
                    if type(inner) is dict:
                        places.append((inner, end + 1))
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
    search = grammar.compiled(pattern).search
    return lambda element: type(element) is str and search(element.encode()) is not None


def equal(left: Any, right: Any) -> bool:
    """Whether two JSON values are equal: numbers by value, never a boolean, objects regardless of the order of keys."""
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
        elif (
            _is_number(one) != _is_number(other)
            or isinstance(one, bool) != isinstance(other, bool)
            or one != other
        ):
            return False
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
