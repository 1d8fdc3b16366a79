"""Bodies of requests about items, and their way to the domain."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from msgspec import Struct

from app.api.bodies import IndexRequest, Integer, refuse_unserved
from app.api.json_bodies import integer
from app.domain import Item, PackedItems, PackedVectors, Query
from app.errors import BodyProblem, InvalidBody, InvalidInput, TooLarge
from app.settings import Settings

_DEFAULT_TOP_K = 100
# `vector` may be returned, but does nothing in the service that clients know; `contents` must not
# be.
_QUERY_INCLUDES = frozenset({"distance", "metadata"})
_GET_INCLUDES = frozenset({"vector", "contents", "metadata"})
_FLOAT32_BYTES = 4


class UpsertItem(Struct, frozen=True, kw_only=True, gc=False):
    """One item of an upsert."""

    id: str
    vector: list[float] | None = None
    contents: str | None = None
    metadata: dict[str, Any] | None = None


class UpsertRequest(IndexRequest, frozen=True, kw_only=True):
    """Body of upsert."""

    items: list[UpsertItem]

    def to_items(self, settings: Settings) -> list[Item]:
        """Return the items to store. Raises `InvalidInput`, `TooLarge`."""
        _check_number(len(self.items), settings)
        _check_depth([item.metadata for item in self.items], settings.max_metadata_depth)
        return [Item(item.id, item.vector, item.contents, item.metadata) for item in self.items]


class BinaryUpsertBatch(Struct, frozen=True, kw_only=True):
    """Items whose vectors are packed: base64 of row-major little-endian float32."""

    ids: list[str]
    vectors_b64: str
    dimension: int | float
    metadata: list[dict[str, Any] | None] | None = None
    contents: list[str | None] | None = None


class BinaryUpsertRequest(IndexRequest, frozen=True, kw_only=True):
    """Body of upsert_binary."""

    batch: BinaryUpsertBatch

    def to_items(self, settings: Settings) -> PackedItems:
        """Return the items to store. Raises `InvalidInput`, `TooLarge`."""
        batch = self.batch
        metadata = batch.metadata or ()
        _check_number(len(batch.ids), settings)
        _check_depth(metadata, settings.max_metadata_depth)
        dimension = integer(batch.dimension, "batch", "dimension") or 0
        vectors = PackedVectors(batch.vectors_b64, dimension)
        return PackedItems(batch.ids, vectors, batch.contents or (), metadata)


class SearchRequest(IndexRequest, frozen=True, kw_only=True):
    """What both kinds of query say beside their vectors; `query_contents` is one text or a list."""

    query_contents: str | list[str] | None = None
    top_k: Integer = None
    n_probes: Integer = None
    greedy: bool | None = None
    rerank_mult: Integer = None
    target_recall: float | None = None
    filters: dict[str, Any] | None = None
    include: frozenset[str] = frozenset()
    text: str | None = None
    text_fields: list[str] | None = None

    def search(self, vectors: list[list[float]] | PackedVectors | None) -> Query:
        """Return the search for what is nearest to `vectors`."""
        top_k = integer(self.top_k, "top_k")
        n_probes = integer(self.n_probes, "n_probes")
        rerank_mult = integer(self.rerank_mult, "rerank_mult")
        refuse_unserved(self)
        return Query(
            vectors=vectors,
            contents=self.query_contents if vectors is None else None,
            top_k=_DEFAULT_TOP_K if top_k is None else top_k,
            n_probes=n_probes,
            rerank_mult=rerank_mult,
            target_recall=self.target_recall,
            include=self.include & _QUERY_INCLUDES,
            filters=self.filters or None,
        )


class QueryRequest(SearchRequest, frozen=True, kw_only=True):
    """Body of query. `query_vectors` is one vector or a list of them."""

    query_vectors: list[float | list[float]] | None = None

    def to_query(self, settings: Settings) -> Query:
        """Return the search. Raises `InvalidInput` for more than the settings allow."""
        query = self.search(_rows(self.query_vectors or []) or None)
        texts = query.contents or ()
        n_texts = 1 if isinstance(texts, str) else len(texts)
        n_vectors = len(cast("Sequence[Any]", query.vectors)) if query.vectors else n_texts
        _check_results(n_vectors, query.top_k, settings)
        return query


class BinaryQueryBatch(Struct, frozen=True, kw_only=True):
    """Packed query vectors: base64 of row-major little-endian float32."""

    vectors_b64: str
    dimension: int | float


class BinaryQueryRequest(SearchRequest, frozen=True, kw_only=True):
    """Body of query_binary."""

    batch: BinaryQueryBatch

    def to_query(self, settings: Settings) -> Query:
        """Return the search. Raises `InvalidInput` for more than the settings allow."""
        dimension = integer(self.batch.dimension, "batch", "dimension") or 0
        query = self.search(PackedVectors(self.batch.vectors_b64, dimension))
        n_numbers = 3 * len(self.batch.vectors_b64) // 4 // _FLOAT32_BYTES
        _check_results(n_numbers // max(dimension, 1), query.top_k, settings)
        return query


class CountRequest(IndexRequest, frozen=True, kw_only=True):
    """Body of num_vectors; `filters` is ours."""

    filters: dict[str, Any] | None = None


class ListIdsRequest(IndexRequest, frozen=True, kw_only=True):
    """Body of list_ids."""


class IdsRequest(IndexRequest, frozen=True, kw_only=True):
    """Names items of an index."""

    ids: list[str]

    def different_ids(self, settings: Settings) -> list[str]:
        """Return each id once, in the order they are first named. Raises `TooLarge`."""
        _check_number(len(self.ids), settings)
        return list(dict.fromkeys(self.ids))


class GetRequest(IdsRequest, frozen=True, kw_only=True):
    """Body of get."""

    include: frozenset[str] = _GET_INCLUDES

    def known_includes(self) -> frozenset[str]:
        """Return the parts asked for; unknown names are ignored."""
        return self.include & _GET_INCLUDES


class DeleteRequest(IdsRequest, frozen=True, kw_only=True):
    """Body of the deletion of items."""


def _check_number(n_items: int, settings: Settings) -> None:
    if n_items > settings.max_batch_items:
        raise TooLarge(f"A batch can hold at most {settings.max_batch_items} items")


def _check_results(n_vectors: int, top_k: int, settings: Settings) -> None:
    """Raise `InvalidInput` when a query asks for more results than one answer can have."""
    if n_vectors > settings.max_query_vectors:
        raise too_many_vectors(settings)
    if n_vectors * min(top_k, settings.max_top_k) > settings.max_results:
        raise InvalidInput(
            f"{n_vectors} query vectors with a top_k of {top_k} ask for more than "
            f"{settings.max_results} results: send them in several requests, or raise "
            "SEALDEX_MAX_RESULTS"
        )


def too_many_vectors(settings: Settings) -> InvalidInput:
    """Return the error of a query with more vectors than the settings allow."""
    return InvalidInput(
        f"A query can have at most {settings.max_query_vectors} vectors or texts: send them in "
        "several requests, or raise SEALDEX_MAX_QUERY_VECTORS"
    )


def _check_depth(metadata: Sequence[Mapping[str, Any] | None], limit: int) -> None:
    """Raise `InvalidInput` naming the first item whose metadata is nested deeper than `limit`."""
    for position, one in enumerate(metadata):
        if one and _is_deeper(one, limit):
            raise InvalidInput(f"Item {position}: metadata can be nested at most {limit} deep")


def _is_deeper(value: Mapping[str, Any], limit: int) -> bool:
    level: list[Any] = [value]
    for _ in range(limit):
        level = [inner for outer in level for inner in _inner(outer)]
        if not level:
            return False
    return True


def _inner(value: Any) -> list[Any]:
    """Return the lists and objects in a list or an object."""
    values = value.values() if isinstance(value, dict) else value
    return [inner for inner in values if isinstance(inner, dict | list)]


def _rows(values: Sequence[Any]) -> list[list[float]]:
    """Return one vector as a list of one, and a list of vectors as it is."""
    kinds = set(map(type, values))
    if kinds <= {list, np.ndarray}:
        return cast("list[list[float]]", list(values))
    if list in kinds:
        position = next(i for i, value in enumerate(values) if not isinstance(value, list))
        place = ("body", "query_vectors", position)
        raise InvalidBody(BodyProblem("list_type", place, "Input should be a valid list"))
    return [cast("list[float]", list(values))]
