"""Models of the Hugging Face hub: those in its cache on this machine, and those it is asked for.

The hub's own variables (`HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_TOKEN`, …) are read by its
library.
"""

import functools
import importlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app import errors
from app.embeddings import files
from app.embeddings.catalogue import FoundModel

logger = logging.getLogger(__name__)

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# The same weights in formats that are not loaded here, and what is no part of the model.
_SUPERFLUOUS = (
    "onnx/*",
    "openvino/*",
    "coreml/*",
    "*.onnx",
    "*.h5",
    "*.msgpack",
    "*.ot",
    "*.gguf",
    ".*",
)


class HubRefused(Exception):
    """The hub has no such model for us, or is not there; the message says which."""


def is_offline() -> bool:
    """Whether the hub's own switch (`HF_HUB_OFFLINE`) forbids to ask it."""
    return bool(_hub().constants.is_offline_mode())


def cached_models() -> list[FoundModel]:
    """Return the sentence-transformers models in the hub's cache, by name."""
    try:
        cache = _hub().scan_cache_dir(_hub().constants.HF_HUB_CACHE)
    except (_hub().errors.CacheNotFound, ValueError):
        return []
    models = [
        FoundModel(repository.repo_id, directory)
        for repository in cache.repos
        if repository.repo_type == "model"
        and (directory := _newest(repository)) is not None
        # Anything can be in the cache; a bare language model would only look like one for
        # embeddings.
        and (directory / files.MODULES).is_file()
        and files.is_model(directory)
    ]
    return sorted(models, key=lambda model: model.name)


def download(name: str) -> FoundModel:
    """Fetch the model called `name`, in full, into the hub's cache.

    Raises `HubRefused` when there is no such model, and `ModelUnavailable` when fetching it fails.
    """
    if not _HUB_NAME.fullmatch(name):
        raise HubRefused("it is no name of a model on the hub")
    repository = _repository(name)
    paths = [sibling.rfilename for sibling in repository.siblings or []]
    if files.MODULES not in paths:
        raise HubRefused("it is no sentence-transformers model")
    try:
        directory = _hub().snapshot_download(
            repository.id, revision=repository.sha, ignore_patterns=_unwanted(paths)
        )
    except Exception as error:  # the library's, and those of the disk
        logger.warning("a model cannot be downloaded", exc_info=True)
        raise errors.ModelUnavailable(
            f"Embedding model '{name}' cannot be downloaded now"
        ) from error
    return FoundModel(repository.id, Path(directory))


def _repository(name: str) -> Any:
    """Return what the hub says of a model. Raises `HubRefused`."""
    hub = _hub()
    try:
        return hub.HfApi().model_info(name)
    except hub.errors.HfHubHTTPError as error:
        logger.info("the hub answers %s", type(error).__name__)
        raise HubRefused(
            "the hub has no such model, or does not give it to this service"
        ) from error
    except Exception as error:  # the library's errors of transport have no common base class
        logger.warning("the hub cannot be reached: %s", type(error).__name__)
        raise HubRefused("the hub cannot be reached") from error


def _unwanted(paths: Sequence[str]) -> list[str]:
    parts_with_safetensors = {
        path.rpartition("/")[0] for path in paths if path.endswith(".safetensors")
    }
    doubled = [
        path
        for path in paths
        if path.endswith(".bin") and path.rpartition("/")[0] in parts_with_safetensors
    ]
    return [*_SUPERFLUOUS, *doubled]


def _newest(repository: Any) -> Path | None:
    """Return the snapshot of a cached repository that its main branch names, else the newest."""
    revisions = sorted(
        repository.revisions, key=lambda one: ("main" in one.refs, one.last_modified)
    )
    return revisions[-1].snapshot_path if revisions else None


@functools.cache
def _hub() -> Any:
    # Part of the extra, so it may not be there.
    return importlib.import_module("huggingface_hub")
