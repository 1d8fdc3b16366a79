"""Files that can be imported: JSONL, npy, npz and, with the extra `parquet`, Parquet.

JSONL has an object a line, with `id` and `vector`, and `contents` and `metadata` where an item has
them. In npz and Parquet these are the names of arrays or columns (`vectors` or `vector`, `ids` or
`id`). Where ids are missing, as in npy, the number of the row is the id, or a line of the file that
`--ids` names.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from app.errors import ConfigurationError

Items = Iterator[dict[str, Any]]

_PARQUET_BATCH = 1000
_TEXTS = ("contents", "metadata")


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
    def items(start: int) -> Items:
        for number, line in islice(_lines(path), start, None):
            yield _item(line, path, number)

    return Source(items, sum(1 for _ in _lines(path)))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not empty, with their numbers."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield number, line


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
            item_id = str(row) if ids is None else str(ids[row])
            vector = np.asarray(vectors[row], np.float32).tolist()
            yield {"id": item_id, "vector": vector, **_texts_of(columns, row)}

    return Source(items, len(vectors))


def _texts_of(columns: Mapping[str, NDArray[Any]], row: int) -> dict[str, Any]:
    """Return contents and metadata of a row, where it has them."""
    texts = {name: str(column[row]) for name, column in columns.items() if column[row]}
    return {name: _decoded(name, text) for name, text in texts.items()}


def _decoded(name: str, value: Any) -> Any:
    """Return the value of a column; metadata may be written as JSON text."""
    return msgspec.json.decode(value) if name == "metadata" and isinstance(value, str) else value


def _npz(path: Path, ids: Sequence[str] | None) -> Source:
    with np.load(path, allow_pickle=False) as arrays:
        vectors = _first(("vectors", "vector", "arr_0"), arrays)
        if vectors is None:
            raise ConfigurationError(f"{path}: must have an array `vectors`")
        own_ids = _first(("ids", "id"), arrays)
        columns = {name: arrays[name] for name in _TEXTS if name in arrays}
        return _matrix(
            arrays[vectors], ids if own_ids is None else arrays[own_ids].tolist(), **columns
        )


def _first(wanted: Iterable[str], names: Container[str]) -> str | None:
    """Return the first of the `wanted` names that is there."""
    return next((name for name in wanted if name in names), None)


def _parquet(path: Path) -> Source:
    if find_spec("pyarrow") is None:
        raise ConfigurationError(f"{path}: install sealdex[parquet] to read Parquet")
    from pyarrow import parquet  # noqa: PLC0415  # only there with the extra

    file = parquet.ParquetFile(path)
    columns = _columns_of(path, file.schema_arrow.names)

    def items(start: int) -> Items:
        first = 0
        for batch in file.iter_batches(_PARQUET_BATCH, columns=list(columns)):
            # What lies before the start is not turned into Python's values.
            part = batch.slice(max(start - first, 0))
            for row, values in enumerate(part.to_pylist(), first + len(batch) - len(part)):
                yield _item_of_row(values, columns, row)
            first += len(batch)

    return Source(items, file.metadata.num_rows)


def _columns_of(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the columns to read, with the field of an item that each of them fills."""
    vector = _first(("vector", "vectors", "embedding"), names)
    if vector is None:
        raise ConfigurationError(f"{path}: must have a column `vector`")
    item_id = _first(("id", "ids"), names)
    columns = {vector: "vector", **({item_id: "id"} if item_id else {})}
    return columns | {name: name for name in _TEXTS if name in names}


def _item_of_row(values: Mapping[str, Any], columns: Mapping[str, str], row: int) -> dict[str, Any]:
    """Return the item in a row; its number is the id where the row has none."""
    item = {
        name: _decoded(name, values[column])
        for column, name in columns.items()
        if values[column] is not None
    }
    return {**item, "id": str(item.get("id", row))}


def _ids_of(path: str | None) -> list[str] | None:
    return None if path is None else Path(path).read_text().splitlines()
