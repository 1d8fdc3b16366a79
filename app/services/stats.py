"""What is known of an index beyond the contract, for whoever may use the index."""

from dataclasses import dataclass

from app.domain import Index, MetadataSchema, TrainingJob
from app.engine.profile import SearchProfile
from app.training.drift import Look


@dataclass(frozen=True, slots=True)
class EmbeddingStats:
    """The embedding model of an index, and whether its weights are those of the index.

    `status` is available, missing or changed.
    """

    model: str
    dimension: int | None
    weights_sha256: str | None
    status: str


@dataclass(frozen=True, slots=True)
class IndexStats:
    """An index as it is now: its row, what is counted and judged, and what it takes on disk."""

    index: Index
    look: Look
    profile: SearchProfile | None
    job: TrainingJob | None
    embedding: EmbeddingStats | None
    n_bytes: int
    n_ivf_bytes: int
    metadata_schema: MetadataSchema
