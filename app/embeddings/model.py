"""A sentence-transformers model in memory."""

import importlib
import importlib.util
import logging
import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import numpy as np

from app import errors
from app.domain import EmbeddingModel, Matrix
from app.embeddings import files
from app.embeddings.catalogue import FoundModel

logger = logging.getLogger(__name__)

# The tokeniser reads a text to its end, though the model sees its first tokens only. No text with
# words in it has so many characters a token; one of megabytes would hold up everybody else.
_MAX_CHARACTERS_A_TOKEN = 1000
_USUAL_TOKENS = 512


class Purpose(StrEnum):
    """What a vector is for. Some models put a prompt of their own before a query or a document."""

    DOCUMENT = "document"
    QUERY = "query"


def is_extra_installed() -> bool:
    """Whether sentence-transformers is there; it is not imported."""
    return all(
        importlib.util.find_spec(name) is not None for name in ("torch", "sentence_transformers")
    )


class LoadedModel:
    """A model that makes vectors. Its methods take a while: call them from a thread."""

    def __init__(self, found: FoundModel, n_threads: int) -> None:
        """Load the model with what it needs, such as torch. Raises whatever the libraries raise."""
        self.directory = found.directory
        self.weights_sha256 = files.weights_sha256(found.directory)
        # The extra is optional, and torch takes seconds and hundreds of megabytes: not before a
        # model is needed.
        torch = importlib.import_module("torch")
        importlib.import_module("transformers.utils.logging").disable_progress_bar()
        library = importlib.import_module("sentence_transformers")
        torch.set_num_threads(n_threads)
        # Code that comes with a model is not run; this version of the library holds to it for local
        # models, too.
        self._model: Any = library.SentenceTransformer(
            str(found.directory), device="cpu", local_files_only=True, trust_remote_code=False
        )
        # To a model that also takes pictures, the text "https://…/cat.png" would be one: it must be
        # told.
        self._takes_text_only = set(self._model.modalities) <= {"text"}
        self.is_symmetric = _is_symmetric(self._model)
        length = self._model.max_seq_length
        # A tokeniser without a limit says so with 10^30.
        is_limited = isinstance(length, int) and 0 < length < math.pow(2, 31)
        self.max_characters = _MAX_CHARACTERS_A_TOKEN * (length if is_limited else _USUAL_TOKENS)
        (probe,) = self.encode(["probe"], Purpose.DOCUMENT)
        self.facts = EmbeddingModel(found.name, len(probe), length if is_limited else None)

    def encode(self, texts: Sequence[str], purpose: Purpose) -> Matrix:
        """Return the vectors of `texts`, (n, d), as the library makes them in one pass."""
        encode = (
            self._model.encode_query if purpose is Purpose.QUERY else self._model.encode_document
        )
        cut = [text[: self.max_characters] for text in texts]
        inputs = cut if self._takes_text_only else [{"text": text} for text in cut]
        vectors = encode(inputs, batch_size=len(inputs), show_progress_bar=False)
        return np.ascontiguousarray(vectors, dtype=np.float32)


def load(found: FoundModel, n_threads: int) -> LoadedModel:
    """Return the model that was found, loaded. Raises `ModelUnavailable`."""
    try:
        model = LoadedModel(found, n_threads)
    except Exception as error:
        logger.warning("embedding model %s cannot be loaded", found.name, exc_info=True)
        raise errors.ModelUnavailable(
            f"Embedding model '{found.name}' cannot be loaded; the log says why"
        ) from error
    logger.info("loaded embedding model %s, dimension %d", found.name, model.facts.dimension)
    return model


def _is_symmetric(model: Any) -> bool:
    """Whether queries and documents are embedded alike."""
    # A router has other modules for queries than for documents.
    is_routed = (
        type(model[0]).__name__ == "Router"
        or getattr(model[0], "query_expansion", None) is not None
    )
    lengths = {getattr(model[0], name, None) for name in ("query_length", "document_length")}
    prompts = {model.prompts.get(name) or "" for name in ("query", "document", "passage", "corpus")}
    return not is_routed and lengths == {None} and prompts == {""}
