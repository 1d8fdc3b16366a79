"""What the services use: models by name, vectors for texts.

Models are loaded when they are first needed, one at a time, and kept in memory until newer ones
push them out. Loading and encoding have a thread each, so that a model that is being loaded holds
up no other.
"""

import asyncio
import functools
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from cachetools import LRUCache

from app import errors
from app.domain import EmbeddingModel, Matrix
from app.embeddings import catalogue, files, hub
from app.embeddings.batching import Batcher, Places
from app.embeddings.catalogue import FoundModel
from app.embeddings.model import LoadedModel, Purpose, is_extra_installed, load
from app.settings import Settings

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

INSTALL = "install the extra: pip install 'sealdex[embeddings]'"

_MAX_NAME_LENGTH = 255
_CHARACTERS_A_TOKEN = 4
_USUAL_TOKENS = 512


class _Ready:
    """A loaded model and the queues to it."""

    def __init__(self, model: LoadedModel, executor: ThreadPoolExecutor, places: Places) -> None:
        self.model = model
        characters = _CHARACTERS_A_TOKEN * (model.facts.max_seq_length or _USUAL_TOKENS)
        make = functools.partial(
            Batcher, executor=executor, places=places, max_characters=characters
        )
        documents = make(functools.partial(model.encode, purpose=Purpose.DOCUMENT))
        queries = (
            documents
            if model.is_symmetric
            else make(functools.partial(model.encode, purpose=Purpose.QUERY))
        )
        self.batchers = {Purpose.DOCUMENT: documents, Purpose.QUERY: queries}


class Embedder:
    """The embedding models of this process."""

    def __init__(self, settings: Settings) -> None:
        self._models_dir = settings.models_dir
        self._may_download = settings.allow_model_downloads
        self._n_threads = settings.embedding_threads or _share_of_the_cores(settings.workers)
        self._places = Places(settings.max_queued_texts)
        self._ready: LRUCache[str, _Ready] = LRUCache(settings.max_loaded_models)
        self._loading: dict[str, asyncio.Task[_Ready]] = {}
        # What loading has taught of models whose configuration does not tell; None for those that
        # do not load.
        self._learnt: dict[tuple[Path, files.Signature], EmbeddingModel | None] = {}
        self._loader = ThreadPoolExecutor(1, "sealdex-models")
        self._encoder = ThreadPoolExecutor(1, "sealdex-texts")

    def close(self) -> None:
        """Let go of the threads; what they are at ends by itself."""
        self._loader.shutdown(wait=False, cancel_futures=True)
        self._encoder.shutdown(wait=False, cancel_futures=True)

    async def models(self) -> list[EmbeddingModel]:
        """Return the models on this machine that can be loaded, by name; none without the extra."""
        if not is_extra_installed():
            return []
        found = await self._in_loader(self._found)
        facts = [await self._facts(model) for model in found]
        return [model for model in facts if model is not None]

    async def look_up(self, name: str) -> tuple[EmbeddingModel, str]:
        """Return the model that a client calls `name`, loaded, and the SHA-256 of its weights.

        Raises `InvalidInput` when there is no such model, and `ModelUnavailable` when it does not
        load.
        """
        if not is_extra_installed():
            raise errors.InvalidInput(f"This service has no embedding models; {INSTALL}")
        found = await self._in_loader(lambda: self._find(name))
        ready = await self._load(found.name, lambda: found)
        return ready.model.facts, ready.model.weights_sha256

    async def embed(
        self, name: str, weights_sha256: str, texts: Sequence[str], purpose: Purpose
    ) -> Matrix:
        """Return the vectors of `texts`, (n, d), by the model of this name and these weights.

        Raises `ModelUnavailable` when the model is gone or has other weights, and `Overloaded`.
        """
        ready = await self._ready_with(name, weights_sha256)
        return await ready.batchers[purpose].embed(texts)

    async def weights_sha256(self, name: str) -> str | None:
        """Return the SHA-256 of the weights on disk of the model with this full name, or None."""
        try:
            return await self._in_loader(
                lambda: files.weights_sha256(self._find_again(name).directory)
            )
        except (errors.ModelUnavailable, OSError):
            return None

    async def _ready_with(self, name: str, weights_sha256: str) -> _Ready:
        """Return a model with these weights, loaded. Raises `ModelUnavailable`."""
        ready = await self._load(name, lambda: self._find_again(name))
        if ready.model.weights_sha256 == weights_sha256:
            return ready
        if await self.weights_sha256(name) == weights_sha256:
            # The files have been changed back since the model was loaded.
            self._ready.pop(name, None)
            ready = await self._load(name, lambda: self._find_again(name))
        if ready.model.weights_sha256 != weights_sha256:
            raise errors.ModelUnavailable(
                f"The weights of embedding model '{name}' are not those the index was made with "
                f"(SHA-256 {weights_sha256}): bring these back, or send vectors"
            )
        return ready

    async def _in_loader(self, function: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._loader, function)

    async def _load(self, name: str, find: Callable[[], FoundModel]) -> _Ready:
        """Return the model with this full name, loaded; all who want it wait for one loading."""
        if name in self._ready:
            return self._ready[name]
        if name not in self._loading:
            task = asyncio.create_task(self._load_now(name, find))
            self._loading[name] = task
            task.add_done_callback(lambda task: self._forget_loading(name, task))
        return await asyncio.shield(self._loading[name])

    async def _load_now(self, name: str, find: Callable[[], FoundModel]) -> _Ready:
        model = await self._in_loader(lambda: load(find(), self._n_threads))
        ready = self._ready[name] = _Ready(model, self._encoder, self._places)
        return ready

    def _forget_loading(self, name: str, task: asyncio.Task[_Ready]) -> None:
        del self._loading[name]
        # All who waited may be gone; what went wrong is in the log.
        if not task.cancelled():
            task.exception()

    async def _facts(self, found: FoundModel) -> EmbeddingModel | None:
        facts = await self._in_loader(lambda: files.facts(found.name, found.directory))
        if facts is not None:
            return facts
        key = (found.directory, await self._in_loader(lambda: files.signature(found.directory)))
        if key not in self._learnt:
            try:
                self._learnt[key] = (await self._load(found.name, lambda: found)).model.facts
            except errors.ModelUnavailable:
                self._learnt[key] = None
        return self._learnt[key]

    def _found(self) -> list[FoundModel]:
        """Return the models on this machine: those of the models directory hide the hub's cache."""
        try:
            own = catalogue.models_in(self._models_dir) if self._models_dir is not None else []
        except OSError as error:
            logger.warning("the models directory cannot be read: %s", error.strerror)
            own = []
        names = {model.name for model in own}
        return [*own, *(model for model in hub.cached_models() if model.name not in names)]

    def _find(self, name: str) -> FoundModel:
        """Return the model that `name` means, from this machine or else from the hub.

        Raises `InvalidInput`.
        """
        if len(name) > _MAX_NAME_LENGTH:
            raise errors.InvalidInput(
                f"embedding_model cannot be longer than {_MAX_NAME_LENGTH} characters"
            )
        found = self._found()
        own = [model for model in found if model.directory.parent == self._models_dir]
        chosen = catalogue.choose(own, name) or catalogue.choose(found, name)
        return chosen if chosen is not None else self._download(name, found)

    def _download(self, name: str, found: Sequence[FoundModel]) -> FoundModel:
        """Return a model of the hub. Raises `InvalidInput`, naming those that were `found` here."""
        try:
            self._check_downloads()
            return hub.download(catalogue.full_name(name))
        except hub.HubRefused as refusal:
            known = ", ".join(model.name for model in found) or "none"
            raise errors.InvalidInput(
                f"Unknown embedding_model '{name}'. Available: {known}. Not from the hub: {refusal}"
            ) from refusal

    def _find_again(self, name: str) -> FoundModel:
        """Return the model of an index that was made with it. Raises `ModelUnavailable`."""
        if not is_extra_installed():
            raise errors.ModelUnavailable(
                f"The embedding model of this index cannot be loaded; {INSTALL}"
            )
        try:
            return self._find(name)
        except errors.InvalidInput as error:
            raise errors.ModelUnavailable(
                f"Embedding model '{name}' is not on this service any more"
            ) from error

    def _check_downloads(self) -> None:
        if self._may_download is False:
            raise hub.HubRefused("SEALDEX_ALLOW_MODEL_DOWNLOADS is false")
        if hub.is_offline():
            raise hub.HubRefused("HF_HUB_OFFLINE is set")


def _share_of_the_cores(n_workers: int) -> int:
    """Return how many threads a worker may use for one pass: all workers fill the machine."""
    n_cores = len(os.sched_getaffinity(0))
    return max(1, n_cores // (n_workers or n_cores))
