"""Route of the embedding models."""

from litestar import get
from litestar.di import NamedDependency

from app.api.schemas import EmbeddingModelsAnswer
from app.domain import Caller
from app.services.embedding import EmbeddingService
from app.services.indexes import IndexService


@get("/embedding-models", tags=["embeddings"])
async def embedding_models(
    caller: NamedDependency[Caller],
    indexes: NamedDependency[IndexService],
    embedding: NamedDependency[EmbeddingService],
) -> EmbeddingModelsAnswer:
    """List the models that this service can load now."""
    await indexes.check_user(caller)
    return EmbeddingModelsAnswer.of(await embedding.models())
