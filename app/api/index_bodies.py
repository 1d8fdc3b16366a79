"""Bodies of the routes of indexes, and their way to and from the domain."""

from typing import Any

from msgspec import UNSET, Struct, UnsetType

from app.api.bodies import IndexRequest, Integer, refuse_unserved
from app.api.json_bodies import choice, integer
from app.domain import (
    FieldPolicy,
    IndexDescription,
    MetadataSchema,
    Metric,
    NewIndex,
    Precision,
)
from app.errors import BodyProblem, InvalidBody, InvalidInput

# Precisions of the protocol that are not offered; docs/decisions/0031 says why.
_REFUSED_PRECISIONS = frozenset({"tq12", "tq8", "tq6", "tq4"})

_LEGACY_TYPES = frozenset({"ivfflat", "ivf", "ivfpq", "ivfsq"})
_DEFAULT_LEGACY_TYPE = "ivfflat"
# Fields that belong to one type each, and what clients take them for when nobody says.
_LEGACY_FIELDS: dict[str, dict[str, int | None]] = {
    "ivfpq": {"pq_dim": None, "pq_bits": None},
    "ivfsq": {"sq_bits": 16},
}
_MAX_LISTS = 32_768


class LegacyIndexConfig(Struct, frozen=True, kw_only=True):
    """What clients up to 0.16 say about an index.

    Type, `pq_dim`, `pq_bits` and `sq_bits` decide nothing here; clients read them back in describe.
    """

    type: str | None = None
    dimension: Integer = None
    metric: str | None = None
    n_lists: Integer = None
    pq_dim: Integer = None
    pq_bits: Integer = None
    sq_bits: Integer = None

    def requested_n_lists(self) -> int | None:
        """Return how many lists the first training shall make. Raises `InvalidInput`."""
        n_lists = integer(self.n_lists, "index_config", "n_lists") or None
        if n_lists is not None and not 1 <= n_lists <= _MAX_LISTS:
            raise InvalidInput(f"n_lists must be between 1 and {_MAX_LISTS}")
        return n_lists

    def remembered(self) -> dict[str, Any]:
        """Return what describe cannot tell from the index itself."""
        kind = self.type if self.type in _LEGACY_TYPES else _DEFAULT_LEGACY_TYPE
        fields = _LEGACY_FIELDS.get(kind, {})
        sent = {name: integer(getattr(self, name), "index_config", name) for name in fields}
        given = {name: value for name, value in sent.items() if value is not None}
        return {"type": kind, **given}


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
                place = ("body", "metadata_schema", name)
                raise InvalidBody(BodyProblem("value_error", place, f"Value error, {message}"))
        return FieldPolicy(filterable=filterable, pattern=self.pattern, full_text=self.full_text)


class CreateRequest(IndexRequest, frozen=True, kw_only=True):
    """Body of create. `sketch_bits`, `sketch_noise` are ours, `index_config` is older clients'."""

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
        dimension = self._dimension(legacy)
        precision = _precision(self.storage_precision)
        sketch_bits = integer(self.sketch_bits, "sketch_bits")
        schema = self._schema()
        refuse_unserved(self)
        return NewIndex(
            name=self.index_name,
            index_key=self.index_key,
            dimension=dimension,
            metric=self.metric or legacy.metric or Metric.EUCLIDEAN,
            storage_precision=precision,
            n_lists=legacy.requested_n_lists(),
            index_config=None if self.index_config is UNSET else legacy.remembered(),
            sketch_bits=sketch_bits,
            sketch_noise=self.sketch_noise,
            embedding_model=self.embedding_model or None,
            metadata_schema=schema or None,
        )

    def _dimension(self, legacy: LegacyIndexConfig) -> int | None:
        flat = integer(self.dimension, "dimension")
        return integer(legacy.dimension, "index_config", "dimension") if flat is None else flat

    def _schema(self) -> dict[str, FieldPolicy]:
        policies = self.metadata_schema or {}
        return {name: policy.to_policy(name) for name, policy in policies.items()}


def _precision(name: str | None) -> Precision:
    if name in _REFUSED_PRECISIONS:
        offered = " or ".join(Precision)
        raise InvalidInput(f"storage_precision {name} is not offered: choose {offered}")
    return choice(name, Precision, "storage_precision") or Precision.FLOAT32


class IndexNamesAnswer(Struct, frozen=True):
    """Answer to the list of indexes."""

    indexes: list[str]


class LegacyIndexDescription(Struct, frozen=True, kw_only=True):
    """The `index_config` that clients up to 0.16 look for in describe.

    Their releases read the type under one or the other of its two names.
    """

    dimension: int
    metric: str
    n_lists: int
    type: str
    index_type: str
    pq_dim: int | UnsetType = UNSET
    pq_bits: int | UnsetType = UNSET
    sq_bits: int | UnsetType = UNSET

    @classmethod
    def of(cls, index: IndexDescription, remembered: Any) -> "LegacyIndexDescription":
        """Return what `remembered` and the index itself tell."""
        kind = remembered["type"]
        usual = _LEGACY_FIELDS.get(kind, {})
        fields = {name: remembered.get(name, value) for name, value in usual.items()}
        return cls(
            dimension=index.dimension,
            metric=index.metric,
            n_lists=index.n_lists,
            type=kind,
            index_type=kind,
            **{name: value for name, value in fields.items() if value is not None},
        )


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
        remembered = index.index_config
        config = UNSET if remembered is None else LegacyIndexDescription.of(index, remembered)
        schema = UNSET if index.metadata_schema is None else index.metadata_schema
        return cls(
            index_name=index.index_name,
            is_trained=index.is_trained,
            dimension=index.dimension,
            metric=index.metric,
            n_lists=index.n_lists,
            index_type=UNSET if config is UNSET else config.type,
            index_config=config,
            metadata_schema=schema,
            bm25=UNSET if schema is UNSET else None,
        )
