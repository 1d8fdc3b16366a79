"""The metadata schema of an index: how its fields may be searched.

Names of fields are the client's data, so the schema is sealed like the metadata itself. It never
changes.
"""

from dataclasses import asdict

import msgspec

from app import errors
from app.crypto import aead, keys
from app.domain import FieldPolicy, Index, MetadataSchema

MAX_FIELDS = 1_000
MAX_NAME_LENGTH = 1_024

_decode = msgspec.json.Decoder(dict[str, FieldPolicy]).decode


def check(schema: MetadataSchema) -> None:
    """Raise `InvalidInput` for what a schema cannot be."""
    if len(schema) > MAX_FIELDS:
        raise errors.InvalidInput(f"metadata_schema can name at most {MAX_FIELDS} fields")
    if any(len(name) > MAX_NAME_LENGTH for name in schema):
        raise errors.InvalidInput(
            f"metadata_schema: a field can have at most {MAX_NAME_LENGTH} characters"
        )
    if any(policy.full_text for policy in schema.values()):
        raise errors.InvalidInput("metadata_schema: full_text is not supported")


def seal(index_keys: keys.IndexKeys, schema: MetadataSchema) -> bytes:
    """Return `schema` as it is stored."""
    fields = {name: asdict(policy) for name, policy in schema.items()}
    return index_keys.parameters.seal(aead.SCHEMA_LEVEL, msgspec.json.encode(fields))


def of(index: Index, index_keys: keys.IndexKeys) -> MetadataSchema | None:
    """Return the schema of `index`, if it was created with one. Raises `DataCorrupted`."""
    if index.sealed_schema is None:
        return None
    return _decode(index_keys.parameters.open(aead.SCHEMA_LEVEL, index.sealed_schema))


def unfilterable(schema: MetadataSchema | None) -> frozenset[str]:
    """Return the fields of which no tokens may be made."""
    return frozenset(name for name, policy in (schema or {}).items() if not policy.filterable)
