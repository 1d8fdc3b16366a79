"""PostgreSQL: every statement the service sends."""

from app.store import audit, candidates, indexes, items, overview, partitions, samples, tables, training, users

__all__ = [
    "audit",
    "candidates",
    "indexes",
    "items",
    "overview",
    "partitions",
    "samples",
    "tables",
    "training",
    "users",
]
