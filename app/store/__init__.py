"""PostgreSQL: every statement the service sends."""

from app.store import (
    audit,
    candidates,
    copying,
    doctor,
    filtered,
    indexes,
    items,
    overview,
    packing,
    partitions,
    rate_limits,
    samples,
    tables,
    token_candidates,
    training,
    users,
)

__all__ = [
    "audit",
    "candidates",
    "copying",
    "doctor",
    "filtered",
    "indexes",
    "items",
    "overview",
    "packing",
    "partitions",
    "rate_limits",
    "samples",
    "tables",
    "token_candidates",
    "training",
    "users",
]
