"""Verdicts on metadata: shared by the queries of a search, and never kept for what was replaced."""

from uuid import UUID

import msgspec

from app import filters
from app.crypto import keys
from app.domain import Candidates, Index, Metric, Precision
from app.engine.keyed import KeyedIndex
from app.engine.kind import Row
from app.engine.matches import Matches

INDEX_ID = UUID(int=7)
KEYS = keys.IndexKeys.derive(bytes(32), INDEX_ID)
WHERE = filters.grammar.parse({"colour": "red"})
ITEM = b"k" * 16


def matches() -> Matches:
    index = Index.__new__(Index)
    object.__setattr__(index, "id", INDEX_ID)
    object.__setattr__(index, "metric", Metric.COSINE)
    object.__setattr__(index, "storage_precision", Precision.FLOAT32)
    return Matches(KeyedIndex(index, KEYS, None), WHERE, timeout_ms=0)


def sealed(colour: str) -> bytes:
    return KEYS.metadata.seal(ITEM, msgspec.json.encode({"colour": colour}))


def read(metadata: bytes) -> Candidates:
    return Candidates([ITEM], [b"id"], [b"vector"], [metadata])


def test_an_item_that_was_replaced_since_it_was_looked_at_is_checked_again() -> None:
    seen = matches()
    assert seen.among([Row(ITEM, sealed("red"))]) == [ITEM]
    assert list(seen.kept(read(sealed("blue"))).item_keys) == []
    assert list(seen.kept(read(sealed("red"))).item_keys) == [ITEM]


def test_an_item_that_has_lost_its_metadata_does_not_match() -> None:
    seen = matches()
    assert seen.among([Row(ITEM, sealed("red")), Row(ITEM, None)]) == [ITEM]
