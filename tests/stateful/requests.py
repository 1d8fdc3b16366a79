"""Random requests, with few names and few ids, and numbers that are exact in every precision."""

from typing import Any

from hypothesis import strategies as st

from tests import filter_strategies
from tests.stateful.model import Item, Vector

# The routes that need the key of an index, with what else they need.
KEYED: dict[str, dict[str, Any]] = {
    "indexes/describe": {},
    "indexes/stats": {},
    "indexes/delete": {},
    "indexes/train": {},
    "vectors/upsert": {"items": [{"id": "a", "vector": [9.0, 9.0]}]},
    "vectors/query": {"query_vectors": [1.0, 2.0]},
    "vectors/get": {"ids": ["a"]},
    "vectors/delete": {"ids": ["a"]},
    "vectors/list_ids": {},
    "vectors/num_vectors": {},
}
# What is wrong with the request of an index, whatever is in it.
BAD: dict[str, tuple[str, dict[str, Any]]] = {
    "no items": ("vectors/upsert", {"items": []}),
    "items that are none": ("vectors/upsert", {"items": "all"}),
    "an item without a vector": ("vectors/upsert", {"items": [{"id": "a"}]}),
    "an empty vector": ("vectors/upsert", {"items": [{"id": "a", "vector": []}]}),
    "an empty id": ("vectors/upsert", {"items": [{"id": "", "vector": [1.0, 2.0]}]}),
    "an id that is a number": ("vectors/upsert", {"items": [{"id": 1, "vector": [1.0, 2.0]}]}),
    "a number that does not fit": (
        "vectors/upsert",
        {"items": [{"id": "a", "vector": [1e39, 2.0]}]},
    ),
    "a good item before a bad one": (
        "vectors/upsert",
        {"items": [{"id": "a", "vector": [9.0, 9.0]}, {"id": "b", "vector": [9.0, 9.0, 9.0]}]},
    ),
    "metadata that is a list": (
        "vectors/upsert",
        {"items": [{"id": "a", "vector": [1.0], "metadata": []}]},
    ),
    "no top_k": ("vectors/query", {"query_vectors": [1.0, 2.0], "top_k": 0}),
    "half a top_k": ("vectors/query", {"query_vectors": [1.0, 2.0], "top_k": 1.5}),
    "no query": ("vectors/query", {}),
    "an unknown operator": (
        "vectors/query",
        {"query_vectors": [1.0, 2.0], "filters": {"a": {"$near": 1}}},
    ),
    "a bad pattern": ("vectors/num_vectors", {"filters": {"a": {"$regex": "("}}}),
    "no ids": ("vectors/get", {}),
    "ids that are numbers": ("vectors/delete", {"ids": [1]}),
    "negative lists": ("indexes/train", {"n_lists": -1}),
}

_coordinates = st.integers(-4, 4).map(float)
ids = st.sampled_from([*"abcdef", "é", "0", "row-1", "row-2", "row-999"])
texts = st.sampled_from(["", "text", "text of é and \U0001f512", "\x00\n"])
metadata = st.one_of(st.just({}), filter_strategies.metadata)


def vectors(dimension: int) -> st.SearchStrategy[Vector]:
    """Vectors of small whole numbers: many are equal, or equally far."""
    return st.tuples(*[_coordinates] * dimension)


def items(dimension: int) -> st.SearchStrategy[Item]:
    """Items with and without contents and metadata."""
    return st.builds(Item, vectors(dimension), texts, metadata)


def batches(dimension: int) -> st.SearchStrategy[list[tuple[str, Item]]]:
    """Some items, now and then two with one id."""
    return st.lists(st.tuples(ids, items(dimension)), min_size=1, max_size=6)


def thousand(dimension: int) -> list[tuple[str, Item]]:
    """So many items that a training makes lists; few places, so that many are equally far."""
    return [
        (
            f"row-{number}",
            Item(
                tuple(float((number * (place + 3)) % 17 - 8) / 2 for place in range(dimension)),
                "" if number % 3 else f"contents {number}",
                {"a": number % 50, "b": ["x", "xy"][number % 2]} if number % 5 else {},
            ),
        )
        for number in range(1_100)
    ]


def on_the_wire(name: str, item: Item) -> dict[str, Any]:
    """An item as upsert takes it; what is empty is left out."""
    sent: dict[str, Any] = {"id": name, "vector": list(item.vector)}
    return (
        sent
        | ({"contents": item.contents} if item.contents else {})
        | ({"metadata": item.metadata} if item.metadata else {})
    )
