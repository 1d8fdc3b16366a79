"""Answers of the routes of items, made of what the services return."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
from msgspec import UNSET, Struct, UnsetType

from app.api.answers import FEW, Encoding
from app.domain import Match, StoredItem, UpsertOutcome, Vector
from app.observe.stages import timed

# Items can be large.
_FEW_ITEMS = 10


class UpsertAnswer(Struct, frozen=True, kw_only=True):
    """Answer to upsert; the last two fields are there when it triggered a training."""

    status: str = "success"
    message: str
    training_triggered: bool | UnsetType = UNSET
    training_message: str | UnsetType = UNSET

    @classmethod
    def of(cls, n_sent: int, outcome: UpsertOutcome) -> "UpsertAnswer":
        """Report `n_sent` items, counting repeated ids as often as they were sent."""
        message = f"Upserted {n_sent} vectors"
        if outcome.training_message is None:
            return cls(message=message)
        return cls(
            message=message, training_triggered=True, training_message=outcome.training_message
        )


class MatchAnswer(Struct, frozen=True, gc=False):
    """One result of a query."""

    id: str
    distance: float | UnsetType = UNSET
    metadata: Mapping[str, Any] | UnsetType = UNSET

    @classmethod
    def of(cls, match: Match, include: frozenset[str]) -> "MatchAnswer":
        """Return the parts of `match` that are in `include`."""
        return cls(
            match.id,
            UNSET if match.distance is None or "distance" not in include else match.distance,
            (match.metadata or {}) if "metadata" in include else UNSET,
        )


class QueryAnswer(Struct, frozen=True):
    """Answer to query: a flat list for one query vector, a list of lists for more."""

    results: Sequence[MatchAnswer | list[MatchAnswer]]

    @classmethod
    async def of(
        cls, found: Sequence[Sequence[Match]], include: frozenset[str], limit: int
    ) -> "QueryAnswer":
        """Return a list of matches for each query vector. Raises `TooLarge` for a long answer."""
        n_matches = sum(map(len, found))
        if n_matches <= FEW:
            return cls._whole(found, include)
        return await asyncio.to_thread(cls._in_slices, found, include, Encoding(limit))

    @classmethod
    @timed("encode")
    def _whole(cls, found: Sequence[Sequence[Match]], include: frozenset[str]) -> "QueryAnswer":
        results = [[MatchAnswer.of(match, include) for match in matches] for matches in found]
        return cls(results[0] if len(results) == 1 else results)

    @classmethod
    def _in_slices(
        cls, found: Sequence[Sequence[Match]], include: frozenset[str], encoding: Encoding
    ) -> "QueryAnswer":
        lists = [
            encoding.of(MatchAnswer.of(match, include) for match in matches) for matches in found
        ]
        return cls(cast("Any", lists[0] if len(lists) == 1 else lists))


class ItemAnswer(Struct, frozen=True, gc=False):
    """One item as it was stored."""

    id: str
    vector: list[float] | UnsetType = UNSET
    contents: str | UnsetType = UNSET
    metadata: Mapping[str, Any] | UnsetType = UNSET

    @classmethod
    def of(cls, item: StoredItem, include: frozenset[str]) -> "ItemAnswer":
        """Return the parts of `item` that are in `include`; what the item lacks is empty."""
        return cls(
            item.id,
            _numbers(item.vector) if "vector" in include else UNSET,
            (item.contents or "") if "contents" in include else UNSET,
            (item.metadata or {}) if "metadata" in include else UNSET,
        )


class GetAnswer(Struct, frozen=True):
    """Answer to get: the known ids in request order."""

    results: list[ItemAnswer]

    @classmethod
    async def of(
        cls,
        ids: Sequence[str],
        items: Sequence[StoredItem],
        include: frozenset[str],
        limit: int,
    ) -> "GetAnswer":
        """Return those of `items` that `ids` name, as often as they do. Raises `TooLarge`."""
        if len(ids) > _FEW_ITEMS:
            return await asyncio.to_thread(cls._in_pieces, ids, items, include, Encoding(limit))
        answers = {item.id: ItemAnswer.of(item, include) for item in items}
        return cls([answers[item_id] for item_id in ids if item_id in answers])

    @classmethod
    @timed("encode")
    def _in_pieces(
        cls,
        ids: Sequence[str],
        items: Sequence[StoredItem],
        include: frozenset[str],
        encoding: Encoding,
    ) -> "GetAnswer":
        pieces = {item.id: msgspec.json.encode(ItemAnswer.of(item, include)) for item in items}
        named = [pieces[item_id] for item_id in ids if item_id in pieces]
        encoding.count(sum(map(len, named)))
        return cls(cast("Any", list(map(msgspec.Raw, named))))


class IdsAnswer(Struct, frozen=True):
    """Answer to list_ids."""

    ids: list[str]
    count: int

    @classmethod
    async def of(cls, ids: list[str], limit: int) -> "IdsAnswer":
        """Return all of `ids`. Raises `TooLarge` for a long answer."""
        if len(ids) <= FEW:
            return cls(ids, len(ids))
        return cls(cast("Any", await asyncio.to_thread(Encoding(limit).of, ids)), len(ids))


class CountAnswer(Struct, frozen=True):
    """Answer to num_vectors."""

    result: int


def _numbers(vector: Vector | None) -> list[float]:
    numbers: list[float] = [] if vector is None else vector.tolist()
    return numbers
