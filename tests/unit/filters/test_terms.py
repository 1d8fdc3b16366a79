from typing import Any

import pytest

from app.filters import grammar, terms
from app.filters.terms import ITEM_TERM


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"a": "x", "b": 1, "c": 0.5}, {("a", "x"), ("b", 1), ("c", 0.5)}),
        ({"a": True, "b": None, "c": {}, "d": []}, set()),
        ({"a": ["x", 1, True, None, ["y"], {"z": 1}]}, {("a", "x"), ("a", 1)}),
        ({"a": {"b": {"c": "x"}}, "a.b": 1}, {("a.b.c", "x"), ("a.b", 1)}),
        ({"": ""}, {("", "")}),
    ],
    ids=["scalars", "no terms", "list", "paths", "empty"],
)
def test_strings_numbers_and_members_of_lists_have_terms(
    metadata: dict[str, Any], expected: set[Any]
) -> None:
    assert terms.of_item(metadata) == expected


def test_fields_that_are_not_filterable_have_none_nor_what_is_below_them() -> None:
    metadata = {"a": "x", "ab": "y", "b": {"c": "z", "d": ["w"]}, "b.c": 1}
    assert terms.of_item(metadata, {"a", "b.c"}) == {("ab", "y"), ("b.d", "w")}
    assert terms.of_item(metadata, {"b"}) == {("a", "x"), ("ab", "y")}


def test_a_long_list_has_one_term_and_other_fields_keep_theirs() -> None:
    assert terms.of_item({"a": list(range(257)), "b": "x"}) == {("a", None), ("b", "x")}
    assert len(terms.of_item({"a": list(range(256))})) == 256


def test_an_item_with_too_many_terms_has_the_one_that_says_so() -> None:
    assert terms.of_item({f"f{number}": number for number in range(1_025)}) == {ITEM_TERM}


def test_metadata_may_be_deep() -> None:
    metadata: dict[str, Any] = {"a": 1}
    for _ in range(900):
        metadata = {"a": metadata}
    assert terms.of_item(metadata) == {(".".join("a" * 901), 1)}


def test_messages_are_equal_for_equal_numbers_alone() -> None:
    values: list[str | float | None] = [
        1,
        1.5,
        "1",
        2**53,
        2**53 + 1,
        10**5000,
        1e308,
        -1,
        "",
        None,
        5e-324,
    ]
    messages = [terms.message(("a", value)) for value in values]
    assert len(set(messages)) == len(values)
    assert terms.message(("a", 1)) == terms.message(("a", 1.0))
    assert terms.message(("a", 0)) == terms.message(("a", -0.0))
    assert terms.message(("a", "bc")) != terms.message(("ab", "c"))


def clause(path: str, *values: Any) -> frozenset[Any]:
    return frozenset([*((path, value) for value in values), (path, None), ITEM_TERM])


A, B, C = clause("a", 1), clause("b", "x"), clause("c", 2)

CLAUSES: dict[str, tuple[dict[str, Any], set[frozenset[Any]]]] = {
    "equality": ({"a": 1}, {A}),
    "one of": ({"a": {"$in": [1, "y"]}}, {clause("a", 1, "y")}),
    "both": ({"a": 1, "b": "x"}, {A, B}),
    "either": ({"$or": [{"a": 1}, {"b": "x"}]}, {A | B}),
    "both or one": ({"$or": [{"a": 1, "b": "x"}, {"c": 2}]}, {A | C, B | C}),
    "token and range": ({"a": 1, "b": {"$gt": 5}}, {A}),
    "token or range": ({"$or": [{"a": 1}, {"b": {"$gt": 5}}]}, set()),
    "not of not": ({"$not": {"$not": {"a": 1}}}, {A}),
    "nothing": ({"a": {"$in": []}}, {frozenset()}),
    "or of nothing": ({"$or": []}, {frozenset()}),
    "nothing or one": ({"$or": [{"a": {"$in": []}}, {"b": "x"}]}, {B}),
    "boolean": ({"a": True}, set()),
    "null": ({"a": None}, set()),
    "null among others": ({"a": {"$in": [1, None]}}, set()),
    "list": ({"a": [1]}, set()),
    "object": ({"a": {"b": 1}}, set()),
    "not equal": ({"a": {"$ne": 1}}, set()),
    "not among": ({"a": {"$nin": [1]}}, set()),
    "not": ({"$not": {"a": 1}}, set()),
    "there": ({"a": {"$exists": True}}, set()),
    "text": ({"a": {"$contains": "x"}}, set()),
}


@pytest.mark.parametrize(("filters", "expected"), CLAUSES.values(), ids=CLAUSES)
def test_clauses(filters: dict[str, Any], expected: set[frozenset[Any]]) -> None:
    found = terms.clauses(grammar.parse(filters))
    assert set(found) == expected
    assert len(found) == len(expected)


def test_there_are_no_clauses_for_fields_that_are_not_filterable() -> None:
    tree = grammar.parse({"a.b": 1, "c": 2})
    assert terms.clauses(tree, {"a"}) == [C]
    assert not terms.are_exact(tree, {"a"})
    assert terms.are_exact(tree)


def test_clauses_stay_few() -> None:
    both = {"$and": [{f"f{number}": number} for number in range(20)]}
    assert len(terms.clauses(grammar.parse(both))) == terms.MAX_CLAUSES
    either = {"$or": [{f"f{number}": 1, f"g{number}": 2} for number in range(20)]}
    assert len(terms.clauses(grammar.parse(either))) == 1
    assert terms.clauses(grammar.parse({"a": {"$in": list(range(10_001))}})) == []


def test_deep_filters_have_clauses() -> None:
    filters: dict[str, Any] = {"a": 1}
    for number in range(990):
        filters = {"$and": [filters]} if number % 2 else {"$or": [filters, {"a": {"$in": []}}]}
    assert terms.clauses(grammar.parse(filters)) == [A]
