"""The syntax tree of a filter: frozen, and with negations at conditions only.

The parser moves every negation down to the conditions (De Morgan's laws), so there are three kinds
of nodes: groups, conditions and negated conditions. `AllOf(())` matches everything, `AnyOf(())`
nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias, TypeVar

Result = TypeVar("Result")


class Comparison(StrEnum):
    """How a number of an item compares with that of the filter."""

    GREATER = "$gt"
    GREATER_OR_EQUAL = "$gte"
    LESS = "$lt"
    LESS_OR_EQUAL = "$lte"


@dataclass(frozen=True, slots=True)
class OneOf:
    """Some element of the field equals one of `values`, which are any JSON values."""

    path: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Present:
    """The field exists and is not null."""

    path: str


@dataclass(frozen=True, slots=True)
class Compared:
    """Some element of the field is a number that compares with `bound` in this way."""

    path: str
    comparison: Comparison
    bound: float


@dataclass(frozen=True, slots=True)
class Like:
    """Some element of the field is a string in which `pattern`, of RE2, matches somewhere."""

    path: str
    pattern: str


@dataclass(frozen=True, slots=True)
class Containing:
    """Some element of the field is a string that contains `text`."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class OfType:
    """The field itself, not its elements, has the JSON type `name`."""

    path: str
    name: str


Condition: TypeAlias = OneOf | Present | Compared | Like | Containing | OfType


@dataclass(frozen=True, slots=True)
class Not:
    """The item does not meet `condition`; an item without the field meets none."""

    condition: Condition


@dataclass(frozen=True, slots=True)
class AllOf:
    """All members match."""

    members: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one member matches."""

    members: "tuple[Node, ...]"


Group: TypeAlias = AllOf | AnyOf
Node: TypeAlias = Group | Not | Condition


def fold(
    root: Node,
    of_leaf: Callable[[Not | Condition], Result],
    of_group: Callable[[Group, list[Result]], Result],
) -> Result:
    """Return the result of `root`, made from the results of its members, from the leaves upwards.

    Without recursion: a filter may be nested as deep as Python's stack.
    """
    nodes = _in_order(root)
    results: list[Result] = []
    # From the end, so that members come before their group; `results` grows backwards.
    for node, places in reversed(nodes):
        if isinstance(node, AllOf | AnyOf):
            own = [results[len(nodes) - 1 - place] for place in places]
            results.append(of_group(node, own))
        else:
            results.append(of_leaf(node))
    return results[-1]


def _in_order(root: Node) -> list[tuple[Node, range]]:
    """Return every node with the places of its members in this list, which come after the node."""
    nodes: list[tuple[Node, range]] = [(root, range(0))]
    for place, (node, _) in enumerate(nodes):
        if isinstance(node, AllOf | AnyOf):
            start = len(nodes)
            nodes.extend((member, range(0)) for member in node.members)
            nodes[place] = (node, range(start, len(nodes)))
    return nodes
