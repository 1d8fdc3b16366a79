"""The answer to stats, which is ours: what is known of an index beyond the contract."""

from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct

from app.domain import Index, MetadataSchema, TrainingJob
from app.engine.profile import Point, SearchProfile
from app.services.stats import EmbeddingStats, IndexStats
from app.training import drift


class PointAnswer(Struct, frozen=True, kw_only=True):
    """A setting of a search: the recall that was measured, and the recall that is promised."""

    n_probes: int
    pool: int
    recall: float
    safe_recall: float

    @classmethod
    def of(cls, point: Point) -> "PointAnswer":
        """Return `point` with named numbers."""
        return cls(
            n_probes=point.n_probes, pool=point.pool, recall=point.recall, safe_recall=point.lower
        )


class ProfileAnswer(Struct, frozen=True, kw_only=True):
    """The search profile, by the number of results (top_k) as text."""

    target_recall: float | None
    recall: float | None
    by_top_k: dict[str, list[PointAnswer]]

    @classmethod
    def of(cls, profile: SearchProfile | None) -> "ProfileAnswer | None":
        """Return `profile`, if something was measured."""
        if profile is None:
            return None
        return cls(
            target_recall=profile.target,
            recall=profile.recall,
            by_top_k={
                str(top_k): [PointAnswer.of(point) for point in points]
                for top_k, points in profile.points.items()
            },
        )


class TrainingAnswer(Struct, frozen=True, kw_only=True):
    """The last training of an index.

    `state` is queued, running, succeeded, failed or interrupted.
    """

    state: str
    phase: str
    progress_percent: int
    failure: str | None
    next_attempt_at: datetime | None

    @classmethod
    def of(cls, job: TrainingJob | None) -> "TrainingAnswer | None":
        """Return `job`; one that no worker sees to is interrupted, whatever its row says."""
        if job is None:
            return None
        is_abandoned = job.state in {"queued", "running"} and not job.is_live
        return cls(
            state="interrupted" if is_abandoned else job.state,
            phase=job.phase,
            progress_percent=job.progress,
            failure=job.failure,
            next_attempt_at=job.next_attempt_at,
        )


class EncoderAnswer(Struct, frozen=True, kw_only=True):
    """The encoder that makes the sketches which searches use."""

    version: int
    sketch_bits: int | None
    sketch_noise: float
    is_fitted: bool

    @classmethod
    def of(cls, index: Index) -> "EncoderAnswer":
        """Return what the row of an index says of its encoder."""
        return cls(
            version=index.encoder_version,
            sketch_bits=index.sketch_bits,
            sketch_noise=index.sketch_noise,
            is_fitted=index.encoder_version > 0,
        )


class StatsAnswer(Struct, frozen=True, kw_only=True):
    """What is known of an index beyond the contract.

    `n_changes_since_training` counts items added, replaced or deleted; `n_outdated_since_training`
    leaves out those added. `is_drifted` advises to train again, `drift_reasons` say why.
    """

    index_name: str
    n_items: int
    n_changes: int
    dimension: int
    metric: str
    storage_precision: str
    n_lists: int
    is_trained: bool
    trained_at: datetime | None
    n_items_at_training: int | None
    n_changes_since_training: int
    n_outdated_since_training: int
    list_imbalance: float | None
    profile: ProfileAnswer | None
    is_drifted: bool
    drift_reasons: Sequence[str]
    training: TrainingAnswer | None
    encoder: EncoderAnswer
    embedding: EmbeddingStats | None
    size_bytes: int
    ivf_size_bytes: int
    metadata_schema: MetadataSchema
    created_at: datetime

    @classmethod
    def of(cls, stats: IndexStats) -> "StatsAnswer":
        """Return `stats` in the words of the wire."""
        index, counts, verdict = stats.index, stats.look.counts, stats.look.verdict
        return cls(
            index_name=index.name,
            n_items=counts.n_items,
            n_changes=counts.n_changes,
            dimension=index.dimension or 0,
            metric=index.metric,
            storage_precision=index.storage_precision,
            n_lists=index.n_lists,
            is_trained=index.is_trained,
            trained_at=index.trained_at,
            n_items_at_training=index.n_items_at_training,
            n_changes_since_training=drift.changes_since_training(index, counts),
            n_outdated_since_training=drift.outdated_since_training(index, counts),
            list_imbalance=verdict.list_imbalance,
            profile=ProfileAnswer.of(stats.profile),
            is_drifted=bool(verdict.reasons),
            drift_reasons=verdict.reasons,
            training=TrainingAnswer.of(stats.job),
            encoder=EncoderAnswer.of(index),
            embedding=stats.embedding,
            size_bytes=stats.n_bytes,
            ivf_size_bytes=stats.n_ivf_bytes,
            metadata_schema=stats.metadata_schema,
            created_at=index.created_at,
        )
