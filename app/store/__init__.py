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
    "copying",
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
