"""Values that the layers hand each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple, Self, TypeAlias, overload
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = NDArray[np.float32]
Matrix: TypeAlias = NDArray[np.float32]
# Packed bits, eight to a byte, most significant first, one row a vector: what PostgreSQL stores in
# a bit string.
Sketches: TypeAlias = NDArray[np.uint8]
Metadata: TypeAlias = Mapping[str, Any]

MAX_DIMENSION = 65_535
ITEM_KEY_BYTES = 16

# As the database writes numbers.
INT32 = np.dtype(">i4")


class Joined(Sequence[bytes]):
    """Byte strings, one after the other in a larger one; `lengths` has an int32 for each."""

    __slots__ = ("_ends", "_lengths", "joined", "width")

    def __init__(self, joined: bytes, lengths: bytes) -> None:
        self.joined = joined
        self._lengths = lengths
        first = lengths[: INT32.itemsize]
        # That of all, if they have the same.
        self.width = int.from_bytes(first, "big") if first * len(self) == lengths else None
        # Only those who ask for single ones need to know where each ends.
        self._ends: list[int] | None = None

    def __len__(self) -> int:
        return len(self._lengths) // INT32.itemsize

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> list[bytes]: ...
    def __getitem__(self, place: int | slice) -> bytes | list[bytes]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        if self.width is not None:
            return self.joined[place * self.width : (place + 1) * self.width]
        if self._ends is None:
            self._ends = [0, *np.cumsum(np.frombuffer(self._lengths, INT32)).tolist()]
        return self.joined[self._ends[place] : self._ends[place + 1]]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Items that a scan has found for a query, not yet opened, by column: there are hundreds."""

    item_keys: Sequence[bytes]
    sealed_ids: Sequence[bytes]
    sealed_vectors: Sequence[bytes]
    # Where a filter is to be checked: of each its sealed metadata, empty for an item that has none.
    sealed_metadata: Sequence[bytes] | None = None


class Metric(StrEnum):
    """How far two vectors are apart; smaller is nearer."""

    EUCLIDEAN = "euclidean"
    SQUARED_EUCLIDEAN = "squared_euclidean"
    COSINE = "cosine"


class IndexKind(StrEnum):
    """Who searches an index: PostgreSQL by keyed sketches, or the service by sealed lists."""

    IVFFLAT = "ivfflat"
    SEALED = "sealed"


class Precision(StrEnum):
    """Number format of the sealed vector."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


class Permission(StrEnum):
    """What a user may do to the items of its index."""

    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class UserToken:
    """What a user's API key says: who it is, and the key that unwraps its keys."""

    user_id: bytes
    user_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends the request: a user with its token, the root key, or anybody without a root key.

    `name`, `request_id` and `operation` (the route's) are what the audit log says of the request;
    `is_read` is whether its route changes nothing.
    """

    user: UserToken | None = None
    name: str = field(default="open", compare=False)
    request_id: str = field(default="", compare=False)
    operation: str = field(default="", compare=False)
    is_read: bool = field(default=False, compare=False)

    @property
    def is_root(self) -> bool:
        """Whether the caller may do everything."""
        return self.user is None


# Whoever works on the machine itself.
OPERATOR = Caller(name="operator")


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldPolicy:
    """How a metadata field may be searched; fixed at the creation of the index."""

    filterable: bool = True
    pattern: bool = False
    full_text: bool = False


MetadataSchema: TypeAlias = Mapping[str, FieldPolicy]


@dataclass(frozen=True, slots=True)
class IndexAccess:
    """What a request says to reach an index; `index_key` is the client's text, not yet checked."""

    index_name: str
    index_key: str | None = field(repr=False)
    caller: Caller


@dataclass(frozen=True, slots=True, kw_only=True)
class NewIndex:
    """What a client may say about an index at its creation."""

    name: str
    index_key: str | None = field(repr=False)
    kms_name: str | None = None
    dimension: int | None = None
    metric: str = Metric.EUCLIDEAN
    storage_precision: Precision = Precision.FLOAT32
    embedding_model: str | None = None
    n_lists: int | None = None
    index_config: Mapping[str, Any] | None = None
    sketch_bits: int | None = None
    sketch_noise: float | None = None
    metadata_schema: MetadataSchema | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """A row of `indexes`: facts about an index that need no key."""

    id: UUID
    name: str
    revision: int
    metric: Metric
    storage_precision: Precision
    dimension: int | None
    sketch_bits: int | None
    sketch_noise: float
    wrapped_dek: bytes = field(repr=False)
    encoder_version: int
    sealed_encoder: bytes | None = field(repr=False)
    sealed_next_encoder: bytes | None = field(repr=False)
    generation: int
    n_lists: int
    requested_n_lists: int | None
    trained_at: datetime | None
    profile: Mapping[str, Any] | None
    n_items_at_training: int | None
    n_changes_at_training: int | None
    n_outdated_at_training: int | None
    is_training_due: bool
    embedding_model: str | None
    embedding_weights: str | None
    index_config: Mapping[str, Any] | None
    created_at: datetime
    sealed_schema: bytes | None = field(repr=False)
    sealed_header: bytes | None = field(repr=False)
    kind: IndexKind = IndexKind.IVFFLAT

    @property
    def is_trained(self) -> bool:
        """Whether a training has replaced the one list the index starts with."""
        return self.trained_at is not None


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """A model that makes vectors of texts; of each it sees the first `max_seq_length` tokens."""

    name: str
    dimension: int
    max_seq_length: int | None


@dataclass(frozen=True, slots=True)
class Item:
    """What a client stores under one id."""

    id: str
    vector: Sequence[float] | Vector | None
    contents: str | None = None
    metadata: Metadata | None = None


@dataclass(frozen=True, slots=True)
class PackedVectors:
    """Vectors as they came, unchecked: base64 of row-major little-endian float32."""

    base64: str = field(repr=False)
    dimension: int


@dataclass(frozen=True, slots=True)
class PackedItems:
    """Items whose vectors came packed; `contents` and `metadata` may be shorter than `ids`."""

    ids: Sequence[str]
    vectors: PackedVectors
    contents: Sequence[str | None] = ()
    metadata: Sequence[Metadata | None] = ()


@dataclass(frozen=True, slots=True)
class SealedItems:
    """Rows of `items`, ready to be written, by column; `next_sketches` during a training.

    The item keys all differ, and the rows are in their order.
    """

    item_keys: Sequence[bytes]
    ids: Sequence[bytes]
    sketches: Sketches
    next_sketches: Sketches | None
    vectors: Sequence[bytes]
    contents: Sequence[bytes | None]
    metadata: Sequence[bytes | None]
    tokens: Sequence[Sequence[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A search for the items nearest to each of `vectors`: rows of one length, (n, d)."""

    vectors: Sequence[Sequence[float] | Vector] | Matrix | PackedVectors | None
    contents: str | Sequence[str] | None = None
    top_k: int = 100
    n_probes: int | None = None
    rerank_mult: int | None = None
    target_recall: float | None = None
    include: frozenset[str] = frozenset()
    filters: Mapping[str, Any] | None = None


class Match(NamedTuple):
    """One answer of a search, nearest first in its list. What was not asked for is None."""

    id: str
    distance: float | None = None
    metadata: Metadata | None = None
    vector: Vector | None = None


@dataclass(frozen=True, slots=True)
class User:
    """A row of `users`: keys of an index wrapped for one user, one for each permission."""

    index_id: UUID
    user_id: bytes
    wrapped_keys: Mapping[Permission, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An item as it was stored. What was not asked for is None; what the item lacks is empty."""

    id: str
    vector: Vector | None = None
    contents: str | None = None
    metadata: Metadata | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """What the audit log says of one request; `key_id` is a keyed fingerprint of the index key."""

    caller: str
    key_id: str | None
    operation: str
    index_id: UUID | None
    index_name: str | None
    n_items: int | None
    request_id: str
    outcome: str


@dataclass(frozen=True, slots=True)
class IndexOverview:
    """What the database's owner may know of an index without a key."""

    name: str
    n_items: int
    n_lists: int
    is_training: bool
    is_drifted: bool
    size_bytes: int
    ivf_size_bytes: int
    trained_at_s: float
    recall: float | None


@dataclass(frozen=True, slots=True)
class IndexFigures:
    """All indexes in numbers, and the largest of them."""

    n_indexes: int
    n_builds: int
    largest: Sequence[IndexOverview]


@dataclass(frozen=True, slots=True)
class UpsertOutcome:
    """How many items were written, and the sentence about a training this write has triggered."""

    n_items: int
    training_message: str | None = None


@dataclass(frozen=True, slots=True)
class IndexDescription:
    """The contract's answer to describe."""

    index_name: str
    is_trained: bool
    dimension: int
    metric: str
    n_lists: int
    index_config: Mapping[str, Any] | None = None
    metadata_schema: MetadataSchema | None = None


@dataclass(frozen=True, slots=True)
class TrainingStatus:
    """Names of the indexes whose training runs or waits, each in the order of the queue."""

    running: Sequence[str]
    queued: Sequence[str]
    retrain_threshold: int = 0

    def only(self, names: frozenset[str]) -> Self:
        """Return what is said of the indexes called `names`."""
        running, queued = (
            [name for name in some if name in names] for some in (self.running, self.queued)
        )
        return replace(self, running=running, queued=queued)


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """The last training of an index; `is_live` is whether some worker still sees to it."""

    state: str
    is_live: bool
    phase: str
    progress: int
    failure: str | None
    next_attempt_at: datetime | None
