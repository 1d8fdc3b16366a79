"""Whether an index has drifted from what its training saw, and why; `train` repairs it."""

from dataclasses import dataclass
from typing import Any

from app.domain import Index, TrainingJob

# Lists this much more uneven than at training are read for nothing by some queries and missed by
# others.
_UNEVEN = 1.5
_MIN_IMBALANCE = 3.0


@dataclass(frozen=True, slots=True)
class Counts:
    """What is counted of an index now: items, changes since it was made, unevenness of its lists."""

    n_items: int
    n_changes: int
    imbalance: float | None


def changes_since_training(index: Index, counts: Counts) -> int:
    """Return how many items were added, replaced or deleted since the last training began to build."""
    return counts.n_changes - (index.n_changes_at_training or 0)


def reasons(index: Index, counts: Counts, drift_share: float) -> list[str]:
    """Return why a trained index should be trained again; an untrained one is exact and cannot drift."""
    if not index.is_trained:
        return []
    found = []
    n_changes, n_items = changes_since_training(index, counts), index.n_items_at_training or 0
    if n_changes > drift_share * n_items:
        found.append(f"{n_changes} items have changed since it was trained on {n_items}")
    profile = index.profile or {}
    before = profile.get("imbalance") or 1.0
    if counts.imbalance is not None and counts.imbalance > max(_MIN_IMBALANCE, _UNEVEN * before):
        found.append(f"its lists have become uneven: {counts.imbalance} after {before}")
    recall, target = profile.get("recall"), profile.get("target")
    if recall is not None and target is not None and recall < target:
        found.append(f"its last training found a recall of {recall} for a target of {target}")
    return found


def facts(
    index: Index, counts: Counts, job: TrainingJob | None, drift_share: float
) -> dict[str, Any]:
    """Return what stats say about training and drift."""
    why = reasons(index, counts, drift_share)
    return {
        "n_lists": index.n_lists,
        "is_trained": index.is_trained,
        "trained_at": index.trained_at,
        "n_items_at_training": index.n_items_at_training,
        "n_changes_since_training": changes_since_training(index, counts),
        "list_imbalance": counts.imbalance,
        "profile": _summary(index),
        "is_drifted": bool(why),
        "drift_reasons": why,
        "training": None if job is None else _job_facts(job),
    }


def _summary(index: Index) -> dict[str, Any] | None:
    """Return the search profile with named numbers."""
    if index.profile is None:
        return None
    names = ("n_probes", "pool", "recall", "safe_recall")
    return {
        "target_recall": index.profile["target"],
        "recall": index.profile["recall"],
        "by_top_k": {
            top_k: [dict(zip(names, point, strict=True)) for point in points]
            for top_k, points in index.profile["points"].items()
        },
    }


def _job_facts(job: TrainingJob) -> dict[str, Any]:
    is_abandoned = job.state in {"queued", "running"} and not job.is_live
    return {
        "state": "interrupted" if is_abandoned else job.state,
        "phase": job.phase,
        "progress_percent": job.progress,
        "failure": job.failure,
        "next_attempt_at": job.next_attempt_at,
    }
