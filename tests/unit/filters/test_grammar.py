import time
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
    "pattern", ["(x+x+)+y", "(a|aa)+$", "(.*)(.*)(.*)(.*)[^a]$", "(a|b)*a(a|b){250}c"]
)
def test_a_hostile_pattern_takes_time_in_proportion_to_the_text(pattern: str) -> None:
    is_match = matching.matcher(grammar.parse({"f": {"$regex": pattern}}))
    start = time.perf_counter()
    is_match({"f": "xab" * 10_000})
    is_match({"f": "a" * 30_000})
    # With backtracking, the first three would not end before the sun does.
    assert time.perf_counter() - start < 5
