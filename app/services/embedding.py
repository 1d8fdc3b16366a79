"""Text in place of vectors: the model of a new index, items without vector, queries in words."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from app import errors
from app.domain import EmbeddingModel, Index, Item, Matrix, NewIndex, Query
from app.embeddings.embedder import Embedder
from app.embeddings.model import Purpose
from app.settings import Settings


class EmbeddingService:
    """What the use cases of indexes and items need of embedding models."""

    def __init__(self, embedder: Embedder, settings: Settings) -> None:
        self._embedder = embedder
        self._settings = settings

    async def models(self) -> list[EmbeddingModel]:
        """Return the models that can be loaded now."""
        return await self._embedder.models()

    async def settle(self, new: NewIndex) -> tuple[NewIndex, str | None]:
        """Return `new` with the model's full name and dimension, and the hash of its weights.

        Raises `InvalidInput` for an unknown model or another dimension, and `ModelUnavailable`.
        """
        if new.embedding_model is None:
            return new, None
        model, weights_sha256 = await self._embedder.look_up(new.embedding_model)
        if new.dimension and new.dimension != model.dimension:
            raise errors.InvalidInput(
                f"Model '{model.name}' has dimension {model.dimension}, not {new.dimension}"
            )
        return replace(new, embedding_model=model.name, dimension=model.dimension), weights_sha256

    async def stats(self, index: Index) -> dict[str, Any] | None:
        """Return what is known about the model of `index`, if it has one, without loading it."""
        if index.embedding_model is None:
            return None
        on_disk = await self._embedder.weights_sha256(index.embedding_model)
        is_here = on_disk == index.embedding_weights
        return {
            "model": index.embedding_model,
            "dimension": index.dimension,
            "weights_sha256": index.embedding_weights,
            "status": "available" if is_here else "missing" if on_disk is None else "changed",
        }

    async def complete(self, index: Index, items: Sequence[Item]) -> Sequence[Item]:
        """Return `items` with vectors made of contents. Raises `TooLarge`, `InvalidInput`."""
        positions = [
            position for position, item in enumerate(items) if item.vector is None and item.contents
        ]
        if index.embedding_model is None or not positions:
            return items
        self._check_number(len(items))
        vectors = await self._embed(
            index, [_text(items[at].contents, f"Item {at}") for at in positions]
        )
        whole = list(items)
        for position, vector in zip(positions, vectors, strict=True):
            whole[position] = replace(items[position], vector=vector)
        return whole

    async def vectorise(self, index: Index, query: Query) -> Query:
        """Return `query` with the vectors of its texts, if it has no others and there is one."""
        if index.embedding_model is None or query.contents is None or query.vectors is not None:
            return query
        texts = [query.contents] if isinstance(query.contents, str) else query.contents
        if not texts:
            raise errors.InvalidInput("query_contents cannot be an empty list")
        self._check_number(len(texts))
        checked = [_text(text, f"Query {position}") for position, text in enumerate(texts)]
        return replace(query, vectors=await self._embed(index, checked, Purpose.QUERY))

    async def _embed(
        self, index: Index, texts: Sequence[str], purpose: Purpose = Purpose.DOCUMENT
    ) -> Matrix:
        name, weights_sha256 = index.embedding_model or "", index.embedding_weights or ""
        return await self._embedder.embed(name, weights_sha256, texts, purpose)

    def _check_number(self, n_texts: int) -> None:
        if n_texts > self._settings.max_batch_items:
            raise errors.TooLarge(
                f"A batch can hold at most {self._settings.max_batch_items} items"
            )


def _text(contents: object, what: str) -> str:
    """Return `contents`. Raises `InvalidInput` naming `what` unless it is a text with words."""
    if not isinstance(contents, str):
        raise errors.InvalidInput(
            f"{what} has no vector, and its contents are bytes: only text can be embedded"
        )
    if not contents:
        raise errors.InvalidInput(f"{what} is an empty text")
    return contents
