"""What the blind index knows of metadata: terms, and the terms that a filter's matches must have.

A term is a field path with a string or a number found there, alone or in a list. Only the term's
keyed hash, a token, is stored. Booleans and null have no term (two values would show the whole
column); nor have objects, nor fields that are declared `filterable: false` or lie below one. A
field with more than `MAX_TERMS_OF_FIELD` values in a list has one term instead, which says that
there are too many values; an item with more than `MAX_TERMS_OF_ITEM` terms has just `ITEM_TERM`.

    message     type (1) ‖ length of the path in bytes (4, big-endian) ‖ path in UTF-8 ‖ value
    string      type "s", value in UTF-8
    number      type "n", an integral one in hexadecimal, others as Python writes them, so that 1
                and 1.0 are the same
    too many    type "f", no value; for the item as a whole the path is empty, too
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeAlias

from app.domain import Metadata
from app.filters.nodes import AllOf, Condition, Group, Node, Not, OneOf, fold

MAX_TERMS_OF_FIELD = 256
MAX_TERMS_OF_ITEM = 1_024
# More conditions than these make a search no better; one with more terms takes longer to look up
# than to check.
MAX_CLAUSES = 8
MAX_TERMS_OF_CLAUSE = 10_000

Term: TypeAlias = tuple[str, str | float | None]
# All clauses must be met; to meet one takes one of its terms.
Clauses: TypeAlias = list[frozenset[Term]]

# A value of None says "too many", here for the item as a whole. (A field with the empty name shares
# it, at no harm.)
ITEM_TERM: Term = ("", None)

_MAX_DISTRIBUTED = 8
# A boolean is an int to isinstance, not to type.
_TERM_TYPES = (str, int, float)


def of_item(metadata: Metadata, unfilterable: Collection[str] = ()) -> set[Term]:
    """Return the terms of an item with `metadata`; fields named in `unfilterable` have none."""
    terms = _in_metadata(metadata)
    if unfilterable:
        terms = {term for term in terms if is_filterable(term[0], unfilterable)}
    return terms if len(terms) <= MAX_TERMS_OF_ITEM else {ITEM_TERM}


def _in_metadata(metadata: Metadata) -> set[Term]:
    terms: set[Term] = set()
    places: list[tuple[str, Mapping[str, Any]]] = [("", metadata)]
    for prefix, place in places:
        for name, value in place.items():
            kind = type(value)
            if kind in _TERM_TYPES:
                terms.add((prefix + name, value))
            elif kind is list:
                terms |= _of_list(prefix + name, value)
            elif kind is dict:
                places.append((f"{prefix}{name}.", value))
    return terms


def _of_list(path: str, members: list[Any]) -> set[Term]:
    values = {member for member in members if type(member) in _TERM_TYPES}
    return (
        {(path, value) for value in values} if len(values) <= MAX_TERMS_OF_FIELD else {(path, None)}
    )


def is_filterable(path: str, unfilterable: Collection[str]) -> bool:
    """Whether terms may be made of the field at `path`."""
    return not any(path == name or path.startswith(f"{name}.") for name in unfilterable)


def message(term: Term) -> bytes:
    """Return what is hashed of a term."""
    path, value = term
    name = path.encode()
    if isinstance(value, str):
        kind, text = b"s", value.encode()
    elif value is None:
        kind, text = b"f", b""
    else:
        kind, text = b"n", _number_text(value).encode()
    return kind + len(name).to_bytes(4, "big") + name + text


def _number_text(value: float) -> str:
    # Hexadecimal, as Python refuses to write very long integers in decimal.
    return f"{int(value):x}" if isinstance(value, int) or value.is_integer() else repr(value)


def clauses(root: Node, unfilterable: Collection[str] = ()) -> Clauses:
    """Return what every item that matches the filter must have; no clause means any item may match.

    A clause without terms is never met: nothing matches.
    """
    return fold(root, lambda leaf: _of_leaf(leaf, unfilterable), _of_group)


def are_exact(root: Node, unfilterable: Collection[str] = ()) -> bool:
    """Whether an item that meets the clauses very probably matches: hardly any is read in vain."""
    return fold(
        root, lambda leaf: bool(_of_leaf(leaf, unfilterable)), lambda _, members: all(members)
    )


def _of_leaf(leaf: Not | Condition, unfilterable: Collection[str]) -> Clauses:
    """Return the clause of a condition, or none where terms cannot answer the condition."""
    if not isinstance(leaf, OneOf) or not is_filterable(leaf.path, unfilterable):
        return []
    if len(leaf.values) > MAX_TERMS_OF_CLAUSE:
        return []
    if any(type(value) not in _TERM_TYPES for value in leaf.values):
        return []
    if not leaf.values:
        return [frozenset()]
    wanted = [(leaf.path, value) for value in leaf.values]
    return [frozenset([*wanted, (leaf.path, None), ITEM_TERM])]


def _of_group(group: Group, members: list[Clauses]) -> Clauses:
    if isinstance(group, AllOf):
        return _strongest(clause for member in members for clause in member)
    if not all(members):
        return []
    return [clause for clause in _any_of(members) if len(clause) <= MAX_TERMS_OF_CLAUSE]


def _any_of(members: list[Clauses]) -> Clauses:
    """Return the clauses of a group of which one member must match, from those of each member.

    (a and b) or c is (a or c) and (b or c). Where that would give too many clauses, the strongest
    clause of each member has to do.
    """
    has_choice = [member for member in members if len(member) > 1]
    if len(has_choice) > _MAX_DISTRIBUTED:
        return [frozenset[Term]().union(*(member[0] for member in members))]
    found = [frozenset[Term]().union(*(member[0] for member in members if len(member) == 1))]
    for member in has_choice:
        found = _strongest(one | other for one in found for other in member)
    return found


def _strongest(found: Iterable[frozenset[Term]]) -> Clauses:
    """Return the clauses with the fewest terms, which few items meet."""
    return sorted(dict.fromkeys(found), key=len)[:MAX_CLAUSES]
