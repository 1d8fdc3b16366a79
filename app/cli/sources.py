"""Files that can be imported: JSONL, npy, npz and, with the extra `parquet`, Parquet.

JSONL has an object a line, with `id` and `vector`, and if it likes `contents` and `metadata`. In
npz and Parquet these are the names of arrays or columns (`vectors` or `vector`, `ids` or `id`).
Without ids, as in npy, the number of the row is the id, or a line of the file `--ids`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from app.errors import ConfigurationError

Items = Iterator[dict[str, Any]]

_PARQUET_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Source:
    """A file's items from a given number on, and how many it has if that is known."""

    items: Callable[[int], Items]
    n_items: int | None


def open_source(path: Path, ids: str | None) -> Source:
    """Return the items of a file. Raises `ConfigurationError` when it cannot be read."""
    if not path.is_file():
        raise ConfigurationError(f"{path}: does not exist")
    try:
        match path.suffix:
            case ".jsonl" | ".ndjson":
                return _jsonl(path)
            case ".npy":
                return _matrix(np.load(path, mmap_mode="r", allow_pickle=False), _ids_of(ids))
            case ".npz":
                return _npz(path, _ids_of(ids))
            case ".parquet":
                return _parquet(path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from error
    raise ConfigurationError(f"{path}: must end in .jsonl, .npy, .npz or .parquet")


def _jsonl(path: Path) -> Source:
    with path.open("rb") as stream:
        n_items = sum(1 for line in stream if line.strip())

    def items(start: int) -> Items:
        with path.open("rb") as stream:
            n_seen = 0
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                n_seen += 1
                if n_seen > start:
                    yield _item(line, path, number)

    return Source(items, n_items)


def _item(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        item: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError:
        raise ConfigurationError(f"{path}, line {number}: must be a JSON object") from None
    if not isinstance(item.get("id"), str):
        raise ConfigurationError(f"{path}, line {number}: must have an id, a text")
    return item


def _matrix(vectors: NDArray[Any], ids: Sequence[str] | None, **columns: NDArray[Any]) -> Source:
    """Return the rows of `vectors` (n, d); `columns` are parallel to them."""
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.number):  # noqa: PLR2004  # a matrix
        raise ConfigurationError("the vectors must be a matrix of numbers, one row an item")
    for name, column in {"ids": ids, **columns}.items():
        if column is not None and len(column) != len(vectors):
            raise ConfigurationError(f"there are {len(vectors)} vectors, but {len(column)} {name}")

    def items(start: int) -> Items:
        for row in range(start, len(vectors)):
            item: dict[str, Any] = {"id": str(row) if ids is None else str(ids[row])}
            item["vector"] = np.asarray(vectors[row], np.float32).tolist()
            for name, column in columns.items():
                if column[row]:
                    text = str(column[row])
                    item[name] = msgspec.json.decode(text) if name == "metadata" else text
            yield item

    return Source(items, len(vectors))


def _npz(path: Path, ids: Sequence[str] | None) -> Source:
    with np.load(path, allow_pickle=False) as arrays:
        vectors = next(
            (arrays[name] for name in ("vectors", "vector", "arr_0") if name in arrays), None
        )
        if vectors is None:
            raise ConfigurationError(f"{path}: must have an array `vectors`")
        own_ids = next((arrays[name] for name in ("ids", "id") if name in arrays), None)
        columns = {name: arrays[name] for name in ("contents", "metadata") if name in arrays}
    return _matrix(vectors, ids if own_ids is None else own_ids.tolist(), **columns)


def _parquet(path: Path) -> Source:
    if find_spec("pyarrow") is None:
        raise ConfigurationError(f"{path}: install sealdex[parquet] to read Parquet")
    from pyarrow import parquet  # noqa: PLC0415  # only there with the extra

    file = parquet.ParquetFile(path)
    names = set(file.schema_arrow.names)
    vector = next((name for name in ("vector", "vectors", "embedding") if name in names), None)
    if vector is None:
        raise ConfigurationError(f"{path}: must have a column `vector`")
    item_id = next((name for name in ("id", "ids") if name in names), None)
    columns = {vector: "vector", **({item_id: "id"} if item_id else {})}
    columns |= {name: name for name in ("contents", "metadata") if name in names}

    def items(start: int) -> Items:
        row = 0
        for batch in file.iter_batches(_PARQUET_BATCH, columns=list(columns)):
            if row + len(batch) <= start:
                row += len(batch)
                continue
            for values in batch.to_pylist():
                if row >= start:
                    item = {
                        name: values[column]
                        for column, name in columns.items()
                        if values[column] is not None
                    }
                    item["id"] = str(item.get("id", row))
                    if isinstance(item.get("metadata"), str):
                        item["metadata"] = msgspec.json.decode(item["metadata"])
                    yield item
                row += 1

    return Source(items, file.metadata.num_rows)


def _ids_of(path: str | None) -> list[str] | None:
    return None if path is None else Path(path).read_text().splitlines()
