"""PostgreSQL: every statement the service sends."""

from app.store import candidates, filtered, indexes, items, partitions, samples, tables, training, users

__all__ = ["candidates", "filtered", "indexes", "items", "partitions", "samples", "tables", "training", "users"]
