"""An index whose key was presented: its row, its keys, and what the row keeps sealed."""

from dataclasses import dataclass

from app.crypto import aead, keys
from app.domain import Index, MetadataSchema, Permission
from app.engine import metadata_schema
from app.engine.profile import SearchProfile
from app.engine.sketches.encoder import Encoder, sketch_bits
from app.engine.sketches.parameters import EncoderParameters


@dataclass(frozen=True, slots=True)
class KeyedIndex:
    """An index whose key was presented; `encoder` is None until the first upsert, `profile` until it was measured.

    With the keys of a user who may only write, no stored value opens (`keys.WriterKeys`). While a
    training moves to another encoder, that is `next_encoder`, and writers use both.
    """

    index: Index
    keys: keys.IndexKeys
    encoder: Encoder | None
    next_encoder: Encoder | None = None
    permissions: frozenset[Permission] = frozenset(Permission)
    schema: MetadataSchema | None = None
    profile: SearchProfile | None = None


def open_row(
    index: Index,
    index_keys: keys.IndexKeys,
    permissions: frozenset[Permission] = frozenset(Permission),
) -> KeyedIndex:
    """Return `index` with its keys, and the encoders and the schema that are sealed in its row."""
    encoder, next_encoder = (
        build_encoder(index, index_keys, sealed)
        for sealed in (index.sealed_encoder, index.sealed_next_encoder)
    )
    schema = metadata_schema.of(index, index_keys)
    return KeyedIndex(
        index, index_keys, encoder, next_encoder, permissions, schema, profile_of(index)
    )


def profile_of(index: Index) -> SearchProfile | None:
    """Return the search profile that the row of `index` holds, if some setting was measured."""
    profile = SearchProfile.from_json(index.n_lists, index.profile)
    return profile if profile is not None and profile.points else None


def build_encoder(index: Index, index_keys: keys.IndexKeys, sealed: bytes | None) -> Encoder | None:
    """Return the encoder of `index` with the `sealed` parameters, if there are any."""
    if sealed is None:
        return None
    data = index_keys.parameters.open(aead.INDEX_LEVEL, sealed)
    return encoder_for(index, index_keys, EncoderParameters.from_bytes(data))


def encoder_for(index: Index, index_keys: keys.IndexKeys, parameters: EncoderParameters) -> Encoder:
    """Return the encoder of `index` with `parameters`, which also tell the dimension."""
    dimension = len(parameters.mean)
    bits = index.sketch_bits or sketch_bits(dimension)
    return Encoder(
        index_keys.sketch_key, dimension, index.metric, bits, index.sketch_noise, parameters
    )
