"""A batch of items on its way in: checked, then sealed and sketched, in a thread."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from app import errors, filters
from app.crypto import tokens
from app.domain import MAX_DIMENSION, Index, Item, Matrix, Metadata, Precision, SealedItems, Vector
from app.engine import metadata_schema
from app.engine.costs import SEALED_AT_A_TIME
from app.engine.keyed import VECTOR_DTYPES, KeyedIndex, Shape
from app.observe.stages import stage, timed
from app.store.pg import copy_rows

MAX_ID_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Batch:
    """Items with their vectors as one matrix (n, d); all columns are parallel."""

    ids: Sequence[str]
    vectors: Matrix
    contents: Sequence[str | None]
    metadata: Sequence[Metadata | None]


@timed("parse")
def check(items: Sequence[Item], index: Index, max_items: int) -> Batch:
    """Return `items` as a batch for `index`. Raises `InvalidInput` naming an item that is wrong."""
    if not items:
        raise errors.InvalidInput("items cannot be empty")
    for position, item in enumerate(items):
        if item.vector is None:
            _refuse_missing_vector(position, item)
    vectors = to_matrix([item.vector for item in items if item.vector is not None], "Item")
    return check_batch(
        Batch(
            [item.id for item in items],
            vectors,
            [item.contents for item in items],
            [item.metadata for item in items],
        ),
        index,
        max_items,
    )


def check_batch(batch: Batch, index: Index, max_items: int) -> Batch:
    """Return `batch` with vectors as `index` stores them. Raises `InvalidInput`, `TooLarge`."""
    if len(batch.ids) > max_items:
        raise errors.TooLarge(f"A batch can hold at most {max_items} items")
    for position, item_id in enumerate(batch.ids):
        if not item_id or len(item_id) > MAX_ID_BYTES or len(item_id.encode()) > MAX_ID_BYTES:
            raise errors.InvalidInput(f"Item {position}: id must have 1 to {MAX_ID_BYTES} bytes")
    check_dimension(batch.vectors, index)
    return Batch(
        batch.ids, _rounded(batch.vectors, index.storage_precision), batch.contents, batch.metadata
    )


def to_matrix(vectors: Sequence[Sequence[float] | Vector], what: str) -> Matrix:
    """Return `vectors` as one finite float32 matrix (n, d). Raises `InvalidInput` naming a row."""
    length = len(vectors[0])
    for position, vector in enumerate(vectors):
        if len(vector) != length:
            raise errors.InvalidInput(
                f"{what} {position} has a vector of length {len(vector)}, others have {length}"
            )
    if length == 0:
        raise errors.InvalidInput("A vector cannot be empty")
    with np.errstate(over="ignore"):
        matrix = np.asarray(vectors, dtype=np.float32)
    check_finite(matrix, what)
    return matrix


def check_finite(matrix: NDArray[np.floating], what: str) -> None:
    """Raise `InvalidInput` naming the first row (`what`) with a number that is not finite."""
    # The sum is finite unless some number is not, or the numbers are huge: then each row is looked
    # at.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(matrix.sum()):
            return
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(bad):
        raise errors.InvalidInput(
            f"{what} {bad[0]}: every number must be finite and fit the index's precision"
        )


def check_dimension(vectors: Matrix, index: Index) -> None:
    """Raise `InvalidInput` unless `vectors` have the dimension of `index`, if it is known."""
    dimension = vectors.shape[1]
    if index.dimension is not None and dimension != index.dimension:
        raise errors.InvalidInput(
            f"The vectors have dimension {dimension}, index '{index.name}' has {index.dimension}"
        )
    if dimension > MAX_DIMENSION:
        raise errors.InvalidInput(f"A vector can have at most {MAX_DIMENSION} numbers")


def _rounded(vectors: Matrix, precision: Precision) -> Matrix:
    if precision is Precision.FLOAT32:
        return vectors
    with np.errstate(over="ignore"):
        rounded = vectors.astype(VECTOR_DTYPES[precision])
    check_finite(rounded, "Item")
    return rounded.astype(np.float32)


def _refuse_missing_vector(position: int, item: Item) -> None:
    if item.contents:
        raise errors.InvalidInput(
            f"Item {position} has no vector, and the index has no embedding model"
            " to make one from its contents"
        )
    raise errors.InvalidInput(f"Item {position} has neither a vector nor contents")


class SealedBatch(NamedTuple):
    """The rows to store for a batch, as COPY reads them, in the order of their item keys."""

    item_keys: Sequence[bytes]
    rows: Sequence[bytes]


@timed("seal")
def seal(batch: Batch, opened: KeyedIndex, shape: Shape) -> SealedBatch:
    """Return what to store, a row for each id; of items with the same id the last one counts.

    They have a second sketch by the index's next encoder, if there is one.
    """
    positions = {
        item_key: position
        for position, item_key in enumerate(tokens.item_keys(opened.keys.blind_key, batch.ids))
    }
    item_keys = sorted(positions)
    sealer = _BatchSealer(batch, opened, shape)
    # In pieces: what is sealed and the rows made of it need not be there all at once.
    pieces = [
        item_keys[start : start + SEALED_AT_A_TIME]
        for start in range(0, len(item_keys), SEALED_AT_A_TIME)
    ]
    rows = [
        copy_rows.rows(
            opened.index.id, sealer.seal(piece, [positions[item_key] for item_key in piece])
        )
        for piece in pieces
    ]
    return SealedBatch(item_keys, rows)


class _BatchSealer:
    """Seals items of one batch."""

    def __init__(self, batch: Batch, opened: KeyedIndex, shape: Shape) -> None:
        self._batch = batch
        self._keys = opened.keys
        self._dtype = shape.dtype
        self._encoder, self._next_encoder = shape.encoder, shape.next_encoder
        self._unfilterable = metadata_schema.unfilterable(opened.schema)
        self._blinder = _Blinder(opened.keys.token_key)

    def seal(self, item_keys: Sequence[bytes], positions: Sequence[int]) -> SealedItems:
        """Seal the items at `positions` of the batch, whose item keys are given."""
        batch, keys = self._batch, self._keys
        vectors = batch.vectors[positions]
        with stage("sketch"):
            sketches = self._encoder.encode_items(vectors, item_keys)
            next_sketches = (
                self._next_encoder.encode_items(vectors, item_keys) if self._next_encoder else None
            )
        metadata = [batch.metadata[position] for position in positions]
        return SealedItems(
            item_keys,
            keys.ids.seal_all(item_keys, [batch.ids[position].encode() for position in positions]),
            sketches,
            next_sketches,
            keys.vectors.seal_rows(item_keys, vectors.astype(self._dtype, copy=False)),
            keys.contents.seal_all(
                item_keys, [_text(batch.contents[position]) for position in positions]
            ),
            keys.metadata.seal_all(item_keys, [_json(one) for one in metadata]),
            [_tokens(self._blinder, one, self._unfilterable) for one in metadata],
        )


class _Blinder(dict[filters.terms.Term, bytes]):
    """The token of each term, made when first asked for: values repeat within a batch."""

    def __init__(self, token_key: bytes) -> None:
        super().__init__()
        self._token = tokens.tokenizer(token_key)

    def __missing__(self, term: filters.terms.Term) -> bytes:
        token = self[term] = self._token(filters.terms.message(term))
        return token


def _tokens(
    blinder: _Blinder, metadata: Metadata | None, unfilterable: frozenset[str]
) -> list[bytes]:
    """Return the tokens of `metadata`, sorted: their order must not tell their fields."""
    if not metadata:
        return []
    # Two terms may share a token by chance.
    return sorted({*map(blinder.__getitem__, filters.terms.of_item(metadata, unfilterable))})


def _text(contents: str | None) -> bytes | None:
    return contents.encode() if contents else None


def _json(metadata: Metadata | None) -> bytes | None:
    return msgspec.json.encode(metadata) if metadata else None
