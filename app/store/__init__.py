"""PostgreSQL: what the service keeps, a module a table; `pg` is the driver."""

from app.store import (
    audit,
    doctor,
    drift,
    indexes,
    items,
    overview,
    partitions,
    rate_limits,
    tables,
    training,
    users,
)

__all__ = [
    "audit",
    "doctor",
    "drift",
    "indexes",
    "items",
    "overview",
    "partitions",
    "rate_limits",
    "tables",
    "training",
    "users",
]
