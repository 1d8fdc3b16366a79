"""PostgreSQL: every statement the service sends."""

from app.store import candidates, indexes, items, partitions, samples, tables, training, users

__all__ = ["candidates", "indexes", "items", "partitions", "samples", "tables", "training", "users"]
