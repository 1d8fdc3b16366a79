from typing import Any

import pytest

from app.errors import InvalidInput
from app.filters import grammar, matching
from app.filters.nodes import AllOf, AnyOf, Compared, Comparison, Not, OneOf, Present

MESSAGES: dict[str, tuple[dict[str, Any], str]] = {
    "operator of a field": ({"age": {"$near": 1}}, "filters.age.$near: unknown operator"),
    "operator at the top": ({"$all": []}, "filters.$all: unknown operator"),
    "member of a list": (
        {"$and": [{"a": 1}, {"$or": [{"b": {"$gt": "x"}}]}]},
        "filters.$and[1].$or[0].b.$gt: takes a",
    ),
    "below not": (
        {"$not": {"a.b": {"$not": {"$in": None}}}},
        "filters.$not.a.b.$not.$in: takes a list",
    ),
    "operator in a value": (
        {"loc": {"city": {"$eq": "Oslo"}}},
        "filters.loc.city.$eq: an operator cannot stand",
    ),
    "a value that is no JSON": ({"a": {"$in": [b"x"]}}, "filters.a.$in: takes a JSON value"),
    "not of a value": ({"a": {"$not": 5}}, "filters.a.$not: takes an object of operators"),
    "not of plain keys": (
        {"a": {"$not": {"b": 1}}},
        "filters.a.$not: takes an object of operators",
    ),
    "lookbehind": (
        {"a": {"$regex": "(?<=x)y"}},
        "filters.a.$regex: no regular expression that RE2 understands",
    ),
    "backreference": (
        {"a": {"$regex": r"(a)\1"}},
        "filters.a.$regex: no regular expression that RE2 understands",
    ),
    "long pattern": (
        {"a": {"$regex": "a" * 1_001}},
        "filters.a.$regex: a regular expression can have at most",
    ),
    "large pattern": (
        {"a": {"$regex": "(a{30}){30}b{200}"}},
        "filters.a.$regex: the regular expression is too large",
    ),
    "larger pattern": (
        {"a": {"$regex": "((a{100}){100}){100}"}},
        "filters.a.$regex: no regular expression that RE2",
    ),
    "long path": ({"a" * 1_025: 1}, "filters: a path can have at most"),
    "many levels": ({"." * 256: 1}, "filters: a path can have at most"),
}


@pytest.mark.parametrize(("filters", "message"), MESSAGES.values(), ids=MESSAGES)
def test_an_error_names_the_place_and_what_is_wrong(filters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        grammar.parse(filters)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"$or": [{"a": 1}] * 10_001}, "at most 10000 conditions"),
        ({"a": {"$in": list(range(100_001))}}, "at most 100000 values"),
        ({"a": {"$in": [[]] * 101}}, "at most 100 lists and objects"),
        ({"$or": [{"a": {"$regex": "a"}}] * 101}, "at most 100 regular expressions"),
    ],
    ids=["conditions", "values", "lists", "patterns"],
)
def test_a_filter_has_limits(filters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        grammar.parse(filters)


@pytest.mark.parametrize("operator", ["$gt", "$ne", "$eq", "$nin", "$exists"])
def test_every_operator_counts_as_one_condition(operator: str) -> None:
    operand = True if operator == "$exists" else 1
    filters = [{"a": {operator: operand}} for _ in range(grammar.MAX_CONDITIONS)]
    grammar.parse({"$or": filters})
    with pytest.raises(InvalidInput, match="at most 10000 conditions"):
        grammar.parse({"$or": [*filters, {"a": {operator: operand}}]})


@pytest.mark.parametrize("empty", [{}, {"$and": []}], ids=["filter", "list"])
def test_groups_without_conditions_are_not_without_limit(empty: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="at most 40000 groups"):
        grammar.parse({"$or": [empty] * (grammar.MAX_GROUPS + 1)})


def test_a_value_nested_too_deeply_is_refused() -> None:
    value: Any = 1
    for _ in range(1_001):
        value = [value]
    with pytest.raises(InvalidInput, match="nested at most"):
        grammar.parse({"a": {"$eq": value}})


def test_a_place_deep_down_is_shown_by_its_end() -> None:
    filters: dict[str, Any] = {"a": {"$near": 1}}
    for _ in range(500):
        filters = {"$and": [filters]}
    with pytest.raises(InvalidInput) as caught:
        grammar.parse(filters)
    assert str(caught.value).startswith("…")
    assert ".$and[0].a.$near: unknown operator" in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "operand", ["(SECRET", ["SECRET"], {"x": "SECRET"}], ids=["text", "list", "object"]
)
@pytest.mark.parametrize("operator", ["$gt", "$exists", "$regex", "$type", "$near", "$not"])
def test_an_error_holds_no_value_of_the_filter(operator: str, operand: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        grammar.parse({"a": {operator: operand}})
    assert "SECRET" not in str(caught.value)


def test_negations_are_at_the_conditions() -> None:
    tree = grammar.parse(
        {"$not": {"$or": [{"a": 1}, {"$nor": [{"b": {"$gte": 2}}]}, {"c": {"$ne": 3}}]}}
    )
    assert isinstance(tree, AllOf)
    assert set(tree.members) == {
        Not(OneOf("a", (1,))),
        Compared("b", Comparison.GREATER_OR_EQUAL, 2),
        AnyOf((Not(Present("c")), OneOf("c", (3,)))),
    }


@pytest.mark.parametrize(
    ("pattern", "is_found"),
    [
        ("(x+x+)+y", False),
        ("(a|aa)+$", False),
        ("(.*)(.*)(.*)(.*)[^a]$", True),
        ("(a|b)*a(a|b){250}c", False),
    ],
)
def test_a_hostile_pattern_comes_to_an_end(pattern: str, is_found: bool) -> None:
    is_match = matching.matcher(grammar.parse({"f": {"$regex": pattern}}))
    # With backtracking, the first three would not end before the sun does.
    assert is_match({"f": "xab" * 10_000}) == is_found
    is_match({"f": "a" * 30_000})
