"""The filter language once more, as plainly as it is written down: no tree, no limits, recursion,
Python's own `re`.
"""

import re
from typing import Any


def matches(filters: dict[str, Any], metadata: dict[str, Any]) -> bool:
    return all(_entry(name, value, metadata) for name, value in filters.items())


def _entry(name: str, value: Any, metadata: dict[str, Any]) -> bool:
    match name:
        case "$and":
            return all(matches(one, metadata) for one in value)
        case "$or":
            return any(matches(one, metadata) for one in value)
        case "$nor":
            return not any(matches(one, metadata) for one in value)
        case "$not":
            return not matches(value, metadata)
    return _condition(value, values_at(metadata, name.split(".")))


def values_at(place: Any, parts: list[str]) -> list[Any]:
    """Every value that `parts`, joined by dots in any way, lead to."""
    if not parts:
        return [place]
    if not isinstance(place, dict):
        return []
    found = []
    for n_parts in range(1, len(parts) + 1):
        key = ".".join(parts[:n_parts])
        if key in place:
            found += values_at(place[key], parts[n_parts:])
    return found


def _condition(condition: Any, values: list[Any]) -> bool:
    if isinstance(condition, dict) and any(key.startswith("$") for key in condition):
        return all(_operator(name, operand, values) for name, operand in condition.items())
    return _operator("$eq", condition, values)


def _operator(name: str, operand: Any, values: list[Any]) -> bool:  # noqa: PLR0911 - a sentence for each
    elements = [
        element for value in values for element in (value if isinstance(value, list) else [value])
    ]
    present = any(value is not None for value in values)
    match name:
        case "$eq":
            return (
                not present
                if operand is None
                else any(same(element, operand) for element in elements)
            )
        case "$ne":
            return present and (
                operand is None or not any(same(element, operand) for element in elements)
            )
        case "$in":
            members = operand if isinstance(operand, list) else [operand]
            is_null_wanted = any(member is None for member in members)
            return any(same(element, member) for element in elements for member in members) or (
                is_null_wanted and not present
            )
        case "$nin":
            return not _operator("$in", operand, values)
        case "$exists":
            return present is operand
        case "$type":
            return any(type_name(value) == operand for value in values)
        case "$regex":
            return any(
                isinstance(element, str) and re.search(operand, element) for element in elements
            )
        case "$contains":
            return any(isinstance(element, str) and operand in element for element in elements)
        case "$not":
            return not _condition(operand, values)
    numbers = [element for element in elements if type_name(element) == "number"]
    compare = {
        "$gt": lambda number: number > operand,
        "$gte": lambda number: number >= operand,
        "$lt": lambda number: number < operand,
        "$lte": lambda number: number <= operand,
    }
    return any(compare[name](number) for number in numbers)


def same(left: Any, right: Any) -> bool:
    """JSON equality."""
    if type_name(left) != type_name(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(
            same(*pair) for pair in zip(left, right, strict=True)
        )
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


def type_name(value: Any) -> str:
    names = {
        bool: "boolean",
        int: "number",
        float: "number",
        str: "string",
        list: "array",
        dict: "object",
    }
    return names.get(type(value), "null")
