"""Every row of the protocol's truth table, for what the service does."""

from typing import Any

import pytest

from app.errors import InvalidInput
from app.filters import grammar, matching
from tests import naive_filters

BIG = 2**53
DEEP = 900

# Row → filter, metadata that match, metadata that do not.
ROWS: dict[str, tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]] = {
    "scalar": (
        {"f": 1},
        [{"f": 1}, {"f": 1.0}, {"f": [2, 1]}],
        [{}, {"f": True}, {"f": "1"}, {"f": [[1]]}],
    ),
    "string": ({"f": "É"}, [{"f": "É"}, {"f": ["É"]}], [{"f": "é"}, {"f": "E\u0301"}, {"f": "ÉÉ"}]),
    "boolean": (
        {"f": True},
        [{"f": True}, {"f": [0, True]}],
        [{"f": 1}, {"f": False}, {"f": "true"}],
    ),
    "$eq scalar": ({"f": {"$eq": "a"}}, [{"f": "a"}, {"f": ["b", "a"]}], [{"f": "A"}, {}]),
    "list": (
        {"f": [1, 2]},
        [{"f": [[1, 2]]}, {"f": [0, [1.0, 2]]}],
        [{"f": [1, 2]}, {"f": [[2, 1]]}, {"f": 1}],
    ),
    "$eq list": ({"f": {"$eq": [1]}}, [{"f": [[1]]}], [{"f": [1]}, {"f": 1}, {"f": [[True]]}]),
    "object": (
        {"f": {"a": 1, "b": 2}},
        [{"f": {"b": 2, "a": 1.0}}, {"f": [{"a": 1, "b": 2}]}],
        [{"f": {"a": 1}}],
    ),
    "$eq object": (
        {"f": {"$eq": {"a": {"$x": 1}}}},
        [{"f": {"a": {"$x": 1}}}],
        [{"f": {"a": {}}}, {"f": 1}],
    ),
    "$eq empty object": ({"f": {"$eq": {}}}, [{"f": {}}, {"f": [{}]}], [{"f": {"a": 1}}, {}]),
    "null": ({"f": None}, [{}, {"f": None}], [{"f": 0}, {"f": []}, {"f": False}, {"f": [None]}]),
    "$eq null": ({"f": {"$eq": None}}, [{}, {"f": None}], [{"f": ""}, {"f": {}}]),
    "$ne": (
        {"f": {"$ne": 1}},
        [{"f": 2}, {"f": []}, {"f": {}}, {"f": True}, {"f": [2, 3]}],
        [{}, {"f": None}, {"f": [1, 2]}],
    ),
    "$ne list": ({"f": {"$ne": [1]}}, [{"f": [1]}, {"f": 1}], [{"f": [[1]]}, {}]),
    "$ne null": ({"f": {"$ne": None}}, [{"f": 0}, {"f": []}, {"f": [None]}], [{}, {"f": None}]),
    "$gt": (
        {"f": {"$gt": 1}},
        [{"f": 2}, {"f": 1.5}, {"f": [0, 2]}],
        [{"f": 1}, {"f": "2"}, {"f": True}, {}, {"f": None}],
    ),
    "$gte": ({"f": {"$gte": 1}}, [{"f": 1.0}], [{"f": 0.5}, {"f": {"a": 2}}]),
    "$lt": ({"f": {"$lt": 0.5}}, [{"f": 0}, {"f": -1e300}], [{"f": 0.5}, {"f": False}, {"f": []}]),
    "$lte": ({"f": {"$lte": -1}}, [{"f": -1}, {"f": [5, -2]}], [{"f": 0}, {"f": "-2"}]),
    "$in": (
        {"f": {"$in": [1, "a"]}},
        [{"f": 1.0}, {"f": ["b", "a"]}],
        [{"f": True}, {"f": "b"}, {}],
    ),
    "$in list and object": (
        {"f": {"$in": [[1], {"a": 1}]}},
        [{"f": [[1]]}, {"f": {"a": 1}}],
        [{"f": [1]}, {"f": {}}],
    ),
    "$in nothing": ({"f": {"$in": []}}, [], [{}, {"f": 1}, {"f": []}]),
    "$in scalar": ({"f": {"$in": "ab"}}, [{"f": "ab"}], [{"f": "a"}]),
    "$in null": (
        {"f": {"$in": [None, 1]}},
        [{}, {"f": None}, {"f": [None]}, {"f": 1}],
        [{"f": 2}, {"f": []}],
    ),
    "$nin": (
        {"f": {"$nin": [1, 2]}},
        [{}, {"f": None}, {"f": 3}, {"f": []}],
        [{"f": 1}, {"f": [3, 2]}],
    ),
    "$nin nothing": ({"f": {"$nin": []}}, [{}, {"f": 1}], []),
    "$nin null": ({"f": {"$nin": [None]}}, [{"f": 1}, {"f": []}], [{}, {"f": None}, {"f": [None]}]),
    "$exists": ({"f": {"$exists": True}}, [{"f": 0}, {"f": {}}, {"f": []}], [{}, {"f": None}]),
    "$exists false": ({"f": {"$exists": False}}, [{}, {"f": None}], [{"f": False}, {"f": []}]),
    "$regex": (
        {"f": {"$regex": "b.d"}},
        [{"f": "abide bad"}, {"f": ["x", "bed"]}],
        [{"f": "BAD"}, {"f": 1}, {"f": [["bad"]]}],
    ),
    "$regex Unicode": ({"f": {"$regex": "^ü.$"}}, [{"f": "ü€"}], [{"f": "ü"}, {"f": "Üx"}]),
    "$contains": (
        {"f": {"$contains": "bi"}},
        [{"f": "abide"}, {"f": ["x", "bid"]}],
        [{"f": "BI"}, {"f": {"bi": 1}}, {}],
    ),
    "$type string": ({"f": {"$type": "string"}}, [{"f": ""}], [{"f": ["a"]}, {"f": 1}, {}]),
    "$type number": (
        {"f": {"$type": "number"}},
        [{"f": 1}, {"f": 0.5}],
        [{"f": True}, {"f": [1]}, {"f": "1"}],
    ),
    "$type boolean": ({"f": {"$type": "boolean"}}, [{"f": False}], [{"f": 0}, {"f": None}]),
    "$type array": ({"f": {"$type": "array"}}, [{"f": []}, {"f": ["a"]}], [{"f": {}}, {"f": "a"}]),
    "$type object": ({"f": {"$type": "object"}}, [{"f": {}}], [{"f": [{}]}, {"f": None}]),
    "$and": ({"$and": [{"f": 1}, {"f": 2}]}, [{"f": [1, 2]}], [{"f": 1}, {}]),
    "$and of nothing": ({"$and": []}, [{}, {"f": 1}], []),
    "$or": ({"$or": [{"f": 1}, {"g": 1}]}, [{"f": 1}, {"g": 1}], [{}, {"f": 2}]),
    "$or of nothing": ({"$or": []}, [], [{}, {"f": 1}]),
    "$nor": ({"$nor": [{"f": 1}, {"g": 1}]}, [{}, {"f": 2}], [{"f": 1}, {"g": 1}]),
    "$nor of nothing": ({"$nor": []}, [{}, {"f": 1}], []),
    "$not": ({"$not": {"f": 1}}, [{}, {"f": None}, {"f": 2}], [{"f": 1}, {"f": [1, 2]}]),
    "$not of everything": ({"$not": {}}, [], [{}, {"f": 1}]),
    "$not of two": ({"$not": {"f": 1, "g": 1}}, [{"f": 1}, {}], [{"f": 1, "g": 1}]),
    "$not of a condition": ({"f": {"$not": {"$gt": 1}}}, [{}, {"f": 1}, {"f": "2"}], [{"f": 2}]),
    "two keys": ({"f": 1, "g": "a"}, [{"f": 1, "g": "a"}], [{"f": 1}, {"g": "a"}]),
    "two operators": ({"f": {"$gt": 1, "$lt": 3}}, [{"f": 2}, {"f": [0, 5]}], [{"f": 3}, {"f": 1}]),
    "nested path": (
        {"a.b.c": 1},
        [{"a": {"b": {"c": 1}}}],
        [{"a": {"b": [{"c": 1}]}}, {"a": [{"b": {"c": 1}}]}, {"a": 1}],
    ),
    "no positions": ({"f.0": 1}, [{"f": {"0": 1}}], [{"f": [1]}]),
    "key with a dot": (
        {"a.b": 1},
        [{"a.b": 1}, {"a": {"b": 1}}, {"a.b": 2, "a": {"b": 1}}],
        [{"a": {"c": 1}}, {"a.b": 2}],
    ),
    "dots on the way": (
        {"a.b.c.d": 1},
        [{"a.b": {"c.d": 1}}, {"a": {"b.c": {"d": 1}}}],
        [{"a.b": {"c": 1}}],
    ),
    "null beside a value": (
        {"a.b": {"$exists": True}},
        [{"a.b": None, "a": {"b": 1}}],
        [{"a.b": None}],
    ),
    "empty name": ({"": 1}, [{"": 1}], [{}, {"a": 1}]),
    "empty names": ({".": 1}, [{"": {"": 1}}, {".": 1}], [{"": 1}]),
    "big integers": (
        {"f": BIG + 1},
        [{"f": BIG + 1}],
        [{"f": BIG}, {"f": BIG + 2}, {"f": float(BIG)}],
    ),
    "a big range": ({"f": {"$gt": BIG}}, [{"f": BIG + 1}], [{"f": BIG}, {"f": float(BIG)}]),
    "integers beyond float": (
        {"f": {"$lt": 10**400}},
        [{"f": 1e308}, {"f": 10**400 - 1}],
        [{"f": 10**400}],
    ),
    "everything": ({}, [{}, {"f": 1}], []),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_row(row: tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]) -> None:
    filters, matching_metadata, other_metadata = row
    tree = grammar.parse(filters)
    expected = [(one, True) for one in matching_metadata] + [(one, False) for one in other_metadata]
    for metadata, is_match in expected:
        assert matching.matches(tree, metadata) is is_match, metadata
        assert naive_filters.matches(filters, metadata) is is_match, metadata


def test_regex_takes_inline_flags() -> None:
    assert matching.matches(grammar.parse({"f": {"$regex": "(?i)BAD$"}}), {"f": "too bad"})


REFUSED: dict[str, dict[str, Any]] = {
    "$gt string": {"f": {"$gt": "a"}},
    "$gte boolean": {"f": {"$gte": True}},
    "$lt list": {"f": {"$lt": [1]}},
    "$lte object": {"f": {"$lte": {}}},
    "$gt null": {"f": {"$gt": None}},
    "$in null": {"f": {"$in": None}},
    "$nin null": {"f": {"$nin": None}},
    "$exists number": {"f": {"$exists": 1}},
    "$exists null": {"f": {"$exists": None}},
    "$regex bad": {"f": {"$regex": "(a"}},
    "$regex number": {"f": {"$regex": 1}},
    "$contains number": {"f": {"$contains": 1}},
    "$type unknown": {"f": {"$type": "date"}},
    "$and object": {"$and": {"f": 1}},
    "$or null": {"$or": None},
    "$nor string": {"$nor": "f"},
    "member no object": {"$and": [{"f": 1}, 1]},
    "$not list": {"$not": [{"f": 1}]},
    "mixed": {"f": {"$gt": 1, "a": 1}},
    "unknown operator": {"f": {"$near": 1}},
    "unknown logical operator": {"$where": 1},
    "operator of a field at the top": {"$eq": 1},
    "empty condition": {"f": {}},
    "NaN": {"f": float("nan")},
    "infinity in a list": {"f": {"$in": [float("inf")]}},
}


@pytest.mark.parametrize("filters", REFUSED.values(), ids=REFUSED)
def test_refused(filters: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"^filters\."):
        grammar.parse(filters)


@pytest.mark.parametrize("operator", ["$not", "$and", "$or"])
def test_a_filter_may_be_nested_900_deep_and_no_deeper_than_1000(operator: str) -> None:
    def nested(depth: int) -> dict[str, Any]:
        filters: dict[str, Any] = {"f": 1}
        for _ in range(depth):
            filters = {operator: filters if operator == "$not" else [filters]}
        return filters

    assert matching.matches(grammar.parse(nested(DEEP)), {"f": 1})
    with pytest.raises(InvalidInput, match="nested at most 1000 deep"):
        grammar.parse(nested(1_000))
