"""Bodies above a megabyte: decoded in a thread, one at a time, and in pieces.

The decoder holds the interpreter's lock for as long as one call takes, and makes 32 bytes of each
number. So a large body is decoded without its vectors first, which is ten times as fast; then each
vector becomes an array of float32 by itself, and others have their turn in between.

The numbers and texts that are no vectors are counted before they are decoded: a body of commas
would become twenty times as large in memory.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import msgspec
import numpy as np

from app.api.bodies import IndexRequest
from app.api.item_bodies import (
    QueryRequest,
    SearchRequest,
    UpsertItem,
    UpsertRequest,
    too_many_vectors,
)
from app.api.json_bodies import decode
from app.api.json_problems import Place
from app.domain import MAX_DIMENSION, Vector
from app.errors import BodyProblem, InvalidBody, InvalidInput, TooLarge
from app.observe.stages import timed
from app.settings import Settings

T = TypeVar("T")

_AnyVectors: Any = list[float | list[float]] | None

LARGE_BYTES = 1_000_000
_NULL = msgspec.Raw(b"null")


class _SplitItem(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An `UpsertItem` of which the parts that take long are not decoded."""

    id: str
    vector: msgspec.Raw = _NULL
    contents: str | None = None
    metadata: msgspec.Raw = _NULL


class _SplitUpsert(IndexRequest, frozen=True, kw_only=True):
    """An `UpsertRequest`, split."""

    items: list[_SplitItem]


class _SplitQuery(SearchRequest, frozen=True, kw_only=True):
    """A `QueryRequest`, split."""

    query_vectors: msgspec.Raw = _NULL
    filters: msgspec.Raw = _NULL  # type: ignore[assignment]  # decoded later


@timed("parse")
def decode_large(body: bytes, kind: type[Any], settings: Settings) -> Any:
    """Return `body` as `decode` does. Raises `InvalidBody`, `InvalidInput`, `TooLarge`."""
    # Texts: keys of objects, ids, contents, fields that are asked for.
    _check_values(body.count(b'"') // 2, settings)
    make = _MAKERS.get(kind)
    if make is not None:
        return make(body, settings)
    _check_values(body.count(b","), settings)
    return decode(body, kind)


def _upsert(body: bytes, settings: Settings) -> UpsertRequest:
    split = decode(body, _SplitUpsert)
    _check_values(sum(bytes(item.metadata).count(b",") for item in split.items), settings)
    items = [_item(item, ("body", "items", position)) for position, item in enumerate(split.items)]
    return UpsertRequest(index_name=split.index_name, index_key=split.index_key, items=items)


def _item(item: _SplitItem, place: Place) -> UpsertItem:
    vector = _decoded(item.vector, list[float], (*place, "vector"))
    return UpsertItem(
        id=item.id,
        vector=None if vector is None else cast("Any", _array(vector)),
        contents=item.contents,
        metadata=_decoded(item.metadata, dict[str, Any], (*place, "metadata")),
    )


def _query(body: bytes, settings: Settings) -> QueryRequest:
    split = decode(body, _SplitQuery)
    filters = bytes(split.filters)
    _check_values(filters.count(b","), settings)
    fields = {name: getattr(split, name) for name in split.__struct_fields__}
    # As a part of a body, so that what is wrong with it is said as ever.
    fields["filters"] = decode(b'{"filters":' + filters + b"}", _Filters).filters
    fields["query_vectors"] = _query_vectors(bytes(split.query_vectors), settings)
    return QueryRequest(**fields)


class _Filters(msgspec.Struct, frozen=True):
    filters: dict[str, Any] | None


def _query_vectors(text: bytes, settings: Settings) -> Any:
    """Return the vectors of a query as arrays."""
    place = ("body", "query_vectors")
    n_vectors = text.count(b"[") - 1
    if n_vectors < 1 or b'"' in text or b"{" in text:
        # One vector, or something else.
        if text.count(b",") >= MAX_DIMENSION:
            raise InvalidInput(f"A vector can have at most {MAX_DIMENSION} numbers")
        return decode(text, _AnyVectors, place)
    if n_vectors > settings.max_query_vectors:
        raise too_many_vectors(settings)
    return [
        _array(decode(row, list[float], (*place, position)))
        for position, row in enumerate(_rows(text, place))
    ]


def _rows(text: bytes, place: Place) -> list[bytes]:
    """Return the lists in a JSON list of lists of numbers, each as its text."""
    # Numbers hold no brackets, so each list ends with the next one. What else is in the text
    # between two lists, or in a list, is found here or by whoever decodes it.
    rows: list[bytes] = []
    inside = text.strip()[1:-1]
    *lists, rest = inside.split(b"]")
    for position, one in enumerate(lists):
        between, bracket, row = one.partition(b"[")
        if not bracket or between.strip() != (b"," if position else b""):
            raise _no_list((*place, position))
        rows.append(bracket + row + b"]")
    if rest.strip():
        raise _no_list((*place, len(rows)))
    return rows


def _no_list(place: Place) -> InvalidBody:
    return InvalidBody(BodyProblem("list_type", place, "Input should be a valid list"))


def _decoded(part: msgspec.Raw, kind: type[T], place: Place) -> T | None:
    return None if part is _NULL else decode(bytes(part), cast("type[T]", kind | None), place)


def _array(numbers: list[float]) -> Vector:
    # What float32 cannot hold becomes infinite, and is refused as such.
    with np.errstate(over="ignore"):
        return np.array(numbers, dtype=np.float32)


def _check_values(n_values: int, settings: Settings) -> None:
    limit = settings.max_body_values
    if n_values > limit:
        raise TooLarge(
            f"the body has more than {limit} values beside its vectors: send it in several "
            "requests, or raise SEALDEX_MAX_BODY_VALUES"
        )


_MAKERS: Mapping[type[Any], Callable[[bytes, Settings], Any]] = {
    UpsertRequest: _upsert,
    QueryRequest: _query,
}
