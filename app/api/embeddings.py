"""Route of the embedding models, and its body."""

from collections.abc import Sequence

from litestar import get
from litestar.di import NamedDependency
from msgspec import UNSET, Struct, UnsetType

from app.api.around.routes import reads
from app.domain import Caller, EmbeddingModel
from app.services.context import ServiceContext


class EmbeddingModelAnswer(Struct, frozen=True):
    """A model that indexes can be created with; one without a limit has no `max_seq_length`."""

    name: str
    dimension: int
    max_seq_length: int | UnsetType = UNSET

    @classmethod
    def of(cls, model: EmbeddingModel) -> "EmbeddingModelAnswer":
        """Return `model` in the contract's words."""
        limit = model.max_seq_length
        return cls(model.name, model.dimension, UNSET if limit is None else limit)


class EmbeddingModelsAnswer(Struct, frozen=True):
    """Answer to embedding-models."""

    models: list[EmbeddingModelAnswer]

    @classmethod
    def of(cls, models: Sequence[EmbeddingModel]) -> "EmbeddingModelsAnswer":
        """Return `models` in the contract's words."""
        return cls([EmbeddingModelAnswer.of(model) for model in models])


@get("/embedding-models", tags=["embeddings"], opt=reads("embedding_models"))
async def embedding_models(
    caller: NamedDependency[Caller], services: NamedDependency[ServiceContext]
) -> EmbeddingModelsAnswer:
    """List the models that this service can load now."""
    await services.indexes.check_user(caller)
    return EmbeddingModelsAnswer.of(await services.embedding.models())
