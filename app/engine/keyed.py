"""An index whose key was presented: its row, its keys, and what the row keeps sealed."""

from dataclasses import dataclass

import numpy as np

from app.crypto import aead, keys
from app.domain import Index, MetadataSchema, Metric, Permission, Precision
from app.engine import header, metadata_schema
from app.engine.profile import SearchProfile
from app.engine.sketches.encoder import Encoder, sketch_bits
from app.engine.sketches.parameters import EncoderParameters
from app.errors import DataCorrupted

VECTOR_DTYPES: dict[Precision, np.dtype[np.floating]] = {
    Precision.FLOAT32: np.dtype("<f4"),
    Precision.FLOAT16: np.dtype("<f2"),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """What the first upsert fixes about an index; there is none before.

    While a training moves to another encoder, that is `next_encoder`, and writers use both.
    """

    metric: Metric
    precision: Precision
    encoder: Encoder
    next_encoder: Encoder | None = None

    @property
    def dimension(self) -> int:
        """The length of the vectors."""
        return self.encoder.dimension

    @property
    def sketch_bits(self) -> int:
        """The length of a sketch."""
        return self.encoder.bits

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """The number format of the sealed vectors."""
        return VECTOR_DTYPES[self.precision]


@dataclass(frozen=True, slots=True)
class KeyedIndex:
    """An index whose key was presented; `profile` is None until recall was measured.

    With the keys of a user who may only write, no stored value opens (`keys.WriterKeys`).
    """

    index: Index
    keys: keys.IndexKeys
    shape: Shape | None
    permissions: frozenset[Permission] = frozenset(Permission)
    schema: MetadataSchema | None = None
    profile: SearchProfile | None = None

    @property
    def encoder(self) -> Encoder | None:
        """The encoder that queries use."""
        return None if self.shape is None else self.shape.encoder

    @property
    def next_encoder(self) -> Encoder | None:
        """The encoder to which a training moves."""
        return None if self.shape is None else self.shape.next_encoder


def open_row(
    index: Index,
    index_keys: keys.IndexKeys,
    permissions: frozenset[Permission] = frozenset(Permission),
) -> KeyedIndex:
    """Return `index` with its keys, and with what is sealed in its row. Raises `DataCorrupted`."""
    header.check(index, index_keys)
    schema = metadata_schema.of(index, index_keys)
    shape = _shape(index, index_keys)
    return KeyedIndex(index, index_keys, shape, permissions, schema, profile_of(index))


def profile_of(index: Index) -> SearchProfile | None:
    """Return the search profile that the row of `index` holds, if some setting was measured."""
    profile = SearchProfile.from_json(index.n_lists, index.profile)
    return profile if profile is not None and profile.points else None


def first_shape(keyed: KeyedIndex, parameters: EncoderParameters) -> Shape:
    """Return the shape of an index whose first encoder has `parameters`."""
    index = keyed.index
    return Shape(index.metric, index.storage_precision, _encoder(index, keyed.keys, parameters))


def _shape(index: Index, index_keys: keys.IndexKeys) -> Shape | None:
    encoder = _sealed_encoder(index, index_keys, index.sealed_encoder, index.encoder_version)
    if encoder is None:
        return None
    following = _sealed_encoder(
        index, index_keys, index.sealed_next_encoder, index.encoder_version + 1
    )
    return Shape(index.metric, index.storage_precision, encoder, following)


def _sealed_encoder(
    index: Index, index_keys: keys.IndexKeys, sealed: bytes | None, version: int
) -> Encoder | None:
    if sealed is None:
        return None
    data = index_keys.parameters.open(aead.INDEX_LEVEL, sealed)
    parameters = EncoderParameters.from_bytes(data)
    if parameters.version != version:
        raise DataCorrupted("The stored encoder of the index is of another version")
    return _encoder(index, index_keys, parameters)


def _encoder(index: Index, index_keys: keys.IndexKeys, parameters: EncoderParameters) -> Encoder:
    """Return the encoder of `index` with `parameters`, which also tell the dimension."""
    dimension = len(parameters.mean)
    bits = index.sketch_bits or sketch_bits(dimension)
    return Encoder(
        index_keys.sketch_key, dimension, index.metric, bits, index.sketch_noise, parameters
    )
