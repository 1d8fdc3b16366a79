"""Sends most of what Schemathesis makes up to an index that exists.

Loaded by the command `schemathesis` through SCHEMATHESIS_HOOKS. One body in five stays as it was
made.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import schemathesis

INDEX = {"index_name": "fuzz", "index_key": "5e" * 32}
DIMENSION = 3
_KEPT = 5


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    """Name our index in `body`, and cut its vectors to the dimension of the index."""
    path = context.operation.path if context.operation else ""
    is_kept = zlib.crc32(repr(body).encode()) % _KEPT == 0
    if not isinstance(body, dict) or is_kept or path.endswith(("/create", "/indexes/delete")):
        return body
    changed = {**body, **INDEX}
    if isinstance(changed.get("items"), list):
        changed["items"] = [_with_vector(item) for item in changed["items"]]
    if isinstance(changed.get("query_vectors"), list):
        changed["query_vectors"] = _cut(changed["query_vectors"])
    return changed


def _with_vector(item: Any) -> Any:
    if isinstance(item, dict) and isinstance(item.get("vector"), list):
        return {**item, "vector": _cut(item["vector"])}
    return item


def _cut(vector: Sequence[Any]) -> list[Any]:
    """Three numbers where there were numbers; what is no list of numbers stays as it is."""
    return (list(vector) * DIMENSION)[:DIMENSION] if vector else [1.0, 0.0, 0.0]
