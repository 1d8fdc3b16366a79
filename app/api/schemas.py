"""Bodies of requests and answers, and their way to and from the domain.

Unknown fields are ignored and null means "not given": clients of many versions send more than we
know. Answers hold exactly the contract's fields, because some clients refuse one more; what does
not apply is absent (`UNSET`), not null.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

from msgspec import UNSET, Struct, UnsetType

from app.api.json_bodies import choice, integer
from app.domain import (
    Caller,
    EmbeddingModel,
    FieldPolicy,
    IndexAccess,
    IndexDescription,
    Item,
    Match,
    MetadataSchema,
    Metric,
    NewIndex,
    PackedItems,
    PackedVectors,
    Permission,
    Precision,
    Query,
    StoredItem,
    TrainingStatus,
    UpsertOutcome,
    Vector,
)
from app.errors import BodyProblem, InvalidBody, InvalidInput
from app.observe.stages import timed

# An integer on the wire may be written 2 or 2.0; `integer` turns either into an int.
Integer: TypeAlias = int | float | None

_DEFAULT_TOP_K = 100
# `vector` may be returned, but does nothing in the service that clients know; `contents` must not
# be.
_QUERY_INCLUDES = frozenset({"distance", "metadata"})
_GET_INCLUDES = frozenset({"vector", "contents", "metadata"})

# Precisions of the protocol that are not offered; docs/decisions/0031 says why.
_REFUSED_PRECISIONS = frozenset({"tq12", "tq8", "tq6", "tq4"})

_LEGACY_TYPES = frozenset({"ivfflat", "ivf", "ivfpq", "ivfsq"})
_MAX_LISTS = 32_768

# Fields of the contract that nothing serves yet, and what to answer to those who use them. Ignoring
# one would give a wrong answer. Whoever serves a field deletes its line.
_UNSERVED = {
    "kms_name": "key services are not available: there is no kms_name to choose from",
    "text_fields": "text_fields are not supported",
    "bm25_k1": "bm25_k1 is not supported",
    "bm25_b": "bm25_b is not supported",
    "text": "text search is not supported",
}


def refuse_unserved(body: Struct) -> None:
    """Raise `InvalidInput` if `body` asks for what nothing serves yet."""
    for name, answer in _UNSERVED.items():
        if getattr(body, name, None) not in (None, "", [], {}):
            raise InvalidInput(answer)


# ---------------------------------------------------------------- requests


class IndexRequest(Struct, frozen=True, kw_only=True):
    """Names an index and the key that opens it; the whole body of describe, delete, stats, list_ids."""

    index_name: str
    index_key: str | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(index_name={self.index_name!r}, …)"

    def access(self, caller: Caller) -> IndexAccess:
        """Return what the services need to reach the index."""
        return IndexAccess(self.index_name, self.index_key, caller)


class LegacyIndexConfig(Struct, frozen=True, kw_only=True):
    """What clients up to 0.16 say about an index. Its type decides nothing here; they read it back in describe."""

    type: str | None = None
    dimension: Integer = None
    metric: str | None = None
    n_lists: Integer = None

    def requested_n_lists(self) -> int | None:
        """Return how many lists the first training shall make. Raises `InvalidInput`."""
        n_lists = integer(self.n_lists, "index_config", "n_lists") or None
        if n_lists is not None and not 1 <= n_lists <= _MAX_LISTS:
            raise InvalidInput(f"n_lists must be between 1 and {_MAX_LISTS}")
        return n_lists

    def remembered(self) -> dict[str, Any]:
        """Return what describe cannot tell from the index itself."""
        return {"type": self.type if self.type in _LEGACY_TYPES else "ivfflat"}


class FieldPolicyRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one metadata field may be searched. `full_text` stands for `filterable: false`, too."""

    filterable: bool | UnsetType = UNSET
    pattern: bool = False
    full_text: bool = False

    def to_policy(self, name: str) -> FieldPolicy:
        """Return the policy of the field `name`. Raises `InvalidBody` for a contradiction."""
        filterable = not self.full_text if self.filterable is UNSET else self.filterable
        contradictions = {
            "a field name cannot be blank": not name.strip(),
            "pattern needs filterable": self.pattern and not filterable and not self.full_text,
            "full_text excludes pattern": self.full_text and self.pattern,
            "full_text excludes filterable": self.full_text and filterable,
        }
        for message, is_so in contradictions.items():
            if is_so:
                problem = BodyProblem(
                    "value_error", ("body", "metadata_schema", name), f"Value error, {message}"
                )
                raise InvalidBody(problem)
        return FieldPolicy(filterable=filterable, pattern=self.pattern, full_text=self.full_text)


class CreateRequest(IndexRequest, frozen=True, kw_only=True):
    """Body of create. `sketch_bits` and `sketch_noise` are ours, `index_config` is from older clients."""

    kms_name: str | None = None
    dimension: Integer = None
    metric: str | None = None
    embedding_model: str | None = None
    storage_precision: str | None = None
    # Clients up to 0.16 send it, if only as null.
    index_config: LegacyIndexConfig | UnsetType | None = UNSET
    sketch_bits: Integer = None
    sketch_noise: float | None = None
    metadata_schema: dict[str, FieldPolicyRequest] | None = None
    text_fields: list[str] | None = None
    bm25_k1: float | None = None
    bm25_b: float | None = None

    def to_new_index(self) -> NewIndex:
        """Return the index to create; flat fields go before those of `index_config`."""
        legacy = self.index_config or LegacyIndexConfig()
        flat = integer(self.dimension, "dimension")
        dimension = integer(legacy.dimension, "index_config", "dimension") if flat is None else flat
        if self.storage_precision in _REFUSED_PRECISIONS:
            offered = " or ".join(Precision)
            raise InvalidInput(
                f"storage_precision {self.storage_precision} is not offered: choose {offered}"
            )
        precision = choice(self.storage_precision, Precision, "storage_precision")
        sketch_bits = integer(self.sketch_bits, "sketch_bits")
        schema = {
            name: policy.to_policy(name) for name, policy in (self.metadata_schema or {}).items()
        }
        refuse_unserved(self)
        return NewIndex(
            name=self.index_name,
            index_key=self.index_key,
            dimension=dimension,
            metric=self.metric or legacy.metric or Metric.EUCLIDEAN,
            storage_precision=precision or Precision.FLOAT32,
            n_lists=legacy.requested_n_lists(),
            index_config=None if self.index_config is UNSET else legacy.remembered(),
            sketch_bits=sketch_bits,
            sketch_noise=self.sketch_noise,
            embedding_model=self.embedding_model or None,
            metadata_schema=schema or None,
        )


class TrainRequest(IndexRequest, frozen=True, kw_only=True):
    """Body of train. Only `n_lists` has an effect; the others are of the service that clients know."""

    n_lists: Integer = None
    batch_size: Integer = None
    max_iters: Integer = None
    tolerance: float | None = None
    max_memory: Integer = None

    def to_n_lists(self) -> int | None:
        """Return how many lists to make, None for the automatic number. Raises `InvalidBody`."""
        for name in ("batch_size", "max_iters", "max_memory"):
            integer(getattr(self, name), name)
        return integer(self.n_lists, "n_lists")


class UpsertItem(Struct, frozen=True, kw_only=True, gc=False):
    """One item of an upsert."""

    id: str
    vector: list[float] | None = None
    contents: str | None = None
    metadata: dict[str, Any] | None = None


class UpsertRequest(IndexRequest, frozen=True, kw_only=True):
    """Body of upsert."""

    items: list[UpsertItem]

    def to_items(self) -> list[Item]:
        """Return the items to store."""
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

    def to_items(self) -> PackedItems:
        """Return the items to store."""
        batch = self.batch
        dimension = integer(batch.dimension, "batch", "dimension") or 0
        vectors = PackedVectors(batch.vectors_b64, dimension)
        return PackedItems(batch.ids, vectors, batch.contents or (), batch.metadata or ())


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

    def to_query(self) -> Query:
        """Return the search."""
        return self.search(_rows(self.query_vectors or []) or None)


class BinaryQueryBatch(Struct, frozen=True, kw_only=True):
    """Packed query vectors: base64 of row-major little-endian float32."""

    vectors_b64: str
    dimension: int | float


class BinaryQueryRequest(SearchRequest, frozen=True, kw_only=True):
    """Body of query_binary."""

    batch: BinaryQueryBatch

    def to_query(self) -> Query:
        """Return the search."""
        dimension = integer(self.batch.dimension, "batch", "dimension") or 0
        return self.search(PackedVectors(self.batch.vectors_b64, dimension))


class CountRequest(IndexRequest, frozen=True, kw_only=True):
    """Body of num_vectors; `filters` is ours."""

    filters: dict[str, Any] | None = None


class GetRequest(IndexRequest, frozen=True, kw_only=True):
    """Body of get."""

    ids: list[str]
    include: frozenset[str] = _GET_INCLUDES

    def known_includes(self) -> frozenset[str]:
        """Return the parts asked for; unknown names are ignored."""
        return self.include & _GET_INCLUDES


class DeleteRequest(IndexRequest, frozen=True, kw_only=True):
    """Body of the deletion of items."""

    ids: list[str]


class CreateUserRequest(Struct, frozen=True, kw_only=True):
    """Body of the creation of a user."""

    permissions: list[str]
    index_key: str | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(permissions={self.permissions!r}, …)"


def _rows(values: Sequence[float | list[float]]) -> list[list[float]]:
    """Return one vector as a list of one, and a list of vectors as it is."""
    kinds = set(map(type, values))
    if kinds <= {list}:
        return cast("list[list[float]]", list(values))
    if list in kinds:
        position = next(i for i, value in enumerate(values) if not isinstance(value, list))
        raise InvalidBody(
            BodyProblem(
                "list_type", ("body", "query_vectors", position), "Input should be a valid list"
            )
        )
    return [cast("list[float]", list(values))]


# ---------------------------------------------------------------- answers


class HealthAnswer(Struct, frozen=True):
    """Answer to health."""

    status: str
    api_version: str
    version: str


class ReadyAnswer(Struct, frozen=True):
    """Answer to ready."""

    status: str


class DoneAnswer(Struct, frozen=True, kw_only=True):
    """Answer to whatever changes something."""

    status: str = "success"
    message: str


class TrainAnswer(Struct, frozen=True, kw_only=True):
    """Answer to train: a failure is told with status 200, too."""

    status: str
    message: str

    @classmethod
    def of(cls, index_name: str, failure: str | None) -> "TrainAnswer":
        """Report success, or `failure`."""
        if failure is None:
            return cls(status="success", message=f"Index '{index_name}' trained successfully")
        return cls(status="error", message=f"Training failed for '{index_name}': {failure}")


class TrainingStatusAnswer(Struct, frozen=True, kw_only=True):
    """Answer to training-status; clients up to 0.14 need the last two, which say nothing."""

    training_indexes: list[str]
    currently_training: str | None
    queued_indexes: list[str]
    retrain_threshold: int
    worker_running: bool
    worker_pid: int = 0
    global_training: dict[str, Any] = {}

    @classmethod
    def of(cls, status: TrainingStatus) -> "TrainingStatusAnswer":
        """Return `status` in the contract's words."""
        return cls(
            training_indexes=[*status.running, *status.queued],
            currently_training=status.running[0] if status.running else None,
            queued_indexes=list(status.queued),
            retrain_threshold=status.retrain_threshold,
            worker_running=bool(status.running),
        )


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


class IndexNamesAnswer(Struct, frozen=True):
    """Answer to the list of indexes."""

    indexes: list[str]


class LegacyIndexDescription(Struct, frozen=True):
    """The `index_config` that clients up to 0.16 look for in describe."""

    dimension: int
    metric: str
    n_lists: int
    type: str


class DescribeAnswer(Struct, frozen=True, kw_only=True):
    """Answer to describe.

    `index_type` and `index_config` are there for indexes made by clients up to 0.16,
    `metadata_schema` and `bm25` for those made with a schema, by clients from 0.18.
    """

    index_name: str
    is_trained: bool
    dimension: int
    metric: str
    n_lists: int
    index_type: str | UnsetType = UNSET
    index_config: LegacyIndexDescription | UnsetType = UNSET
    metadata_schema: MetadataSchema | UnsetType = UNSET
    bm25: UnsetType | None = UNSET

    @classmethod
    def of(cls, index: IndexDescription) -> "DescribeAnswer":
        """Return `index` in the contract's words."""
        config: LegacyIndexDescription | UnsetType = UNSET
        if index.index_config is not None:
            config = LegacyIndexDescription(
                index.dimension, index.metric, index.n_lists, index.index_config["type"]
            )
        return cls(
            index_name=index.index_name,
            is_trained=index.is_trained,
            dimension=index.dimension,
            metric=index.metric,
            n_lists=index.n_lists,
            index_type=UNSET if config is UNSET else config.type,
            index_config=config,
            metadata_schema=UNSET if index.metadata_schema is None else index.metadata_schema,
            bm25=UNSET if index.metadata_schema is None else None,
        )


class UserKeyAnswer(Struct, frozen=True):
    """Answer to the creation of a user."""

    user_id: str
    api_key: str

    def __repr__(self) -> str:
        return f"{type(self).__name__}(user_id={self.user_id!r}, …)"


class UserAnswer(Struct, frozen=True):
    """One user of an index."""

    user_id: str
    permissions: list[Permission]


class UsersAnswer(Struct, frozen=True):
    """Answer to the list of users."""

    users: list[UserAnswer]


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
    @timed("encode")
    def of(cls, lists: Sequence[Sequence[Match]], include: frozenset[str]) -> "QueryAnswer":
        """Return one list of matches for each query vector."""
        results = [[MatchAnswer.of(match, include) for match in matches] for matches in lists]
        return cls(results[0] if len(results) == 1 else results)


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


class IdsAnswer(Struct, frozen=True):
    """Answer to list_ids."""

    ids: list[str]
    count: int


class CountAnswer(Struct, frozen=True):
    """Answer to num_vectors."""

    result: int


class EmbeddingModelAnswer(Struct, frozen=True):
    """A model that indexes can be created with; a model without a limit has no `max_seq_length`."""

    name: str
    dimension: int
    max_seq_length: int | UnsetType = UNSET


class EmbeddingModelsAnswer(Struct, frozen=True):
    """Answer to embedding-models."""

    models: list[EmbeddingModelAnswer]

    @classmethod
    def of(cls, models: Sequence[EmbeddingModel]) -> "EmbeddingModelsAnswer":
        """Return `models` in the contract's words."""
        return cls(
            [
                EmbeddingModelAnswer(
                    model.name,
                    model.dimension,
                    UNSET if model.max_seq_length is None else model.max_seq_length,
                )
                for model in models
            ]
        )


def _numbers(vector: Vector | None) -> list[float]:
    numbers: list[float] = [] if vector is None else vector.tolist()
    return numbers
