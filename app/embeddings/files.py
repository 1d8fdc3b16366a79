"""A model on disk: what its configuration tells without loading it, and the hash of its weights.

A sentence-transformers model is a directory with `modules.json`, the list of its modules: a
transformer, a pooling, perhaps dense layers and a normalisation, each configured in a sub-directory
of its own. A directory with a transformers `config.json` alone is a model too;
sentence-transformers adds mean pooling to it.
"""

import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.domain import EmbeddingModel

MODULES = "modules.json"
_CONFIGURATION = "config.json"
_TRANSFORMER_SETTINGS = "sentence_bert_config.json"
_MODEL_SETTINGS = "config_sentence_transformers.json"
# In the order in which a directory's weights are looked for; other formats in it are not loaded.
_WEIGHTS = ("*.safetensors", "*.bin")
_CHUNK_BYTES = 1 << 20

# What is known of one file without reading it: path in the model, size, time of the last change.
Signature = tuple[tuple[str, int, int], ...]


def is_model(directory: Path) -> bool:
    """Whether `directory` holds a model with weights."""
    has_configuration = any((directory / name).is_file() for name in (MODULES, _CONFIGURATION))
    return has_configuration and bool(weight_files(directory))


def weight_files(directory: Path) -> list[Path]:
    """Return the files with the weights of the model in `directory`, in the order of their paths.

    They are in the directory itself and in the directories of its modules. Where the same weights
    are there in several formats, these are the ones that are loaded.
    """
    return sorted(
        file for part in (directory, *_module_directories(directory)) for file in _weights_in(part)
    )


def weights_sha256(directory: Path) -> str:
    """Return the SHA-256 of the weights of the model in `directory`, in hexadecimal.

    That of the file, if there is one; else that of the lines `sha256sum` prints for the files, by
    their paths in the model. Files are read again only when their size or time has changed. Raises
    `OSError`.
    """
    return _weights_sha256(directory, signature(directory))


def signature(directory: Path) -> Signature:
    """Return what changes when the weights in `directory` are replaced. Raises `OSError`."""
    stats = ((file, file.stat()) for file in weight_files(directory))
    return tuple(
        (file.relative_to(directory).as_posix(), stat.st_size, stat.st_mtime_ns)
        for file, stat in stats
    )


def facts(name: str, directory: Path) -> EmbeddingModel | None:
    """Return dimension and length of a model, if its configuration states both plainly."""
    try:
        modules = _read(directory / MODULES)
        settings = _read(directory / modules[0]["path"] / _TRANSFORMER_SETTINGS)
        max_seq_length = settings["max_seq_length"]
        dimension = _dimension(directory, modules[1:])
        is_truncated = _read_if_there(directory / _MODEL_SETTINGS).get("truncate_dim")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    if is_truncated or not (isinstance(max_seq_length, int) and isinstance(dimension, int)):
        return None
    return EmbeddingModel(name, dimension, max_seq_length)


def _dimension(directory: Path, modules: list[dict[str, Any]]) -> int | None:
    """Return the length of the vectors that the `modules` after the transformer make.

    None when one of the modules is not well known.
    """
    dimension = None
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        if kind == "Pooling":
            dimension = _pooled_dimension(_read(directory / module["path"] / _CONFIGURATION))
        elif kind == "Dense":
            dimension = _read(directory / module["path"] / _CONFIGURATION)["out_features"]
        elif kind != "Normalize":
            return None
    return dimension


def _pooled_dimension(pooling: dict[str, Any]) -> int:
    """Return the dimension of a pooling; several modes are concatenated."""
    mode = pooling.get("pooling_mode", "")
    modes = [mode] if isinstance(mode, str) else mode
    if not mode:
        modes = [
            name
            for name, is_used in pooling.items()
            if name.startswith("pooling_mode_") and is_used
        ]
    size: int = pooling.get("embedding_dimension") or pooling["word_embedding_dimension"]
    return size * len(modes)


def _module_directories(directory: Path) -> Iterator[Path]:
    try:
        paths = {str(module["path"]) for module in _read(directory / MODULES)}
    except (OSError, ValueError, LookupError, TypeError):
        return
    for path in sorted(paths - {""}):
        yield directory / path


def _weights_in(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    found = ([file for file in directory.glob(pattern) if file.is_file()] for pattern in _WEIGHTS)
    return next((files for files in found if files), [])


def _read(file: Path) -> Any:
    return json.loads(file.read_bytes())


def _read_if_there(file: Path) -> Any:
    return _read(file) if file.is_file() else {}


@functools.lru_cache(maxsize=64)
def _weights_sha256(directory: Path, signed: Signature) -> str:
    hashes = [(_sha256(directory / path), path) for path, *_ in signed]
    if len(hashes) == 1:
        return hashes[0][0]
    return hashlib.sha256(
        "".join(f"{digest}  {path}\n" for digest, path in hashes).encode()
    ).hexdigest()


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
