"""Route of the embedding models."""

from litestar import get
from litestar.di import NamedDependency

from app.api.schemas import EmbeddingModelsAnswer
from app.services.embedding import EmbeddingService


@get("/embedding-models", tags=["embeddings"])
async def embedding_models(embedding: NamedDependency[EmbeddingService]) -> EmbeddingModelsAnswer:
    """List the models that this service can load now."""
    return EmbeddingModelsAnswer.of(await embedding.models())
