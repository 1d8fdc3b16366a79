"""PostgreSQL: every statement the service sends."""

from app.store import (
    audit,
    candidates,
    doctor,
    filtered,
    indexes,
    items,
    overview,
    partitions,
    rate_limits,
    samples,
    tables,
    training,
    users,
)

__all__ = [
    "audit",
    "candidates",
    "doctor",
    "filtered",
    "indexes",
    "items",
    "overview",
    "partitions",
    "rate_limits",
    "samples",
    "tables",
    "training",
    "users",
]
